"""What the load needs of a way to read a stream: what arrives, from a place on, to its end. One way is the client's.

Knows nothing of ledgers.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llmbridge.client import Client, ClientError

Key: TypeAlias = tuple[str, str, str]
"""Session, model and response."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """One message, or event."""

    place: str
    """Where to go on behind it, by any way that knows such a place."""
    tokens: Sequence[tuple[int, str]] = ()
    """Sequences and texts."""
    finish: str = ""
    """The completion's finish reason, if it is the end."""
    finish_number: int = 0


class ReadingFailed(Exception):
    """A reader was told an error that coming back does not help. The message is its client's name for it."""


class Way(Protocol):
    """Reads streams as one kind of client does, which comes back by itself after whatever passes."""

    def read(self, key: Key, place: str) -> AsyncGenerator[Arrived]:
        """Read from a place on (empty: the beginning) to the end. Raises ReadingFailed."""


class ByClient:
    """The Python client's way."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def read(self, key: Key, place: str) -> AsyncGenerator[Arrived]:
        try:
            async with self.client.subscribe(*key, after_cursor=place) as subscription:
                async for message in subscription:
                    tokens = [(message.first_sequence + i, token.text) for i, token in enumerate(message.tokens)]
                    if message.finish_reason is None:
                        yield Arrived(message.cursor, tokens)
                    else:
                        yield Arrived(message.cursor, tokens, message.finish_reason.name, message.last_sequence)
        except ClientError as error:
            raise ReadingFailed(name_of(error)) from error


def name_of(error: ClientError) -> str:
    """Name an error by its class and the bridge's reason."""
    return f"{type(error).__name__} {error.reason}".rstrip()


@asynccontextmanager
async def clients_of(addresses: Sequence[str]) -> AsyncIterator[list[ByClient]]:
    """A client for each address (or list of addresses), for the time of the context."""
    async with AsyncExitStack() as stack:
        yield [ByClient(await stack.enter_async_context(Client(address))) for address in addresses]
