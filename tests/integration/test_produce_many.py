"""ProduceMany: each append has an outcome of its own, stored as Produce would store it, in its writer's order."""

from typing import Any

import grpc
import pytest

from llmbridge.log.appending import MAX_STREAMS_A_CALL
from llmbridge.v1.bridge_service_pb2 import (
    ProduceManyRequest,
    ProduceRequest,
    SubscribeRequest,
    WriterAppend,
    WriterStart,
)
from llmbridge.v1.token_pb2 import Completion, Role, Token
from tests.support.calls import STOP, produce, read_all, ref
from tests.support.running_bridge import RunningBridge
from tests.support.writers import Writers, append, id_of, refusal, start

INVALID, ABORTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED
PRECONDITION, EXHAUSTED = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_many_streams_over_one_call(bridge: RunningBridge) -> None:
    count = 2 * MAX_STREAMS_A_CALL + 10
    writers = Writers(bridge.bridge)
    streams = [ref(str(i), session=f"s{i % 7}") for i in range(count)]
    starts = tuple(start(i, stream) for i, stream in enumerate(streams))
    await writers.send(*(append(i, 1, "a", "b") for i in range(count)), starts=starts)
    await writers.send(*(append(i, 3, "c") for i in range(count)))
    await writers.send(*(append(i, 4, completion=STOP) for i in range(count)))
    receipts = await writers.settled()
    assert await writers.finish() is grpc.StatusCode.OK
    assert not any(receipt.HasField("failure") or receipt.duplicate for receipt in receipts.values())
    for i, stream in enumerate(streams):
        assert [receipts[id_of(i, first)].last_sequence for first in (1, 3, 4)] == [2, 3, 4]
        if i % 50 == 0:
            read = await read_all(bridge.bridge, stream)
            assert (read.texts, read.completion, read.cursor) == (
                ["a", "b", "c"],
                STOP,
                receipts[id_of(i, 4)].cursor,
            )
            # Each receipt's cursor is a place to read from.
            rest = await bridge.bridge.Subscribe(
                SubscribeRequest(stream=stream, after_cursor=receipts[id_of(i, 1)].cursor)
            ).read()
            assert rest.first_sequence == 3


async def test_a_writers_appends_are_carried_out_in_their_order(bridge: RunningBridge) -> None:
    writers = Writers(bridge.bridge)
    texts = [str(i) for i in range(3 * MAX_STREAMS_A_CALL)]
    await writers.send(*(append(1, i + 1, text) for i, text in enumerate(texts)), starts=(start(1, ref("r")),))
    await writers.send(append(1, len(texts) + 1, completion=STOP))
    receipts = await writers.settled()
    assert [receipt.last_sequence for receipt in receipts.values()] == list(range(1, len(texts) + 2))
    assert (await read_all(bridge.bridge, ref("r"))).texts == texts


async def test_numbers_that_the_bridge_assigns(bridge: RunningBridge) -> None:
    writers = Writers(bridge.bridge)
    assigned = [append(1, 0, text, id=10 + i) for i, text in enumerate("abc")]
    await writers.send(*assigned, starts=(start(1, ref("r")),))
    receipts = await writers.settled()
    assert [receipts[10 + i].last_sequence for i in range(3)] == [1, 2, 3]


