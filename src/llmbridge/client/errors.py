"""What can go wrong, as one tree, and how a status becomes one of it.

    ClientError
    ├── Unavailable          no answer, or the bridge can't serve now; raised when trying again has not helped either
    ├── ClientClosed         the client was closed while, or before, it was used
    ├── InvalidRequest       a field is missing, malformed or out of range
    ├── LimitExceeded        a limit of the bridge would be exceeded
    ├── StreamNotFound
    ├── StreamExists
    ├── GroupNotFound
    ├── GroupSettingsDiffer  the group exists with another deadline, or another maximum of deliveries
    ├── ConnectionNotFound
    ├── Disconnected         an operator ended the call
    ├── GenerationOver       nothing more can be appended: stop generating
    │   ├── StreamCompleted  … the stream has its end: cancelled, given up for lost, or completed before
    │   └── ProducerFenced   … another producer took over
    ├── SequenceGap          the stream is not where the writer was told to go on from
    ├── DataLost             the log lost more of what was stored than the writer keeps
    ├── SequenceConflict     the numbers are taken by other content
    ├── HistoryLost          records between a reader's place and the present are gone
    ├── DeadlineExceeded     the reader's own time limit passed; also a TimeoutError
    ├── ProtocolViolation    the bridge broke a promise: a hole, a repetition, an end without a completion
    ├── ResponseFailed       the response was read to its end, and that is an error
    └── BridgeFailure        the bridge has a defect, or answers what this client doesn't know

The bridge explains its errors with google.rpc.ErrorInfo (see error_reason.proto); `reason` is the name there without
its prefix, and `metadata` what is documented with it.
"""

from collections.abc import Mapping

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from llmbridge.client.values import FinishReason, Sealer
from llmbridge.v1.bridge_service_pb2 import Failure
from llmbridge.v1.token_pb2 import Completion

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "llmbridge"
_REASON_PREFIX = "ERROR_REASON_"

# A broken connection mostly gives UNAVAILABLE. With these texts, seen from grpc and from proxies, it gives UNKNOWN or
# INTERNAL. All other statuses of these codes come from a program, and trying again would not help.
_TRANSPORT_CODES = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL})
_TRANSPORT_TEXTS = (
    "stream removed",
    "rst_stream",
    "rst stream",
    "goaway",
    "socket closed",
    "connection reset",
    "connection aborted",
    "broken pipe",
    "transport closed",
    "stream terminated",
    "unexpected eof",
    # What grpc makes of a call whose connection broke under a message that it was sending.
    "internal error from core",
)

# With these the bridge says that nothing of the request was stored; every other way of being unavailable leaves open
# whether it was.
_NOTHING_STORED = frozenset({"REDIS_UNAVAILABLE", "DRAINING"})


class ClientError(Exception):
    """Base of all errors of the client.

    `code` is the RPC's status if it was one. `attempts` counts the tries of the same request, and `outcome_unknown`
    tells that one of them may have been carried out although it failed.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_delay: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.retry_delay = retry_delay
        """What the bridge asks to wait before the next try, in seconds."""
        self.attempts = 1
        self.outcome_unknown = False

    def __str__(self) -> str:
        return self.message if self.attempts == 1 else f"{self.message} (after {self.attempts} attempts)"

    def _number(self, key: str) -> int:
        value = self.metadata.get(key, "")
        return int(value) if value.isdecimal() else 0


class Unavailable(ClientError):
    """No answer came, or the bridge can't serve at present. Trying again later helps."""


class ClientClosed(ClientError):
    """The client was closed while, or before, it was used."""

    def __init__(self) -> None:
        super().__init__("the client is closed")


class InvalidRequest(ClientError):
    """The request can't be served as it is; nothing was stored."""

    @property
    def field(self) -> str:
        """The field (or message) to change."""
        return self.metadata.get("field", "")


