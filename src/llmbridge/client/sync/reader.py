"""The reader for programs without an event loop."""

from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from llmbridge.client import pieces as asyncio_pieces
from llmbridge.client import reader as asyncio_reader
from llmbridge.client.sync.loop_thread import LoopThread
from llmbridge.client.values import Message
from llmbridge.model.names import StreamName
from llmbridge.v1.token_pb2 import Completion, Token

_Piece = TypeVar("_Piece")
_Item_co = TypeVar("_Item_co", covariant=True)


class Subscription:
    """Reads one stream, as an iterator of Messages that ends after the completion; as llmbridge.client.Subscription.

    With `timeout`, waiting for the next message ends, too. After Ctrl-C go on with a new one, behind the last message
    handled: one may have been on its way to the loop.
    """

    def __init__(self, thread: LoopThread, subscription: asyncio_reader.Subscription) -> None:
        self._thread = thread
        self._subscription = subscription

    @property
    def stream(self) -> StreamName:
        """The stream's name."""
        return self._subscription.stream

    @property
    def cursor(self) -> str:
        """Where another reader goes on behind this one."""
        return self._subscription.cursor

    @property
    def completion(self) -> Completion | None:
        """The stream's end, once it has been read."""
        return self._subscription.completion

    def texts(self) -> "Pieces[str]":
        """Read only the pieces of text; reasoning, tool calls and JSON are left out."""
        return Pieces(self._thread, self, self._subscription.texts())

    def tokens(self) -> "Pieces[Token]":
        """Read the tokens one by one."""
        return Pieces(self._thread, self, self._subscription.tokens())

    def close(self) -> None:
        """End the call. Iterating afterwards goes on from where it stood."""
        self._thread.run(self._subscription.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        return next_of(self._thread, self._subscription)


class Pieces(Generic[_Piece]):
    """The pieces of a subscription, as an iterator that ends after the completion; as llmbridge.client.Pieces."""

    def __init__(
        self, thread: LoopThread, subscription: Subscription, pieces: asyncio_pieces.Pieces[Any, _Piece]
    ) -> None:
        self.subscription = subscription
        self._thread = thread
        self._pieces = pieces

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Piece:
        return next_of(self._thread, self._pieces)


class _Next(Protocol[_Item_co]):
    def __anext__(self) -> Awaitable[_Item_co]: ...


def next_of(thread: LoopThread, source: _Next[_Item_co]) -> _Item_co:
    """Have the next item fetched. Raises StopIteration at the end."""

    async def fetch() -> _Item_co:
        return await source.__anext__()

    try:
        return thread.run(fetch())
    except StopAsyncIteration:
        raise StopIteration from None
