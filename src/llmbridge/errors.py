"""Everything that can go wrong, as one tree. Knows no gRPC: `rpc.status` maps each to a status.

    BridgeError
    ├── InvalidRequest            the request can't be served as it is
    │   ├── InvalidField
    │   ├── MalformedRequest
    │   └── LimitExceeded
    ├── AppendRefused             the log's rules say no (see sequencing)
    │   ├── SequenceGap
    │   ├── Fenced
    │   ├── Completed
    │   └── SequenceConflict
    ├── HistoryGone               records between a reader and the present are gone
    │   ├── Restarted
    │   ├── Trimmed
    │   ├── Lost
    │   ├── Rewritten
    │   └── Expired
    ├── StreamNotFound
    ├── StreamExists
    ├── GroupNotFound
    ├── GroupSettingsDiffer
    ├── ConnectionNotFound
    ├── Disconnected
    └── Unavailable               trying again helps
        ├── RedisUnavailable
        ├── AppendOutcomeUnknown
        ├── Draining
        ├── WorkerUnavailable
        └── ConnectionIdle

`reason` is the name in the proto's ErrorReason without its prefix; `metadata` is what error_reason.proto documents.
"""

from typing import ClassVar

from llmbridge.model.names import StreamName


class BridgeError(Exception):
    """An error with a documented reason that reaches the client."""

    reason: ClassVar[str]

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidRequest(BridgeError):
    """The request can't be served as it is; nothing was stored."""


class InvalidField(InvalidRequest):
    """A field is missing, malformed or out of range."""

    reason = "INVALID_FIELD"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}", field=field)


class MalformedRequest(InvalidRequest):
    """The bytes are not the message that the method takes."""

    reason = "MALFORMED_REQUEST"

    def __init__(self, message_type: str) -> None:
        super().__init__(
            f"the request is not a valid {message_type} message: check that client and bridge use the same proto files",
            field=message_type,
        )


class LimitExceeded(InvalidRequest):
    """A limit (named like its setting) would be exceeded."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, limit: str, maximum: int, value: int, advice: str) -> None:
        super().__init__(
            f"{limit} is {maximum}, this would be {value}: {advice}",
            limit=limit,
            maximum=str(maximum),
            value=str(value),
        )


class AppendRefused(BridgeError):
    """The log's rules do not allow this append; nothing was stored."""


class SequenceGap(AppendRefused):
    """Records before the request's first are missing."""

    reason = "SEQUENCE_GAP"

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(
            f"first_sequence is {received}, the stream needs {expected} next: send from {expected} on",
            expected=str(expected),
            received=str(received),
        )


class Fenced(AppendRefused):
    """Another producer took the stream over."""

    reason = "FENCED"

    def __init__(self, epoch: int) -> None:
        super().__init__(
            f"another producer has the stream, with epoch {epoch}: stop, or take over with a higher epoch",
            epoch=str(epoch),
        )


class Completed(AppendRefused):
    """The stream is sealed."""

    reason = "COMPLETED"

    def __init__(self, finish_reason: str, sealer: str) -> None:
        super().__init__(
            f"the stream is complete (finish reason {finish_reason}, sealed by {sealer}): stop generating",
            finish_reason=f"FINISH_REASON_{finish_reason.upper()}",
            sealer=f"SEALER_{sealer.upper()}",
        )


class SequenceConflict(AppendRefused):
    """The request's numbers are stored already with other content."""

    reason = "SEQUENCE_CONFLICT"

    def __init__(self, sequence: int) -> None:
        super().__init__(
            f"sequence {sequence} is stored already with other content: the producer used a number twice",
            sequence=str(sequence),
        )


class HistoryGone(BridgeError):
    """Records between the reader's place and the present are gone; never passed over in silence."""

    because: ClassVar[str]

    def __init__(self, earliest_cursor: str) -> None:
        super().__init__(
            f"{self.because}: nothing can be delivered without a hole; "
            + (
                f"go on from the earliest that is left with after_cursor {earliest_cursor}"
                if earliest_cursor
                else "nothing is left of it"
            ),
            earliest_cursor=earliest_cursor,
        )


class Restarted(HistoryGone):
    """The stream was deleted or expired and begun anew."""

    reason = "RESTARTED"
    because = "the cursor is of an earlier stream of this name"


