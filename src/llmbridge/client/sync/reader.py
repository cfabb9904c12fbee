"""The reader for programs without an event loop."""

from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from llmbridge.client import pieces as asyncio_pieces
from llmbridge.client import reader as asyncio_reader
from llmbridge.client.sync.face import Face, blocking, next_of
from llmbridge.client.sync.loop_thread import LoopThread
from llmbridge.client.values import Message
from llmbridge.model.names import StreamName
from llmbridge.v1.token_pb2 import Completion, Token

_Piece = TypeVar("_Piece")


class Subscription(Face[asyncio_reader.Subscription]):
    """Reads one stream, as an iterator of Messages that ends after the completion; as llmbridge.client.Subscription.

    With `timeout`, waiting for the next message ends, too. After Ctrl-C go on with a new one, behind the last message
    handled: one may have been on its way to the loop.
    """

    @property
    def stream(self) -> StreamName:
        """The stream's name."""
        return self._original.stream

    @property
    def cursor(self) -> str:
        """Where another reader goes on behind this one."""
        return self._original.cursor

    @property
    def completion(self) -> Completion | None:
        """The stream's end, once it has been read."""
        return self._original.completion

    def texts(self) -> "Pieces[str]":
        """Read only the pieces of text; reasoning, tool calls and JSON are left out."""
        return Pieces(self._thread, self, self._original.texts())

    def tokens(self) -> "Pieces[Token]":
        """Read the tokens one by one."""
        return Pieces(self._thread, self, self._original.tokens())

    close = blocking(asyncio_reader.Subscription.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        return next_of(self._thread, self._original)


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
