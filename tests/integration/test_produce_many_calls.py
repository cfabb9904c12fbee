"""A ProduceMany call as a whole: its window, and every way in which it ends."""

import asyncio
from typing import Any

import grpc
import pytest

from llmbridge.produce.many import MAX_OUTSTANDING_APPENDS, MAX_WRITERS
from llmbridge.rpc.limits import MAX_SHARED_MESSAGE_BYTES
from llmbridge.rpc.produce_many import MAX_APPENDS
from llmbridge.v1.bridge_service_pb2 import ProduceManyRequest, ProduceManyResponse, WriterAppend
from llmbridge.v1.token_pb2 import Completion, Token
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import (
    PATIENCE_SECONDS,
    STOP,
    failure,
    failure_of,
    produce,
    read_all,
    ref,
    stalled_channel,
    stub,
    until,
)
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge
from tests.support.writers import Writers, append, id_of, refusal, start

METHOD = "/llmbridge.v1.BridgeService/ProduceMany"


async def _ended(writers: Writers) -> tuple[grpc.StatusCode, str]:
    """Read all that still comes; tells how the call failed."""
    try:
        while await writers.read() is not None:
            pass
    except grpc.aio.AioRpcError as error:
        failed = failure_of(error)
        return failed.code, failed.reason
    raise AssertionError("the call ended well")


async def test_it_is_attached_before_anything_is_sent_and_ends_when_the_client_has_said_all(
    bridge: RunningBridge,
) -> None:
    writers = Writers(bridge.bridge)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await writers.call.initial_metadata()
    assert await writers.finish() is grpc.StatusCode.OK


async def test_receipts_still_come_after_the_clients_last_word(bridge: RunningBridge) -> None:
    writers = Writers(bridge.bridge)
    appends = [append(1, i + 1, "a") for i in range(2_000)]
    await writers.send(*appends, starts=(start(1, ref("r")),))
    assert await writers.finish() is grpc.StatusCode.OK
    assert len(writers.receipts) == len(appends)


async def test_more_than_the_window_goes_through_it(bridge: RunningBridge) -> None:
    writers = Writers(bridge.bridge)
    await writers.send(starts=(start(1, ref("r")),))

    async def write() -> None:
        for first in range(1, 3 * MAX_OUTSTANDING_APPENDS, 1_024):
            await writers.send(*(append(1, first + i, "a") for i in range(1_024)))

    async with asyncio.TaskGroup() as both:
        both.create_task(write())
        while len(writers.receipts) < 3 * MAX_OUTSTANDING_APPENDS:
            assert await writers.read() is not None
    assert not any(receipt.HasField("failure") for receipt in writers.receipts.values())


