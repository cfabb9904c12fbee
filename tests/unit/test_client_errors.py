"""How statuses become the client's errors."""

import inspect
import re

import grpc
import pytest
from google.protobuf.any_pb2 import Any as PackedAny
from google.rpc import error_details_pb2, status_pb2

from llmbridge import client
from llmbridge.client import errors
from llmbridge.client.errors import ClientError, error_from_failure, error_from_rpc
from llmbridge.v1.error_reason_pb2 import ErrorReason
from llmbridge.v1.token_pb2 import FINISH_REASON_ERROR, Completion
from tests.support.faults import CODES, Fault

REASONS = [
    name.removeprefix("ERROR_REASON_")
    for name in ErrorReason.DESCRIPTOR.values_by_name
    if not name.endswith("_UNSPECIFIED")
]


def rpc_error(fault: Fault) -> grpc.aio.AioRpcError:
    trailers = grpc.aio.Metadata(*fault.trailers())
    return grpc.aio.AioRpcError(fault.status_code, grpc.aio.Metadata(), trailers, fault.message)


def translate(fault: Fault, *, own_deadline: bool = False) -> ClientError:
    return error_from_rpc(rpc_error(fault), own_deadline=own_deadline)


EXPECTED = {
    "INVALID_FIELD": client.InvalidRequest,
    "MALFORMED_REQUEST": client.InvalidRequest,
    "LIMIT_EXCEEDED": client.LimitExceeded,
    "SEQUENCE_GAP": client.SequenceGap,
    "FENCED": client.ProducerFenced,
    "COMPLETED": client.StreamCompleted,
    "SEQUENCE_CONFLICT": client.SequenceConflict,
    "RESTARTED": client.HistoryLost,
    "TRIMMED": client.HistoryLost,
    "LOST": client.HistoryLost,
    "REWRITTEN": client.HistoryLost,
    "EXPIRED": client.HistoryLost,
    "STREAM_NOT_FOUND": client.StreamNotFound,
    "STREAM_EXISTS": client.StreamExists,
    "GROUP_NOT_FOUND": client.GroupNotFound,
    "GROUP_SETTINGS_DIFFER": client.GroupSettingsDiffer,
    "CONNECTION_NOT_FOUND": client.ConnectionNotFound,
    "DISCONNECTED": client.Disconnected,
    "REDIS_UNAVAILABLE": client.Unavailable,
    "APPEND_OUTCOME_UNKNOWN": client.Unavailable,
    "DRAINING": client.Unavailable,
    "CONNECTION_IDLE": client.Unavailable,
    "WORKER_UNAVAILABLE": client.Unavailable,
    "INTERNAL": client.BridgeFailure,
}


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_of_the_contract_has_its_error(reason: str) -> None:
    error = translate(Fault(reason, message="because", metadata={"a": "b"}))
    assert type(error) is EXPECTED[reason]
    assert (error.reason, error.code, error.metadata) == (reason, CODES[reason], {"a": "b"})
    assert str(error) == "because"


@pytest.mark.parametrize("reason", REASONS)
def test_what_shares_a_call_fails_as_a_call_does(reason: str) -> None:
    fault = Fault(reason, message="because", metadata={"a": "b"}, retry_delay=0.5)
    alone, shared = translate(fault), error_from_failure(fault.failure())
    assert type(shared) is type(alone)
    assert vars(shared) == vars(alone)


def test_metadata_is_read() -> None:
    limit = translate(Fault("LIMIT_EXCEEDED", metadata={"limit": "max_tokens", "maximum": "5", "value": "7"}))
    assert isinstance(limit, client.LimitExceeded)
    assert (limit.limit, limit.maximum, limit.value) == ("max_tokens", 5, 7)
    gap = translate(Fault("SEQUENCE_GAP", metadata={"expected": "7", "received": "9"}))
    assert isinstance(gap, client.SequenceGap)
    assert (gap.expected, gap.received) == (7, 9)
    completed = translate(
        Fault("COMPLETED", metadata={"finish_reason": "FINISH_REASON_CANCELLED", "sealer": "SEALER_CANCEL"})
    )
    assert isinstance(completed, client.StreamCompleted)
    assert (completed.finish_reason, completed.sealer) == (client.FinishReason.CANCELLED, client.Sealer.CANCEL)
    fenced = translate(Fault("FENCED", metadata={"epoch": "3"}))
    assert isinstance(fenced, client.ProducerFenced)
    assert fenced.epoch == 3
    history = translate(Fault("TRIMMED", metadata={"earliest_cursor": "1-2-3"}))
    assert isinstance(history, client.HistoryLost)
    assert (history.reason, history.earliest_cursor) == ("TRIMMED", "1-2-3")
    conflict = translate(Fault("SEQUENCE_CONFLICT", metadata={"sequence": "4"}))
    assert isinstance(conflict, client.SequenceConflict)
    assert conflict.sequence == 4
    field = translate(Fault("INVALID_FIELD", metadata={"field": "stream.session_id"}))
    assert isinstance(field, client.InvalidRequest)
    assert field.field == "stream.session_id"
    failure = translate(Fault("INTERNAL", metadata={"incident": "5f"}))
    assert isinstance(failure, client.BridgeFailure)
    assert failure.incident == "5f"


