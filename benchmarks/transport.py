"""What the loads need of a service under test, so that bridge and hand-rolled service run the same load code."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from benchmarks.rounds import Reading


class Transport(Protocol):
    """Connections to one service."""

    async def produce(self, stream: str, first_sequence: int, tokens: Sequence[str], *, final: bool) -> None:
        """Appends tokens, and ends the stream with them if they are the final ones. Raises what the service refuses."""

    def read(self, stream: str, reading: Reading, on_attached: Callable[[], None]) -> AsyncGenerator[list[str]]:
        """Reads a stream from its beginning: the texts of each message, until the stream's end.

        Calls `on_attached` when the service has answered. Raises DeliveryError if it stops before the stream's end, or
        delivers anything again.
        """

    async def close(self) -> None:
        """Closes all connections."""