class LimitExceeded(ClientError):
    """A limit of the bridge would be exceeded; nothing was stored."""

    @property
    def limit(self) -> str:
        """The limit's name, which is a setting of the bridge."""
        return self.metadata.get("limit", "")

    @property
    def maximum(self) -> int:
        """What it allows; 0 if not told."""
        return self._number("maximum")

    @property
    def value(self) -> int:
        """What it would have been; 0 if not told."""
        return self._number("value")


class StreamNotFound(ClientError):
    """There is no stream of that name."""


class StreamExists(ClientError):
    """There is a stream of that name; nothing was changed."""


class GroupNotFound(ClientError):
    """There is no such consumer group: never made, deleted, or gone with its stream."""


class GroupSettingsDiffer(ClientError):
    """The group exists with other settings."""

    @property
    def ack_deadline_ms(self) -> int:
        """The group's deadline for settling an entry."""
        return self._number("ack_deadline_ms")

    @property
    def max_deliveries(self) -> int:
        """After how many deliveries the group makes an entry a dead letter."""
        return self._number("max_deliveries")


class ConnectionNotFound(ClientError):
    """The bridge process has no such connection."""


class Disconnected(ClientError):
    """An operator ended the call."""

    @property
    def cursor(self) -> str:
        """Where the reader stood."""
        return self.metadata.get("cursor", "")


class GenerationOver(ClientError):
    """Nothing more can be appended by this producer: stop generating."""


class StreamCompleted(GenerationOver):
    """The stream is sealed."""

    @property
    def finish_reason(self) -> FinishReason:
        """How it ended."""
        name = self.metadata.get("finish_reason", "").removeprefix("FINISH_REASON_")
        return FinishReason.__members__.get(name, FinishReason.UNSPECIFIED)

    @property
    def sealer(self) -> Sealer:
        """Who ended it."""
        name = self.metadata.get("sealer", "").removeprefix("SEALER_")
        return Sealer.__members__.get(name, Sealer.UNSPECIFIED)


class ProducerFenced(GenerationOver):
    """Another producer took over."""

    @property
    def epoch(self) -> int:
        """The other producer's epoch."""
        return self._number("epoch")


class SequenceGap(ClientError):
    """The log would take another record next than the one sent: it has other records, or has lost some.

    A writer deals with what it can fill again; it raises this where none of the stream's records was its own.
    """

    @property
    def expected(self) -> int:
        """The sequence that the log would take next."""
        return self._number("expected")

    @property
    def received(self) -> int:
        """The sequence that was sent."""
        return self._number("received")


class DataLost(ClientError):
    """The log lost records that had been stored, and the writer does not keep them any more.

    The stream was completed with an error whose message begins with DATA_LOST.
    """

    @property
    def expected(self) -> int:
        """The sequence of the first lost record."""
        return self._number("expected")


class SequenceConflict(ClientError):
    """The sequence numbers are stored already, with other content: two writers share a producer id."""

    @property
    def sequence(self) -> int:
        """The number in question."""
        return self._number("sequence")


class HistoryLost(ClientError):
    """Records between the reader's place and the present are gone.

    `reason` tells why: RESTARTED, TRIMMED, LOST, REWRITTEN or EXPIRED. Decide whether to go on from `earliest_cursor`,
    and tell the person who reads.
    """

    @property
    def earliest_cursor(self) -> str:
        """Subscribing after it reads from the earliest record that is left; empty means from the beginning."""
        return self.metadata.get("earliest_cursor", "")


class DeadlineExceeded(ClientError, TimeoutError):
    """The time that the caller gave passed. The reader stands where it stood."""


class ProtocolViolation(ClientError):
    """The bridge broke a promise. Nothing was skipped or repeated: the reader stands where it stood."""


class ResponseFailed(ClientError):
    """The response was read to its end, which says that the generation failed, or its producer fell silent."""

    def __init__(self, completion: Completion) -> None:
        super().__init__(completion.error_message or "the generation failed")
        self.completion = completion
        """The stream's end, as read."""


class BridgeFailure(ClientError):
    """A defect of the bridge, or an answer that this client doesn't know."""

    @property
    def incident(self) -> str:
        """Under which name the bridge's log has the details; may be empty."""
        return self.metadata.get("incident", "")


