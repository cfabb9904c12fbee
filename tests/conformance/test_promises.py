"""docs/protocol.md, "The promises", by their numbers. What each means in detail is in the other modules."""

import asyncio
from typing import Any

import pytest

from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1.stream_pb2 import SEALER_CANCEL, SEALER_LOST, SEALER_PRODUCER, StreamRef
from llmbridge.v1.token_pb2 import FINISH_REASON_ERROR
from tests.conformance.caller import STOP, Caller, refused
from tests.conformance.conftest import Doomed, Nervous
from tests.conformance.transport import CallFailed


async def test_1_stored_means_stored(bridge: Caller, stream: StreamRef) -> None:
    for first, texts in ((1, ["a"]), (2, ["b", "c", "d"]), (5, ["e", "f"])):
        answer = await bridge.produce(stream, *texts, first=first)
        assert answer.last_sequence == first + len(texts) - 1
        # A reader that comes right after the answer has all of it at once.
        reader = await (await bridge.subscribe(stream)).through(answer.last_sequence)
        assert reader.text == "abcdef"[: answer.last_sequence]
        await reader.leave()


async def test_1_stored_means_stored_also_when_redis_is_killed_with_appendfsync_always(
    nervous: Nervous, stream: StreamRef
) -> None:
    bridge = nervous.bridge
    for i in range(20):
        await bridge.produce_surely(stream, str(i), first=i + 1)
    nervous.redis.kill()
    nervous.redis.start()
    await bridge.produce_surely(stream, first=21, end=STOP)
    assert (await bridge.read_all(stream)).texts == [str(i) for i in range(20)]


async def test_2_a_retry_is_exact_at_any_instance(bridge: Caller, second: Caller, stream: StreamRef) -> None:
    plan = [(1, ["a", "b"]), (3, ["c"]), (4, ["d", "e", "f"])]
    answers = [await bridge.produce(stream, *texts, first=first, by="p") for first, texts in plan]
    for caller in (second, bridge, second):
        for (first, texts), before in zip(plan, answers, strict=True):
            again = await caller.produce(stream, *texts, first=first, by="p")
            assert again.duplicate
            assert (again.cursor, again.last_sequence) == (before.cursor, before.last_sequence)
    await second.produce(stream, first=7, end=STOP, by="p")
    assert (await bridge.read_all(stream)).texts == list("abcdef")


async def test_2_a_retry_is_exact_of_many_requests_at_once(bridge: Caller, stream: StreamRef) -> None:
    await asyncio.gather(*(bridge.produce(stream, "a", "b", first=1, end=STOP, by="p") for _ in range(30)))
    assert (await bridge.read_all(stream)).texts == ["a", "b"]


async def test_3_one_producer_at_a_time(bridge: Caller, stream: StreamRef) -> None:
    await bridge.produce(stream, "a", first=1, epoch=1, by="old")
    await bridge.produce(stream, "b", first=2, epoch=2, by="new")
    for first, texts in ((3, ["x"]), (2, ["x"]), (1, ["a"]), (0, ["x"])):
        refusal = await refused(bridge.produce(stream, *texts, first=first, epoch=1, by="old"))
        assert refusal.short == ("FAILED_PRECONDITION", "FENCED", {"epoch": "2"})
    await bridge.produce(stream, first=3, end=STOP, epoch=2, by="new")
    assert (await bridge.read_all(stream)).text == "ab"


async def test_3_one_producer_at_a_time_also_for_what_was_already_on_its_way(
    bridge: Caller, second: Caller, stream: StreamRef
) -> None:
    await bridge.produce(stream, "o", first=1, epoch=1)

    async def go_on() -> str:
        while True:
            try:
                await bridge.produce(stream, "o", epoch=1)
            except CallFailed as failed:
                return failed.refusal.reason

    writers = [asyncio.create_task(go_on()) for _ in range(8)]
    reader = await (await second.subscribe(stream)).through(1)
    takeover = await second.produce(stream, "N", epoch=2)
    assert await asyncio.gather(*writers) == ["FENCED"] * 8
    await second.produce(stream, "N", first=takeover.last_sequence + 1, end=STOP, epoch=2)
    text = (await reader.to_the_end()).text
    assert text == "o" * (takeover.last_sequence - 1) + "NN"


