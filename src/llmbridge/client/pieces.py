"""What most readers want of a subscription: its pieces of text, or its tokens. Knows neither calls nor cursors."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, Self, TypeVar

from llmbridge.client.errors import ResponseFailed
from llmbridge.client.values import FinishReason, Message
from llmbridge.v1.token_pb2 import Completion, Token

_Piece = TypeVar("_Piece")


class MessageSource(Protocol):
    """A subscription, as far as pieces need it."""

    @property
    def completion(self) -> Completion | None:
        """The stream's end, once it has been read."""

    async def __anext__(self) -> Message:
        """Return the next message."""


_Source = TypeVar("_Source", bound=MessageSource)


class Pieces(Generic[_Source, _Piece]):
    """The pieces of a subscription, as an async iterator that ends after the completion.

    `subscription.completion` tells how it ended. Raises ResponseFailed after the last piece if that was an error, since
    the response is then not all there; and whatever Subscription raises.
    """

    def __init__(self, subscription: _Source, pieces_of: Callable[[Message], Iterable[_Piece]]) -> None:
        self.subscription = subscription
        self._pieces_of = pieces_of
        self._pieces: deque[_Piece] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Piece:
        while not self._pieces:
            completion = self.subscription.completion
            if completion is not None and FinishReason.of(completion) is FinishReason.ERROR:
                raise ResponseFailed(completion)
            self._pieces.extend(self._pieces_of(await anext(self.subscription)))
        return self._pieces.popleft()


def texts_of(message: Message) -> list[str]:
    """Take a message's text, piece by piece."""
    return [token.text for token in message.tokens if token.text]


def tokens_of(message: Message) -> Iterable[Token]:
    """Take a message's tokens."""
    return message.tokens