_BY_REASON: Mapping[str, type[ClientError]] = {
    "INVALID_FIELD": InvalidRequest,
    "MALFORMED_REQUEST": InvalidRequest,
    "LIMIT_EXCEEDED": LimitExceeded,
    "SEQUENCE_GAP": SequenceGap,
    "FENCED": ProducerFenced,
    "COMPLETED": StreamCompleted,
    "SEQUENCE_CONFLICT": SequenceConflict,
    "RESTARTED": HistoryLost,
    "TRIMMED": HistoryLost,
    "LOST": HistoryLost,
    "REWRITTEN": HistoryLost,
    "EXPIRED": HistoryLost,
    "STREAM_NOT_FOUND": StreamNotFound,
    "STREAM_EXISTS": StreamExists,
    "GROUP_NOT_FOUND": GroupNotFound,
    "GROUP_SETTINGS_DIFFER": GroupSettingsDiffer,
    "CONNECTION_NOT_FOUND": ConnectionNotFound,
    "DISCONNECTED": Disconnected,
    "REDIS_UNAVAILABLE": Unavailable,
    "APPEND_OUTCOME_UNKNOWN": Unavailable,
    "DRAINING": Unavailable,
    "CONNECTION_IDLE": Unavailable,
    "WORKER_UNAVAILABLE": Unavailable,
    "INTERNAL": BridgeFailure,
}

# For statuses without a reason that is known here: from the transport, a proxy, or a newer bridge.
_BY_CODE: Mapping[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
    grpc.StatusCode.OUT_OF_RANGE: HistoryLost,
}


def error_from_rpc(error: grpc.aio.AioRpcError, *, own_deadline: bool) -> ClientError:
    """Translate a failed call.

    `own_deadline`: the client set the call's deadline itself, for this attempt only, so that passing it means no more
    than that no answer came.
    """
    trailers = error.trailing_metadata()
    packed = trailers.get(_DETAILS_KEY) if trailers is not None else None
    details = packed if isinstance(packed, bytes) else b""
    return _error(error.code(), error.details() or "", details, own_deadline=own_deadline)


def error_from_failure(failure: Failure) -> ClientError:
    """Translate the failure of one of the things that share a call."""
    code = _CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
    return _error(code, failure.message, failure.status_details, own_deadline=False)


def _error(code: grpc.StatusCode, message: str, details: bytes, *, own_deadline: bool) -> ClientError:
    info, retry_delay = _read_details(details)
    message = message or code.name
    reason = info.reason.removeprefix(_REASON_PREFIX)
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, BridgeFailure)
    if not reason and (
        (own_deadline and code is grpc.StatusCode.DEADLINE_EXCEEDED)
        # Calls that this side cancels don't get here; a server that is going down ends its calls so.
        or code is grpc.StatusCode.CANCELLED
        or (code in _TRANSPORT_CODES and any(text in message.lower() for text in _TRANSPORT_TEXTS))
    ):
        kind = Unavailable
    result = kind(message, code=code, reason=reason, metadata=info.metadata, retry_delay=retry_delay)
    result.outcome_unknown = kind is Unavailable and reason not in _NOTHING_STORED
    return result


def _read_details(packed: bytes) -> tuple[error_details_pb2.ErrorInfo, float]:
    """Read the bridge's ErrorInfo (empty if there is none) and the delay it asks for in seconds."""
    info, retry_delay = error_details_pb2.ErrorInfo(), 0.0
    status, retry = status_pb2.Status(), error_details_pb2.RetryInfo()
    try:
        status.ParseFromString(packed)
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR):
                found = error_details_pb2.ErrorInfo()
                detail.Unpack(found)
                if found.domain == _DOMAIN:
                    info = found
            elif detail.Unpack(retry):
                retry_delay = max(0.0, retry.retry_delay.ToTimedelta().total_seconds())
    except DecodeError:
        # Not the bridge's: something on the way put it there. The code and the text are what is left to go by.
        return error_details_pb2.ErrorInfo(), 0.0
    return info, retry_delay
