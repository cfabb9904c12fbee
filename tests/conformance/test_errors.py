"""docs/protocol.md, "Errors": what every error carries, and bad input, which is told by the name of its field."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1 import connection_service_pb2 as connection_pb
from llmbridge.v1 import group_service_pb2 as group_pb
from llmbridge.v1 import stream_admin_service_pb2 as admin_pb
from llmbridge.v1.error_reason_pb2 import ErrorReason
from llmbridge.v1.lifecycle_service_pb2 import WatchStreamsRequest
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import ROLE_ASSISTANT, Completion, Token
from tests.conformance.caller import STOP, Caller, new_stream, refused
from tests.conformance.transport import Refusal

TABLE = {
    "INVALID_ARGUMENT": ["INVALID_FIELD", "MALFORMED_REQUEST"],
    "RESOURCE_EXHAUSTED": ["LIMIT_EXCEEDED"],
    "ABORTED": ["SEQUENCE_GAP", "DISCONNECTED"],
    "FAILED_PRECONDITION": ["FENCED", "COMPLETED", "SEQUENCE_CONFLICT", "GROUP_SETTINGS_DIFFER"],
    "OUT_OF_RANGE": ["RESTARTED", "TRIMMED", "LOST", "REWRITTEN", "EXPIRED"],
    "NOT_FOUND": ["STREAM_NOT_FOUND", "GROUP_NOT_FOUND", "CONNECTION_NOT_FOUND"],
    "ALREADY_EXISTS": ["STREAM_EXISTS"],
    "UNAVAILABLE": ["REDIS_UNAVAILABLE", "APPEND_OUTCOME_UNKNOWN", "DRAINING", "CONNECTION_IDLE", "WORKER_UNAVAILABLE"],
    "INTERNAL": ["INTERNAL"],
}
SOME = new_stream()
HI = [Token(text="hi")]
NAMES = {"session_id": SOME.session_id, "model_id": "m", "response_id": "r"}


def cases_of_errors() -> dict[str, Callable[[Caller, StreamRef], Awaitable[Any]]]:
    """How to cause each error that a request alone can cause; LOST, REWRITTEN and UNAVAILABLE have cases elsewhere."""

    async def after(caller: Caller, stream: StreamRef, *, anew: bool) -> None:
        cursor = (await caller.produce(stream, "a", first=1)).cursor
        await caller.delete(stream)
        if anew:
            await caller.produce(stream, "b", first=1)
        await (await caller.subscribe(stream, wait=False, after_cursor=cursor)).call.next()

    async def trimmed(caller: Caller, stream: StreamRef) -> None:
        await caller.produce(stream, "a", first=1)
        await caller.produce(stream, "b", first=2)
        await caller.trim(stream, keep_tokens=1)
        await (await caller.subscribe(stream, wait=False)).call.next()

    async def conflict(caller: Caller, stream: StreamRef) -> None:
        await caller.produce(stream, "a", first=1)
        await caller.produce(stream, "b", first=1)

    async def fenced(caller: Caller, stream: StreamRef) -> None:
        await caller.produce(stream, "a", first=1, epoch=1)
        await caller.produce(stream, "b", first=2)

    async def completed(caller: Caller, stream: StreamRef) -> None:
        await caller.cancel(stream)
        await caller.produce(stream, "a", first=1)

    async def exists(caller: Caller, stream: StreamRef) -> None:
        await caller.create(stream)
        await caller.create(stream)

    async def differ(caller: Caller, stream: StreamRef) -> None:
        await caller.produce(stream, "a", first=1)
        await (await caller.join(stream, max_deliveries=2)).message()
        await (await caller.join(stream, wait=False, max_deliveries=3)).message()

    return {
        "INVALID_FIELD": lambda caller, stream: caller.produce(stream),
        "MALFORMED_REQUEST": lambda caller, _: caller.call_with_garbage(),
        "LIMIT_EXCEEDED": lambda caller, stream: caller.create(stream, retention_ms=2**50),
        "SEQUENCE_GAP": lambda caller, stream: caller.produce(stream, "a", first=2),
        "FENCED": fenced,
        "COMPLETED": completed,
        "SEQUENCE_CONFLICT": conflict,
        "GROUP_SETTINGS_DIFFER": differ,
        "RESTARTED": lambda caller, stream: after(caller, stream, anew=True),
        "EXPIRED": lambda caller, stream: after(caller, stream, anew=False),
        "TRIMMED": trimmed,
        "STREAM_NOT_FOUND": lambda caller, stream: caller.info(stream),
        "GROUP_NOT_FOUND": lambda caller, stream: caller.group(group_pb.GroupRef(stream=stream, name="g")),
        "CONNECTION_NOT_FOUND": lambda caller, _: caller.call(
            connection_pb.DisconnectConnectionRequest(connection_id="nobody")
        ),
        "STREAM_EXISTS": exists,
    }


METADATA = {
    "INVALID_FIELD": {"field"},
    "MALFORMED_REQUEST": {"field"},
    "LIMIT_EXCEEDED": {"limit", "maximum", "value"},
    "SEQUENCE_GAP": {"expected", "received"},
    "FENCED": {"epoch"},
    "COMPLETED": {"finish_reason", "sealer"},
    "SEQUENCE_CONFLICT": {"sequence"},
    "GROUP_SETTINGS_DIFFER": {"group", "ack_deadline_ms", "max_deliveries"},
    "RESTARTED": {"earliest_cursor"},
    "EXPIRED": {"earliest_cursor"},
    "TRIMMED": {"earliest_cursor"},
    "STREAM_NOT_FOUND": {"session_id", "model_id", "response_id"},
    "GROUP_NOT_FOUND": {"group"},
    "CONNECTION_NOT_FOUND": {"connection_id"},
    "STREAM_EXISTS": {"session_id", "model_id", "response_id"},
}


@pytest.mark.parametrize("reason", cases_of_errors())
async def test_every_error_has_an_error_info_of_domain_llmbridge_with_reason_and_metadata(
    bridge: Caller, stream: StreamRef, reason: str
) -> None:
    refusal = await refused(cases_of_errors()[reason](bridge, stream))
    assert (refusal.domain, refusal.reason) == ("llmbridge", reason)
    assert reason in TABLE[refusal.code]
    assert set(refusal.metadata) == METADATA[reason]
    assert refusal.message
    # A retry helps with none of these.
    assert refusal.retry_ms is None


def test_the_table_of_statuses_has_every_reason() -> None:
    known = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert sorted(reason for reasons in TABLE.values() for reason in reasons) == sorted(known)


def _ref(**parts: str) -> StreamRef:
    return StreamRef(**{**NAMES, **parts})


BAD_NAMES = [
    (StreamRef(), "session_id"),
    (_ref(session_id=""), "session_id"),
    (_ref(model_id=""), "model_id"),
    (_ref(session_id="s" * 1_025), "session_id"),
    (_ref(model_id="é" * 513), "model_id"),
    (_ref(response_id="r" * 1_025), "response_id"),
    (_ref(session_id="a\0b"), "session_id"),
    (_ref(model_id="a\nb"), "model_id"),
    (_ref(response_id="a\x7f"), "response_id"),
    (_ref(response_id="a\x85"), "response_id"),
]


async def send(caller: Caller, request: Message) -> Refusal:
    """Send a request of whatever method, which must be refused."""
    if isinstance(request, pb.SubscribeRequest):
        return await refused(caller.reading(request).next())
    if isinstance(request, WatchStreamsRequest):
        return await refused(caller.watching(request).next())
    return await refused(caller.call(request))


@pytest.mark.parametrize(("stream", "part"), BAD_NAMES, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_part_of_a_name_that_is_too_long_empty_or_has_a_control_character_is_named_by_every_method(
    bridge: Caller, stream: StreamRef, part: str
) -> None:
    for request in (
        pb.ProduceRequest(stream=stream, tokens=HI),
        pb.SubscribeRequest(stream=stream),
        pb.CancelRequest(stream=stream),
        pb.KeepAliveRequest(stream=stream),
        admin_pb.CreateStreamRequest(stream=stream),
        admin_pb.GetStreamRequest(stream=stream),
        admin_pb.TrimStreamRequest(stream=stream, keep_tokens=1),
        admin_pb.DeleteStreamRequest(stream=stream),
        group_pb.GetGroupRequest(group=group_pb.GroupRef(stream=stream, name="g")),
    ):
        refusal = await send(bridge, request)
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert refusal.metadata["field"].endswith(f"stream.{part}")
        assert refusal.metadata["field"] in refusal.message


def _group(**fields: Any) -> pb.SubscribeRequest:
    return pb.SubscribeRequest(stream=SOME, group=pb.GroupMembership(**fields))


GROUP = group_pb.GroupRef(stream=SOME, name="g")
UNKNOWN: Any = 99
BAD_FIELDS: list[tuple[Message, str]] = [
    (pb.ProduceRequest(stream=SOME), "tokens"),
    (pb.ProduceRequest(stream=SOME, tokens=[Token(text="a"), Token()]), "tokens[1].content"),
    (pb.ProduceRequest(stream=SOME, tokens=[Token(role=ROLE_ASSISTANT)]), "tokens[0].content"),
    (pb.ProduceRequest(stream=SOME, tokens=[Token(text="a", role=UNKNOWN)]), "tokens[0].role"),
    (pb.ProduceRequest(stream=SOME, tokens=[Token(json="{")]), "tokens[0].json"),
    (pb.ProduceRequest(stream=SOME, tokens=[Token(json="{} {}")]), "tokens[0].json"),
    (pb.ProduceRequest(stream=SOME, completion=Completion()), "completion.finish_reason"),
    (pb.ProduceRequest(stream=SOME, completion=Completion(finish_reason=UNKNOWN)), "completion.finish_reason"),
    (pb.ProduceRequest(stream=SOME, tokens=HI, first_sequence=2**53), "first_sequence"),
    (pb.ProduceRequest(stream=SOME, tokens=HI, completion=STOP, first_sequence=2**53 - 1), "first_sequence"),
    (pb.ProduceRequest(stream=SOME, tokens=HI, producer_epoch=2**53), "producer_epoch"),
    (pb.ProduceRequest(stream=SOME, tokens=HI, producer_id="p" * 65), "producer_id"),
    (pb.KeepAliveRequest(stream=SOME, producer_epoch=2**53), "producer_epoch"),
    (pb.KeepAliveRequest(stream=SOME, producer_id="é" * 33), "producer_id"),
    (pb.CancelRequest(stream=SOME, reason="é" * 513), "reason"),
    (pb.SubscribeRequest(stream=SOME, position=UNKNOWN), "position"),
    (pb.SubscribeRequest(stream=SOME, after_cursor="what is this"), "after_cursor"),
    (pb.SubscribeRequest(stream=SOME, after_cursor="9" * 2_000), "after_cursor"),
    (_group(name="a\n"), "group.name"),
    (_group(consumer="a\n"), "group.consumer"),
    (_group(acknowledgement=UNKNOWN), "group.acknowledgement"),
    (_group(max_outstanding_tokens=1_000_001), "group.max_outstanding_tokens"),
    (_group(max_outstanding_bytes=67_108_865), "group.max_outstanding_bytes"),
    (_group(ack_deadline_ms=99), "group.ack_deadline_ms"),
    (_group(ack_deadline_ms=86_400_001), "group.ack_deadline_ms"),
    (_group(max_deliveries=1_001), "group.max_deliveries"),
    (WatchStreamsRequest(group="a\n"), "group"),
    (WatchStreamsRequest(consumer="a\n"), "consumer"),
    (WatchStreamsRequest(max_outstanding_events=10_001), "max_outstanding_events"),
    (WatchStreamsRequest(ack_deadline_ms=99), "ack_deadline_ms"),
    (WatchStreamsRequest(max_deliveries=1_001), "max_deliveries"),
    (admin_pb.CreateStreamRequest(stream=SOME, retention_ms=999), "retention_ms"),
    (admin_pb.CreateStreamRequest(stream=SOME, max_length=2**53), "max_length"),
    (admin_pb.TrimStreamRequest(stream=SOME), "until"),
    (admin_pb.TrimStreamRequest(stream=SOME, keep_tokens=0), "until"),
    (admin_pb.TrimStreamRequest(stream=SOME, through_cursor="what is this"), "through_cursor"),
    (admin_pb.ListStreamsRequest(), "scope"),
    (admin_pb.ListStreamsRequest(session_id=""), "session_id"),
    (admin_pb.ListStreamsRequest(session_id="s", page_size=1_001), "page_size"),
    (admin_pb.ListStreamsRequest(session_id="s", page_token="what is this"), "page_token"),
    (group_pb.GetGroupRequest(group=group_pb.GroupRef(name="g")), "group.log"),
    (group_pb.ListGroupsRequest(), "log"),
    (group_pb.AcknowledgeRequest(group=GROUP, ack_ids=["1"] * 1_001), "ack_ids"),
    (group_pb.RejectRequest(group=GROUP, reason="r" * 1_025), "reason"),
    (group_pb.RejectRequest(group=GROUP, disposition=UNKNOWN), "disposition"),
    (group_pb.ListDeadLettersRequest(page_size=1_001), "page_size"),
    (group_pb.ListDeadLettersRequest(page_token="what is this"), "page_token"),
    (group_pb.RedriveDeadLettersRequest(ids=["what is this"]), "ids[0]"),
    (group_pb.DeleteDeadLettersRequest(ids=["1"] * 1_001), "ids"),
    (connection_pb.ListConnectionsRequest(page_size=1_001), "page_size"),
    (connection_pb.ListConnectionsRequest(page_token="what is this"), "page_token"),
]


@pytest.mark.parametrize(
    ("request_", "field"), BAD_FIELDS, ids=[f"{type(request).__name__} {field}" for request, field in BAD_FIELDS]
)
async def test_bad_input_is_a_clear_error_that_names_the_field(bridge: Caller, request_: Message, field: str) -> None:
    refusal = await send(bridge, request_)
    assert refusal.short == ("INVALID_ARGUMENT", "INVALID_FIELD", {"field": field})
    assert field in refusal.message
    assert refusal.retry_ms is None
    absent = await refused(bridge.info(SOME))
    assert absent.short == ("NOT_FOUND", "STREAM_NOT_FOUND", NAMES), "something was stored"