async def test_every_way_to_be_refused_hurts_nobody_else(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("fenced"), "x", first=1, producer_epoch=5, producer_id="rival")
    await produce(bridge.bridge, ref("completed"), first=1, completion=STOP, producer_epoch=1, producer_id="q")
    await produce(bridge.bridge, ref("conflict"), "x", first=1, producer_epoch=1, producer_id="p")
    names = ("before", "gap", "fenced", "completed", "conflict", "empty", "long", "after")
    writers = Writers(bridge.bridge)
    await writers.send(
        append(0, 1, "a"),
        append(1, 3, "a"),
        append(2, 2, "a"),
        append(3, 2, "a"),
        append(4, 1, "?"),
        append(5, 1),
        append(6, 1, "x" * (bridge.settings.max_token_bytes + 1)),
        append(99, 1, "a"),
        append(7, 1, "a"),
        starts=tuple(start(i, ref(name)) for i, name in enumerate(names)),
    )
    receipts = await writers.settled()
    refused = {i: refusal(receipts[id_of(i, first)].failure) for i, first in ((1, 3), (2, 2), (3, 2), (4, 1), (5, 1))}
    assert refused == {
        1: (ABORTED, "SEQUENCE_GAP", {"expected": "1", "received": "3"}),
        2: (PRECONDITION, "FENCED", {"epoch": "5"}),
        3: (
            PRECONDITION,
            "COMPLETED",
            {"finish_reason": "FINISH_REASON_STOP", "sealer": "SEALER_PRODUCER"},
        ),
        4: (PRECONDITION, "SEQUENCE_CONFLICT", {"sequence": "1"}),
        5: (INVALID, "INVALID_FIELD", {"field": "tokens"}),
    }
    code, reason, metadata = refusal(receipts[id_of(6, 1)].failure)
    assert (code, reason, metadata["limit"]) == (EXHAUSTED, "LIMIT_EXCEEDED", "max_token_bytes")
    assert refusal(receipts[id_of(99, 1)].failure) == (INVALID, "INVALID_FIELD", {"field": "writer"})
    for i in (0, 7):
        assert receipts[id_of(i, 1)].last_sequence == 1
    for receipt in receipts.values():
        assert bool(receipt.cursor) is bool(receipt.last_sequence) is not receipt.HasField("failure")
    # A gap is mended by sending what is missing, on the same call.
    await writers.send(append(1, 1, "a", "b"), append(1, 3, "c", id=7))
    receipts = await writers.settled()
    assert receipts[7].last_sequence == 3
    assert not writers.ends, "a refused append is told by its receipt"