def test_metadata_of_a_newer_bridge_does_not_break_the_error() -> None:
    completed = translate(Fault("COMPLETED", metadata={"finish_reason": "FINISH_REASON_BORED", "sealer": "?"}))
    assert isinstance(completed, client.StreamCompleted)
    assert completed.finish_reason is client.FinishReason.UNSPECIFIED
    assert completed.sealer is client.Sealer.UNSPECIFIED
    gap = translate(Fault("SEQUENCE_GAP", metadata={"expected": "many"}))
    assert isinstance(gap, client.SequenceGap)
    assert (gap.expected, gap.received) == (0, 0)


def test_retry_delay_is_read() -> None:
    assert translate(Fault("REDIS_UNAVAILABLE", retry_delay=1.25)).retry_delay == 1.25
    assert translate(Fault("REDIS_UNAVAILABLE", retry_delay=-1.0)).retry_delay == 0.0
    assert translate(Fault("REDIS_UNAVAILABLE")).retry_delay == 0.0


@pytest.mark.parametrize(
    ("fault", "unknown"),
    [
        (Fault("REDIS_UNAVAILABLE"), False),
        (Fault("DRAINING"), False),
        (Fault("LIMIT_EXCEEDED"), False),
        (Fault("APPEND_OUTCOME_UNKNOWN"), True),
        (Fault(code=grpc.StatusCode.UNAVAILABLE), True),
        (Fault(code=grpc.StatusCode.UNKNOWN, message="Stream removed"), True),
    ],
)
def test_only_the_bridge_can_say_that_nothing_was_stored(fault: Fault, unknown: bool) -> None:
    assert translate(fault).outcome_unknown is unknown


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(code=grpc.StatusCode.UNAVAILABLE), client.Unavailable),
        (Fault(code=grpc.StatusCode.UNKNOWN, message="Stream removed"), client.Unavailable),
        (Fault(code=grpc.StatusCode.INTERNAL, message="Internal error from Core"), client.Unavailable),
        (
            Fault(code=grpc.StatusCode.INTERNAL, message="Received RST_STREAM with error code 2"),
            client.Unavailable,
        ),
        (Fault(code=grpc.StatusCode.CANCELLED, message="CANCELLED"), client.Unavailable),
        (Fault(code=grpc.StatusCode.UNKNOWN, message="Unexpected <class 'ValueError'>"), client.BridgeFailure),
        (Fault(code=grpc.StatusCode.INTERNAL, message="Exception deserializing response!"), client.BridgeFailure),
        # The bridge's own word counts more than what its text looks like.
        (Fault("INTERNAL", message="rst_stream"), client.BridgeFailure),
        (Fault(code=grpc.StatusCode.DEADLINE_EXCEEDED), client.BridgeFailure),
        (Fault(code=grpc.StatusCode.UNIMPLEMENTED), client.BridgeFailure),
        # Reasons that a newer bridge may have.
        (Fault("NOT_NOW", code=grpc.StatusCode.UNAVAILABLE), client.Unavailable),
        (Fault("TOO_OLD", code=grpc.StatusCode.INVALID_ARGUMENT), client.InvalidRequest),
        (Fault("NO_IDEA", code=grpc.StatusCode.INTERNAL, message="goaway"), client.BridgeFailure),
    ],
)
def test_statuses_without_a_known_reason(fault: Fault, kind: type[ClientError]) -> None:
    assert type(translate(fault)) is kind


def test_passing_its_own_deadline_means_no_answer() -> None:
    fault = Fault(code=grpc.StatusCode.DEADLINE_EXCEEDED)
    error = translate(fault, own_deadline=True)
    assert isinstance(error, client.Unavailable)
    assert error.outcome_unknown


def test_details_of_others_are_not_taken_for_the_bridges() -> None:
    info = error_details_pb2.ErrorInfo(reason="ERROR_REASON_COMPLETED", domain="example.com")
    packed = PackedAny()
    packed.Pack(info)
    status = status_pb2.Status(details=[packed]).SerializeToString()
    for details in (status, b"\xff\xff\xff"):
        trailers = grpc.aio.Metadata(("grpc-status-details-bin", details))
        rpc = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailers, "down")
        error = error_from_rpc(rpc, own_deadline=False)
        assert type(error) is client.Unavailable
        assert error.reason == ""


def test_a_status_without_trailers_and_text() -> None:
    error = error_from_rpc(grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE), own_deadline=False)
    assert type(error) is client.Unavailable
    assert str(error) == "UNAVAILABLE"


def test_an_error_after_several_attempts_says_so() -> None:
    error = translate(Fault("REDIS_UNAVAILABLE", message="down"))
    error.attempts = 3
    assert str(error) == "down (after 3 attempts)"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"^    ([│ ]*)[├└]── (\w+)", errors.__doc__, re.MULTILINE)
    classes = {
        name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ClientError)
    }
    assert {name for _, name in drawn} | {"ClientError"} == set(classes)
    parent = "ClientError"
    for indent, name in drawn:
        base = parent if indent else "ClientError"
        assert classes[name].__bases__[0] is classes[base]
        parent = parent if indent else name


def test_all_errors_are_exported() -> None:
    exported = {name for name in client.__all__ if inspect.isclass(getattr(client, name))}
    assert {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, ClientError)} <= (
        exported
    )


def test_a_failed_response_tells_why() -> None:
    completion = Completion(finish_reason=FINISH_REASON_ERROR, error_message="out of memory")
    error = client.ResponseFailed(completion)
    assert str(error) == "out of memory"
    assert error.completion is completion
    assert str(client.ResponseFailed(Completion(finish_reason=FINISH_REASON_ERROR))) == "the generation failed"
