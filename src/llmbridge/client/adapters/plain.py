"""Strings, and records made elsewhere, as a response. Knows nothing of models."""

from collections.abc import Iterator

from llmbridge.client.adapters.translator import Translator
from llmbridge.v1.token_pb2 import FINISH_REASON_STOP, Completion, Token

__all__ = ["PlainTranslator"]


class PlainTranslator(Translator):
    """Takes strings as text tokens, tokens as they are, and a completion as the end.

    Without a completion the end of the source is a good one: an iterator that fails raises.
    """

    def __init__(self) -> None:
        super().__init__()
        self._completion = Completion(finish_reason=FINISH_REASON_STOP)

    def tokens(self, event: object) -> Iterator[Token]:
        """See Translator; TypeError for anything else than strings and records."""
        match event:
            case str():
                yield from self._text(event)
            case Token():
                # What is told besides (when it arrived) must not change the caller's.
                token = Token()
                token.CopyFrom(event)
                yield token
            case Completion():
                self._completion, self.finished = event, True
            case _:
                raise TypeError(f"a source of strings and tokens yielded {type(event).__name__}")

    def completion(self) -> Completion:
        """See Translator."""
        return self._completion