async def test_a_limit_holds_for_each_append_and_not_for_the_message(bridge: RunningBridge) -> None:
    limit = bridge.settings.max_request_bytes
    piece = "x" * (bridge.settings.max_token_bytes - 100)
    fits = [piece] * (limit // len(piece) - 1)
    writers = Writers(bridge.bridge)
    await writers.send(
        *(append(i, 1, *fits) for i in range(8)),
        append(8, 1, *fits, piece, piece),
        append(9, 1, *["x"] * (bridge.settings.max_tokens_per_request + 1)),
        starts=tuple(start(i, ref(str(i))) for i in range(10)),
    )
    receipts = await writers.settled()
    assert [receipts[id_of(i, 1)].last_sequence for i in range(8)] == [len(fits)] * 8
    limits = [refusal(receipts[id_of(i, 1)].failure)[2]["limit"] for i in (8, 9)]
    assert limits == ["max_request_bytes", "max_tokens_per_request"]


async def test_a_broken_call_is_repeated_on_another_and_stores_once(bridge: RunningBridge) -> None:
    appends = [append(i, first, "a", "b") for first in (1, 3) for i in range(20)]
    starts = tuple(start(i, ref(str(i))) for i in range(20))
    first = Writers(bridge.bridge)
    await first.send(*appends[:30], starts=starts)
    await first.settled()
    first.call.cancel()
    again = Writers(bridge.bridge)
    await again.send(*appends, *(append(i, 5, completion=STOP) for i in range(20)), starts=starts)
    receipts = await again.settled()
    assert [receipts[one.append_id].duplicate for one in appends] == [True] * 30 + [False] * 10
    for i in range(20):
        assert (await read_all(bridge.bridge, ref(str(i)))).text == "abab"


async def test_what_is_stored_in_part_is_completed_and_what_follows_stays_behind_it(bridge: RunningBridge) -> None:
    by: dict[str, Any] = {"producer_epoch": 1, "producer_id": "p"}
    await produce(bridge.bridge, ref("r"), "a", "b", first=1, **by)
    await produce(bridge.bridge, ref("other"), "a", first=1, **by)
    writers = Writers(bridge.bridge)
    await writers.send(
        append(1, 1, "a", "b", "c"),
        append(2, 1, "a"),
        append(1, 4, "d"),
        append(3, 2, "?"),
        append(1, 5, "e", completion=STOP),
        append(2, 2, "b"),
        starts=(start(1, ref("r")), start(2, ref("other")), start(3, ref("third"))),
    )
    receipts = await writers.settled()
    ours = [receipts[id_of(1, first)] for first in (1, 4, 5)]
    assert [(one.last_sequence, one.duplicate) for one in ours] == [(3, False), (4, False), (6, False)]
    assert [receipts[id_of(2, first)].duplicate for first in (1, 2)] == [True, False]
    assert refusal(receipts[id_of(3, 2)].failure)[1] == "SEQUENCE_GAP"
    assert (await read_all(bridge.bridge, ref("r"))).text == "abcde"


async def test_the_same_bytes_are_stored_as_by_produce(bridge: RunningBridge) -> None:
    tokens = [
        Token(json='{"a":1}', role=Role.ROLE_TOOL, attributes={"b": "1", "a": "2", "c": "3"}),
        Token(text="", timestamp_ms=5),
    ]
    completion = Completion(finish_reason=STOP.finish_reason, error_message="x")
    by: dict[str, Any] = {"producer_epoch": 1, "producer_id": "p"}
    await produce(bridge.bridge, ref("r"), "plain", first=1, **by)
    writers = Writers(bridge.bridge)
    whole = WriterAppend(writer=1, first_sequence=2, tokens=tokens, completion=completion, append_id=5)
    # What this version does not know, in the append and in a token, is dropped.
    unknown = b"\xf2\x06\x03abc"
    twisted = WriterAppend.FromString(whole.SerializeToString() + unknown)
    twisted.tokens[1].CopyFrom(Token.FromString(tokens[1].SerializeToString() + unknown))
    writers.sent |= {1, 5}
    message = ProduceManyRequest(starts=[start(1, ref("r"))], appends=[append(1, 1, "plain", id=1), twisted])
    await writers.call.write(message)
    receipts = await writers.settled()
    assert receipts[1].duplicate, "other bytes would be a conflict"
    assert not receipts[5].HasField("failure")
    answer = await bridge.bridge.Produce(_as_request(whole, **by), timeout=10)
    assert answer.duplicate
    # The cursor vouches for the bytes: another stream with the same content has the same checksum.
    await produce(bridge.bridge, ref("twin"), "plain", first=1, **by)
    request = _as_request(whole, **by)
    request.stream.CopyFrom(ref("twin"))
    twin = await bridge.bridge.Produce(request, timeout=10)
    assert twin.cursor.rsplit("-", 1)[1] == receipts[5].cursor.rsplit("-", 1)[1]


def _as_request(one: WriterAppend, **fields: Any) -> ProduceRequest:
    return ProduceRequest(
        stream=ref("r"),
        tokens=one.tokens,
        completion=one.completion,
        first_sequence=one.first_sequence,
        **fields,
    )


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (start(1, ref("r", session="")), "stream.session_id"),
        (start(1, ref("r", model="a\nb")), "stream.model_id"),
        (start(1, ref("r"), epoch=2**53), "producer_epoch"),
        (start(1, ref("r"), producer_id="x" * 65), "producer_id"),
    ],
)
async def test_a_wrong_start_is_told_at_once_and_for_each_append(
    bridge: RunningBridge, wrong: WriterStart, field: str
) -> None:
    expected = (INVALID, "INVALID_FIELD", {"field": field})
    writers = Writers(bridge.bridge)
    await writers.send(starts=(wrong, start(2, ref("right"))))
    assert await writers.told() == [(1, expected)]
    await writers.send(append(1, 1, "a"), append(2, 1, "a"), append(1, 2, "b"))
    receipts = await writers.settled()
    assert [refusal(receipts[id_of(1, first)].failure) for first in (1, 2)] == [expected] * 2
    assert receipts[id_of(2, 1)].last_sequence == 1
    # The number is free again once it was stopped.
    await writers.send(stops=(1,))
    await writers.send(append(1, 1, "a", id=3), starts=(start(1, ref("r")),))
    assert (await writers.settled())[3].last_sequence == 1
    assert await writers.finish() is grpc.StatusCode.OK


async def test_a_number_is_free_after_its_stop_which_is_looked_at_last(bridge: RunningBridge) -> None:
    writers = Writers(bridge.bridge)
    await writers.send(append(1, 1, "a"), starts=(start(1, ref("one")),), stops=(1, 77))
    await writers.send(append(1, 1, "b", id=2), starts=(start(1, ref("two")),))
    receipts = await writers.settled()
    assert not any(receipt.HasField("failure") for receipt in receipts.values())
    for name, text in (("one", "a"), ("two", "b")):
        message = await bridge.bridge.Subscribe(SubscribeRequest(stream=ref(name))).read()
        assert [token.text for token in message.tokens] == [text]


async def test_writers_of_one_stream_on_one_call_fence_each_other(bridge: RunningBridge) -> None:
    writers = Writers(bridge.bridge)
    starts = (start(1, ref("r"), epoch=1), start(2, ref("r"), epoch=2))
    await writers.send(append(1, 1, "a"), append(2, 2, "b"), append(1, 3, "?"), starts=starts)
    receipts = await writers.settled()
    assert receipts[id_of(2, 2)].last_sequence == 2
    assert refusal(receipts[id_of(1, 3)].failure) == (PRECONDITION, "FENCED", {"epoch": "2"})