async def test_4_every_reader_gets_every_record_once_in_order_with_an_end(
    bridge: Caller, second: Caller, stream: StreamRef
) -> None:
    async def write() -> None:
        for i in range(0, 60, 3):
            await (bridge if i % 2 else second).produce(stream, *(f"{n}," for n in range(i, i + 3)), first=i + 1)
        await bridge.produce(stream, first=61, end=STOP)

    readers = [await caller.subscribe(stream) for caller in (bridge, second) * 3]
    await asyncio.gather(write(), *(reader.to_the_end() for reader in readers))
    readers += [await caller.read_all(stream) for caller in (bridge, second)]
    cursors = [cursor for cursor in readers[0].cursors.items() if cursor[0] < 61]
    for place, cursor in cursors:
        late = await second.read_all(stream, last=place, after_cursor=cursor)
        assert late.texts == [f"{n}," for n in range(place, 60)]
    # That nothing is missing, comes twice or follows the end is checked message by message.
    assert [(reader.text, reader.completion) for reader in readers] == [
        ("".join(f"{n}," for n in range(60)), STOP)
    ] * len(readers)


async def test_5_lost_history_is_an_error_never_a_hole(bridge: Caller, stream: StreamRef) -> None:
    cursors = [(await bridge.produce(stream, text, first=i + 1)).cursor for i, text in enumerate("abcd")]
    await bridge.trim(stream, keep_tokens=1)
    starts: list[dict[str, Any]] = [
        {},
        {"after_cursor": cursors[0]},
        {"after_cursor": cursors[1]},
        {"position": pb.POSITION_BEGINNING},
    ]
    for start in starts:
        refusal = await (await bridge.subscribe(stream, wait=False, **start)).refused()
        assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "TRIMMED")
        left = await bridge.subscribe(stream, last=3, after_cursor=refusal.metadata["earliest_cursor"])
        assert (await left.through(4)).texts == ["d"]
        await left.leave()


async def test_6_a_cursor_works_anywhere(bridge: Caller, second: Caller, stream: StreamRef) -> None:
    await bridge.produce(stream, "a", "b", first=1)
    reader = await (await bridge.subscribe(stream)).through(2)
    await reader.leave()
    on = await second.subscribe(stream, last=2, after_cursor=reader.cursor)
    await bridge.produce(stream, "c", first=3, end=STOP)
    assert (await on.to_the_end()).texts == ["c"]


async def test_6_a_cursor_works_anywhere_after_a_crash_of_the_bridge(doomed: Doomed, stream: StreamRef) -> None:
    bridge, other = await doomed.bridge(), doomed.other
    await bridge.produce(stream, "a", "b", first=1)
    reader = await (await bridge.subscribe(stream)).through(2)
    assert bridge.instance.process is not None
    bridge.instance.process.kill()
    assert (await reader.refused()).code == "UNAVAILABLE"
    on = await other.subscribe(stream, last=2, after_cursor=reader.cursor)
    # So does the producer's retry of what it may have had no answer to.
    assert (await other.produce(stream, "a", "b", first=1)).duplicate
    await other.produce(stream, "c", first=3, end=STOP)
    assert (await on.to_the_end()).texts == ["c"]


async def test_7_nobody_waits_for_the_dead(hasty: Caller, stream: StreamRef) -> None:
    await hasty.create(stream, retention_ms=60_000)
    await hasty.produce(stream, "a", first=1)
    readers = [await hasty.subscribe(stream) for _ in range(2)]
    for reader in readers:
        await reader.to_the_end()
        assert reader.text == "a"
        assert reader.completion is not None
        assert reader.completion.finish_reason == FINISH_REASON_ERROR
    assert (await hasty.info(stream)).sealer == SEALER_LOST
    told = await refused(hasty.produce(stream, "b", first=2))
    assert told.metadata == {"finish_reason": "FINISH_REASON_ERROR", "sealer": "SEALER_LOST"}


@pytest.mark.parametrize("sealer", [SEALER_PRODUCER, SEALER_CANCEL])
async def test_8_an_end_is_an_end(bridge: Caller, stream: StreamRef, sealer: int) -> None:
    await bridge.produce(stream, "a", first=1, by="p")
    if sealer == SEALER_PRODUCER:
        await bridge.produce(stream, first=2, end=STOP, by="p")
    else:
        await bridge.cancel(stream)
    before = await bridge.info(stream)
    attempts = [(3, "p", 0), (0, "p", 0), (2, "p", 0), (3, "q", 9), (0, "q", 9)]
    for first, by, epoch in attempts:
        refusal = await refused(bridge.produce(stream, "x", first=first, by=by, epoch=epoch))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "COMPLETED")
    after = await bridge.info(stream)
    assert (after.last_sequence, after.cursor, after.sealer) == (2, before.cursor, sealer)