async def test_a_client_that_takes_no_receipts_is_read_no_further(bridge: RunningBridge) -> None:
    async with stalled_channel(bridge.address) as channel:
        writers = Writers(stub(channel))
        await writers.send(starts=(start(1, ref("r")),))
        sent = 0

        async def write() -> None:
            nonlocal sent
            while True:
                await writers.send(*(append(1, sent + i + 1, "x" * 50) for i in range(1_000)))
                sent += 1_000

        writing = asyncio.create_task(write())
        stuck_at = -1
        async with asyncio.timeout(PATIENCE_SECONDS):
            while sent < MAX_OUTSTANDING_APPENDS or stuck_at != sent:
                stuck_at = sent
                await asyncio.sleep(0.5)
        # It goes on as soon as the client takes them, and nothing was lost.
        while len(writers.receipts) <= stuck_at:
            assert await writers.read() is not None
        writing.cancel()
        await asyncio.wait((writing,))
        writers.call.cancel()
        assert not any(receipt.HasField("failure") for receipt in writers.receipts.values())


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\xff\xff\xff", (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")),
        (b"\x12\x05abc", (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")),
        (
            ProduceManyRequest(starts=[start(1, ref("other"))]).SerializeToString(),
            (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ),
        (
            ProduceManyRequest(starts=[start(i + 2, ref("other")) for i in range(MAX_WRITERS)]).SerializeToString(),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED"),
        ),
        (b"\x12\x00" * (MAX_APPENDS + 1), (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")),
        (b"\x18\x00" * (MAX_WRITERS + 1), (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")),
        (b"\x12\x00" * (MAX_SHARED_MESSAGE_BYTES // 2 + 1), (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")),
    ],
    ids=["no message", "cut", "a number in use", "too many writers", "too many appends", "too many stops", "too large"],
)
async def test_what_is_no_request_ends_the_call_after_the_receipts(
    bridge: RunningBridge, raw: bytes, status: tuple[grpc.StatusCode, str]
) -> None:
    call: Any = bridge.channel.stream_stream(METHOD)()
    good = ProduceManyRequest(starts=[start(1, ref("r"))], appends=[append(1, i, "a") for i in range(1, 301)])
    await call.write(good.SerializeToString())
    await call.write(raw)
    receipts = 0

    async def read_all_receipts() -> None:
        nonlocal receipts
        while (message := await call.read()) is not grpc.aio.EOF:
            receipts += len(ProduceManyResponse.FromString(message).receipts)

    failed = await failure(read_all_receipts())
    assert (failed.code, failed.reason) == status
    assert receipts == 300


async def test_hostile_messages_of_known_shape_are_answered(bridge: RunningBridge) -> None:
    writers = Writers(bridge.bridge)
    await writers.send(
        WriterAppend(append_id=1),
        WriterAppend(append_id=2, writer=1, tokens=[Token()], first_sequence=1),
        WriterAppend(append_id=3, writer=1, tokens=[Token(text="x", role=99)], first_sequence=1),  # type: ignore[arg-type]
        WriterAppend(append_id=4, writer=1, tokens=[Token(json="{")], first_sequence=1),
        WriterAppend(append_id=5, writer=1, completion=Completion(), first_sequence=1),
        WriterAppend(append_id=6, writer=1, tokens=[Token(text="x")], first_sequence=2**64 - 1),
        WriterAppend(append_id=7, writer=1, tokens=[Token(text="x")], first_sequence=1),
        starts=(start(1, ref("r")),),
    )
    receipts = await writers.settled()
    fields = [refusal(receipts[i].failure)[2]["field"] for i in range(1, 7)]
    assert fields == [
        "writer",
        "tokens[0].content",
        "tokens[0].role",
        "tokens[0].json",
        "completion.finish_reason",
        "first_sequence",
    ]
    assert receipts[7].last_sequence == 1


async def test_a_client_that_goes_leaves_nothing_behind(bridge: RunningBridge) -> None:
    for _ in range(5):
        writers = Writers(bridge.bridge)
        await writers.send(*(append(1, i, "a") for i in range(1, 500)), starts=(start(1, ref("r")),))
        writers.call.cancel()
    channel = grpc.aio.insecure_channel(bridge.address, options=[("grpc.use_local_subchannel_pool", 1)])
    writers = Writers(stub(channel))
    await writers.send(append(1, 1, "a"), starts=(start(1, ref("r")),))
    await writers.settled()
    await channel.close()
    await until(lambda: bridge.core.idle)


async def test_a_bridge_that_drains_gives_the_receipts_of_all_it_took(own_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(own_redis.url, key_prefix=key_prefix) as bridge:
        idle, busy = Writers(bridge.bridge), Writers(bridge.bridge)
        await idle.send(append(1, 1, "a"), starts=(start(1, ref("idle")),))
        await idle.settled()
        await busy.send(append(1, 1, "a"), starts=(start(1, ref("busy")),))
        await busy.settled()
        with own_redis.client() as client:
            client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            await busy.send(*(append(1, i, "a") for i in range(2, 400)))
            # What comes behind it on the same channel is answered: so the bridge has taken the message.
            for _ in range(3):
                assert (await failure(produce(bridge.bridge, ref("nothing")))).reason == "INVALID_FIELD"
            bridge.stop.set()
            assert await _ended(idle) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            client.execute_command("CLIENT", "UNPAUSE")
        assert await _ended(busy) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert [receipt.last_sequence for receipt in busy.receipts.values()] == list(range(1, 400))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await bridge.ended
    async with running_bridge(own_redis.url, key_prefix=key_prefix) as other:
        again = Writers(other.bridge)
        await again.send(append(1, 399, "a"), append(1, 400, "b", completion=STOP), starts=(start(1, ref("busy")),))
        receipts = await again.settled()
        assert receipts[id_of(1, 399)].duplicate
        assert len((await read_all(other.bridge, ref("busy"))).texts) == 400


async def test_without_redis_each_append_is_told_so_and_the_call_goes_on(
    own_redis: RedisProcess, key_prefix: str
) -> None:
    async with running_bridge(own_redis.url, key_prefix=key_prefix) as bridge:
        writers = Writers(bridge.bridge)
        await writers.send(append(1, 1, "a"), starts=(start(1, ref("r")),))
        await writers.settled()
        own_redis.kill()
        await writers.send(*(append(1, i, "b") for i in range(2, 10)))
        receipts = await writers.settled()
        told = {refusal(receipts[id_of(1, i)].failure)[:2] for i in range(2, 10)}
        assert told <= {
            (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE"),
            (grpc.StatusCode.UNAVAILABLE, "APPEND_OUTCOME_UNKNOWN"),
        }
        own_redis.start()
        stored = False
        retry = 100
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not stored:
                retry += 1
                await writers.send(append(1, 1, *["a", *["b"] * 8], id=retry))
                stored = not (await writers.settled())[retry].HasField("failure")
        await produce(bridge.bridge, ref("r"), first=10, completion=STOP, producer_epoch=1, producer_id="p")
        assert (await read_all(bridge.bridge, ref("r"))).text == "abbbbbbbb"


async def test_a_bridge_that_is_killed_leaves_what_can_be_sent_again(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> None:
    killed = BridgeProcess({"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix}).start()
    appends = [append(i, first, str(first)) for first in range(1, 41) for i in range(20)]
    starts = tuple(start(i, ref(str(i))) for i in range(20))
    try:
        async with grpc.aio.insecure_channel(killed.address) as channel:
            writers = Writers(stub(channel))
            await writers.send(*appends[:400], starts=starts)
            await writers.read()
            await writers.send(*appends[400:])
            killed.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await writers.finish()
    finally:
        killed.close()
    again = Writers(bridge.bridge)
    await again.send(*appends, *(append(i, 41, completion=STOP) for i in range(20)), starts=starts)
    receipts = await again.settled()
    assert not any(receipt.HasField("failure") for receipt in receipts.values())
    for i in range(0, 20, 7):
        assert (await read_all(bridge.bridge, ref(str(i)))).texts == [str(first) for first in range(1, 41)]