class Trimmed(HistoryGone):
    """The next records were trimmed away."""

    reason = "TRIMMED"
    because = "the records after the cursor were trimmed away"


class Lost(HistoryGone):
    """The log ends before the cursor."""

    reason = "LOST"
    because = "the log ends before the cursor, Redis lost its tail"


class Rewritten(HistoryGone):
    """The log has another record at the cursor."""

    reason = "REWRITTEN"
    because = "the log has another record at the cursor, Redis lost its tail and it was written anew"


class Expired(HistoryGone):
    """The stream is gone."""

    reason = "EXPIRED"
    because = "the stream expired, was deleted, or was lost with Redis"

    def __init__(self) -> None:
        super().__init__("")


class _AboutStream(BridgeError):
    problem: ClassVar[str]

    def __init__(self, name: StreamName) -> None:
        super().__init__(
            f"{self.problem}: session {name.session_id!r}, model {name.model_id!r}, response {name.response_id!r}",
            session_id=name.session_id,
            model_id=name.model_id,
            response_id=name.response_id,
        )


class StreamNotFound(_AboutStream):
    """There is no stream of that name."""

    reason = "STREAM_NOT_FOUND"
    problem = "there is no such stream (never created, expired or deleted)"


class StreamExists(_AboutStream):
    """There is a stream of that name."""

    reason = "STREAM_EXISTS"
    problem = "there is such a stream already"


class GroupNotFound(BridgeError):
    """There is no consumer group of that name."""

    reason = "GROUP_NOT_FOUND"

    def __init__(self, group: str) -> None:
        super().__init__(
            f"there is no group {group!r} (never made, deleted, or gone with its stream): its first member makes it",
            group=group,
        )


class GroupSettingsDiffer(BridgeError):
    """The group exists with other settings."""

    reason = "GROUP_SETTINGS_DIFFER"

    def __init__(self, group: str, ack_deadline_ms: int, max_deliveries: int) -> None:
        super().__init__(
            f"group {group!r} has ack_deadline_ms {ack_deadline_ms} and max_deliveries {max_deliveries}: give these, "
            "or 0 to take them as they are",
            group=group,
            ack_deadline_ms=str(ack_deadline_ms),
            max_deliveries=str(max_deliveries),
        )


class ConnectionNotFound(BridgeError):
    """This process has no connection of that id."""

    reason = "CONNECTION_NOT_FOUND"

    def __init__(self, connection_id: str) -> None:
        super().__init__(
            f"there is no connection {connection_id!r} here: it ended, or is at another instance",
            connection_id=connection_id,
        )


class Disconnected(BridgeError):
    """An operator ended the call."""

    reason = "DISCONNECTED"

    def __init__(self, cursor: str) -> None:
        super().__init__("an operator ended this call", cursor=cursor)


class Unavailable(BridgeError):
    """Trying again helps, after `retry_after_ms`."""

    retry_after_ms: int = 500


class RedisUnavailable(Unavailable):
    """Redis can't be reached or can't serve at present; nothing was stored."""

    reason = "REDIS_UNAVAILABLE"

    def __init__(self, detail: str) -> None:
        super().__init__(f"Redis is unavailable ({detail}); nothing was stored: try again")


class AppendOutcomeUnknown(Unavailable):
    """A write may have been carried out or not, or may not last: the connection failed, or replicas were too late."""

    reason = "APPEND_OUTCOME_UNKNOWN"
    retry_after_ms = 100

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}: the write may be stored or not; send the same request again with the same sequence numbers"
        )


class Draining(Unavailable):
    """This bridge is shutting down."""

    reason = "DRAINING"
    retry_after_ms = 100

    def __init__(self, cursor: str | None = None) -> None:
        super().__init__(
            "this bridge is shutting down: go on at another one",
            **({} if cursor is None else {"cursor": cursor}),
        )
        self.cursor = cursor


class WorkerUnavailable(Unavailable):
    """Another worker of this bridge, which has what was asked about, does not answer."""

    reason = "WORKER_UNAVAILABLE"

    def __init__(self, worker: int) -> None:
        super().__init__(f"worker {worker} of this bridge does not answer", worker=str(worker))


class ConnectionIdle(Unavailable):
    """The client took nothing for too long."""

    reason = "CONNECTION_IDLE"

    def __init__(self) -> None:
        super().__init__("nothing was taken for too long, the bridge let go of the call: go on from the last cursor")
