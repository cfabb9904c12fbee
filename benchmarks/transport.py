"""What the loads need of a service under test, so that all services run the same load code."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

from benchmarks.rounds import Reading


class Reader(Protocol):
    """Who reads a stream: is told what happens to it."""

    def attached(self) -> None:
        """The service has answered: what is appended from now on will come."""

    def take(self, texts: Sequence[str]) -> None:
        """The next tokens have come, in one message. Raises DeliveryError where they are not the next ones."""


class Transport(ABC):
    """Connections to one service."""

    @abstractmethod
    async def produce(
        self, stream: str, first_sequence: int, tokens: Sequence[str], *, final: bool, awaited: bool = True
    ) -> None:
        """Appends tokens, and ends the stream with them if they are the final ones. Raises what the service refuses.

        Not `awaited`: returns when they are handed over, and only the final ones wait until all of the stream's are
        stored. What can't do that takes `awaited` only.
        """

    async def step(self, sequence: int, texts: Mapping[str, str], *, final: bool) -> Awaitable[None]:
        """Sends one token, the one with this sequence, to each stream; what is returned waits until all are stored.

        Where a service has no call for that: with one call for each stream, all at once, which are answered by then.
        """
        async with asyncio.TaskGroup() as calls:
            for stream, text in texts.items():
                calls.create_task(self.produce(stream, sequence, [text], final=final))
        return _nothing()

    @abstractmethod
    async def read(self, stream: str, reading: Reading, reader: Reader) -> None:
        """Reads a stream from its beginning to its end.

        Raises DeliveryError if it stops before the stream's end, or delivers anything again.
        """

    @abstractmethod
    async def close(self) -> None:
        """Closes all connections."""


async def _nothing() -> None:
    pass
