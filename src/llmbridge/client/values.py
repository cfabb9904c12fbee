"""The values that go in and out of the client. Knows neither connections nor retries.

Tokens, completions, usage and stream information are the messages of the contract (`llmbridge.v1`), as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import Position as WirePosition
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import Completion, Token
from llmbridge.v1.token_pb2 import FinishReason as WireFinishReason


class FinishReason(IntEnum):
    """Why a stream ended. The numbers are the contract's."""

    UNSPECIFIED = 0
    """Not known to this version of the client."""
    STOP = 1
    LENGTH = 2
    TOOL_CALLS = 3
    CONTENT_FILTER = 4
    CANCELLED = 5
    ERROR = 6

    @property
    def on_wire(self) -> WireFinishReason.ValueType:
        """The contract's value."""
        return WireFinishReason.ValueType(self.value)

    @classmethod
    def of(cls, completion: Completion) -> "FinishReason":
        """Read a completion's finish reason; one that a newer bridge has added is UNSPECIFIED."""
        number = int(completion.finish_reason)
        return cls(number) if number in _FINISH_REASONS else cls.UNSPECIFIED


_FINISH_REASONS = frozenset(int(reason) for reason in FinishReason)


class Sealer(IntEnum):
    """Who stored the completion. The numbers are the contract's."""

    UNSPECIFIED = 0
    """Not known to this version of the client."""
    PRODUCER = 1
    CANCEL = 2
    LOST = 3


class Position(IntEnum):
    """Where a reader without a cursor begins. The numbers are the contract's."""

    BEGINNING = 1
    """At the first record ever; HistoryLost if that is gone."""
    EARLIEST = 2
    """At the earliest record that is left."""
    LATEST = 3
    """Only what is appended from now on. The bridge tells when that is with its first message or heartbeat; if the call
    breaks before that, it is when the next one begins."""

    @property
    def on_wire(self) -> WirePosition.ValueType:
        """The contract's value."""
        return WirePosition.ValueType(self.value)


@dataclass(frozen=True, slots=True)
class Message:
    """The next records of a stream: tokens, then the completion if the stream ends here.

    Token i has the sequence `first_sequence + i`. How records are put into messages carries no meaning and differs
    from one reading to another. `cursor` names the last of the records: keep it, and another reader goes on behind
    it. `appended_ms` is when Redis stored that record, in ms since the Unix epoch by Redis' clock.
    """

    tokens: Sequence[Token]
    first_sequence: int
    cursor: str
    completion: Completion | None
    appended_ms: int

    @property
    def last_sequence(self) -> int:
        """The sequence of the last record."""
        return self.first_sequence + len(self.tokens) + (self.completion is not None) - 1

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the stream ends here; None if it does not."""
        return None if self.completion is None else FinishReason.of(self.completion)

    @property
    def text(self) -> str:
        """The text tokens' content, concatenated; reasoning, tool calls and JSON are left out."""
        return "".join(token.text for token in self.tokens)


def stream_name(stream: StreamName | str, model_id: str, response_id: str) -> StreamName:
    """Take a stream's name in either form that the client's methods accept."""
    if isinstance(stream, str):
        return StreamName(stream, model_id, response_id)
    if model_id or response_id:
        raise TypeError("give either a StreamName or its parts, not both")
    return stream


def stream_ref(name: StreamName) -> StreamRef:
    """Encode a stream's name."""
    return StreamRef(session_id=name.session_id, model_id=name.model_id, response_id=name.response_id)


def name_of(ref: StreamRef) -> StreamName:
    """Decode a stream's name."""
    return StreamName(ref.session_id, ref.model_id, ref.response_id)
