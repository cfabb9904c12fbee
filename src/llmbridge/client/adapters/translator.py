"""What all translations of a model's stream have in common: how tokens are made of pieces of text.

A translator is told one event after the other and says which tokens it makes; at the end it says how the response
ended. It knows neither network nor writer, and no event ends it early: what it does not know says nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from llmbridge.v1.token_pb2 import (
    FINISH_REASON_ERROR,
    Completion,
    Role,
    Token,
    ToolCall,
    Usage,
)

__all__ = ["LARGEST_PIECE", "Translator", "error_completion", "whole_text"]

# In characters. Some servers send whole answers or arguments at once; this stays below the bridge's limit for a token
# (64 KiB) also where each character takes four bytes.
LARGEST_PIECE = 8_192


class _Place(NamedTuple):
    """Where a piece of text belongs: pieces of one place are concatenated."""

    kind: Literal["text", "refusal", "reasoning", "arguments"]
    number: int = 0


class Translator(ABC):
    """Makes one response's tokens and completion of a model's stream."""

    def __init__(self) -> None:
        self.model = ""
        """The model's name as the server gives it; empty while it is not known."""
        self.role: Role.ValueType = Role.ROLE_UNSPECIFIED
        self.finished = False
        """Nothing can follow: the completion is known although the stream has not ended."""
        # Halves of surrogate pairs: servers that cut text between UTF-16 units send them in different events.
        self._halves: dict[_Place, str] = {}

    @abstractmethod
    def tokens(self, event: object) -> Iterator[Token]:
        """Make tokens of the next event, without time, role and generation. Raises SourceError if it can't go on."""

    @abstractmethod
    def completion(self) -> Completion:
        """How the response ended, after the last event."""

    def rest(self) -> Iterator[Token]:
        """After the last event: what was held back for a second half that never came."""
        for place in list(self._halves):
            yield from self._piece(place, "", last=True)

    def _text(self, text: str) -> Iterator[Token]:
        return self._piece(_Place("text"), text)

    def _refusal(self, text: str) -> Iterator[Token]:
        # A refusal is what the person is to read, hence text.
        return self._piece(_Place("refusal"), text)

    def _reasoning(self, text: str) -> Iterator[Token]:
        return self._piece(_Place("reasoning"), text)

    def _call(self, index: int, identifier: str, name: str, arguments: str = "") -> Iterator[Token]:
        """The beginning of a tool call."""
        first = self._whole_characters(_Place("arguments", index), arguments[:LARGEST_PIECE])
        call = ToolCall(index=index, id=whole_text(identifier), name=whole_text(name), arguments=first)
        yield Token(tool_call=call)
        yield from self._arguments(index, arguments[LARGEST_PIECE:])

    def _arguments(self, index: int, text: str) -> Iterator[Token]:
        return self._piece(_Place("arguments", index), text)

    def _piece(self, place: _Place, text: str, *, last: bool = False) -> Iterator[Token]:
        text = self._whole_characters(place, text, last=last)
        for start in range(0, len(text), LARGEST_PIECE):
            yield _token(place, text[start : start + LARGEST_PIECE])

    def _whole_characters(self, place: _Place, text: str, *, last: bool = False) -> str:
        """Join halves of surrogate pairs and hold back a first half; a half without its other becomes U+FFFD."""
        text = self._halves.pop(place, "") + text
        if not text or text.isascii():
            return text
        if not last and "\ud800" <= text[-1] <= "\udbff":
            self._halves[place] = text[-1]
            text = text[:-1]
        return whole_text(text)


def _token(place: _Place, text: str) -> Token:
    match place.kind:
        case "text":
            return Token(text=text)
        case "refusal":
            return Token(text=text, attributes={"refusal": "true"})
        case "reasoning":
            return Token(reasoning=text)
        case "arguments":
            return Token(tool_call=ToolCall(index=place.number, arguments=text))


def error_completion(message: str, usage: Usage | None, attributes: Mapping[str, str] | None = None) -> Completion:
    """The end of a response that failed, or of which it is not known whether it did."""
    return Completion(
        finish_reason=FINISH_REASON_ERROR,
        error_message=message,
        usage=usage,
        attributes=attributes,
    )


def whole_text(text: str) -> str:
    """Join halves of surrogate pairs; a half without its other becomes U+FFFD, since UTF-8 can't carry it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
