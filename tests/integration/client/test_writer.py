"""The writer against a bridge that fails: what it was given is stored once and in order, or the caller is told."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from llmbridge.client import (
    Client,
    ClientError,
    FinishReason,
    InvalidRequest,
    LimitExceeded,
    ProducerFenced,
    ProtocolViolation,
    RetryPolicy,
    Sealer,
    SequenceConflict,
    SequenceGap,
    StreamCompleted,
    Token,
)
from llmbridge.v1 import bridge_service_pb2, token_pb2
from tests.support.calls import PATIENCE_SECONDS
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault

DOWN = Fault("REDIS_UNAVAILABLE")
LOST_REPLY = Fault("APPEND_OUTCOME_UNKNOWN", after_storing=True)


def finish_reason(bridge: FakeBridge) -> FinishReason | None:
    completion = bridge.log.completion
    return None if completion is None else FinishReason.of(completion)


def numbers(bridge: FakeBridge) -> Sequence[int]:
    return [request.first_sequence for request in bridge.produced]


async def test_what_is_written_is_stored_and_completed(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY) as writer:
        assert (writer.cursor, writer.last_sequence) == ("", 0)
        await writer.text("Hel")
        await writer.flush()
        assert bridge.log.text == "Hel"
        await writer.write("lo", Token(text=", ", role=token_pb2.ROLE_ASSISTANT), "world")
        await writer.flush()
        assert (writer.cursor, writer.last_sequence) == (bridge.log.cursor(4), 4)
        await writer.reasoning("done?")
        await writer.write()
        assert bridge.log.completion is None
    assert writer.completed
    assert not writer.stopped.is_set()
    assert bridge.log.text == "Hello, world"
    assert [token.WhichOneof("content") for token in bridge.log.tokens] == ["text"] * 4 + ["reasoning"]
    assert bridge.log.tokens[0].timestamp_ms > 1_700_000_000_000
    assert finish_reason(bridge) is FinishReason.STOP
    assert (writer.cursor, writer.last_sequence) == (bridge.log.cursor(6), 6)
    assert numbers(bridge) == [1, 2, 5]


async def test_writers_are_told_apart(bridge: FakeBridge, client: Client) -> None:
    async with client.write("s", "m", "1") as first, client.write("s", "m", "2", producer_epoch=7) as second:
        await first.text("a")
        await second.text("b")
    ids = {request.stream.response_id: request.producer_id for request in bridge.produced}
    assert ids == {"1": first.producer_id, "2": second.producer_id}
    assert len(set(ids.values())) == 2
    assert {request.stream.response_id: request.producer_epoch for request in bridge.produced} == {"1": 0, "2": 7}


async def test_a_writer_is_for_its_block(bridge: FakeBridge, client: Client) -> None:
    writer = client.write(*KEY)
    for call in (writer.text("a"), writer.flush()):
        with pytest.raises(RuntimeError, match="block"):
            await call
    async with writer:
        with pytest.raises(RuntimeError, match="block"):
            await writer.__aenter__()
    with pytest.raises(RuntimeError, match="complete"):
        await writer.text("a")


@pytest.mark.parametrize(
    "fault",
    [
        DOWN,
        LOST_REPLY,
        Fault("DRAINING", retry_delay=0.01),
        Fault(code=grpc.StatusCode.UNAVAILABLE, message="Socket closed", after_storing=True),
        Fault(code=grpc.StatusCode.UNKNOWN, message="Stream removed", after_storing=True),
        Fault(code=grpc.StatusCode.INTERNAL, message="Received RST_STREAM with error code 2"),
        Fault(code=grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
async def test_a_failed_request_is_repeated_unchanged(bridge: FakeBridge, client: Client, fault: Fault) -> None:
    async with client.write(*KEY) as writer:
        await writer.text("a")
        await writer.flush()
        bridge.produce_faults.extend([fault, fault])
        await writer.write("b", "c")
        await writer.flush()
        bridge.produce_faults.append(fault)
    assert bridge.log.text == "abc"
    assert finish_reason(bridge) is FinishReason.STOP
    assert numbers(bridge) == [1, 2, 2, 2, 4, 4]
    assert bridge.produced[1] == bridge.produced[2] == bridge.produced[3]
    assert bridge.produced[4] == bridge.produced[5]


@pytest.mark.parametrize("stored", [True, False])
async def test_a_request_without_an_answer_is_repeated(bridge: FakeBridge, stored: bool) -> None:
    retry = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=0.3, give_up_after=20.0)
    async with Client(bridge.address, retry=retry) as client, client.write(*KEY) as writer:
        bridge.produce_faults.extend([Fault(hang=True, after_storing=stored)] * 2)
        await writer.text("a")
        await bridge.until(lambda: len(bridge.produced) == 1)
        await writer.text("b")
    assert numbers(bridge)[:4] == [1, 1, 1, 2]
    assert bridge.log.text == "ab"


async def test_a_broken_connection_is_made_again(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY) as writer:
        await writer.text("a")
        await writer.flush()
        bridge.produce_faults.append(Fault(hang=True, after_storing=True))
        await writer.text("b")
        await bridge.until(lambda: len(bridge.produced) == 2)
        await bridge.stop()
        await writer.text("c")
        await bridge.start()
    assert bridge.log.text == "abc"
    assert finish_reason(bridge) is FinishReason.STOP


async def test_the_bridge_says_how_long_to_wait(bridge: FakeBridge, client: Client) -> None:
    clock = asyncio.get_running_loop().time
    bridge.produce_faults.append(Fault("REDIS_UNAVAILABLE", retry_delay=0.3))
    async with client.write(*KEY) as writer:
        began = clock()
        await writer.text("a")
        await writer.flush()
        assert clock() - began >= 0.3
    assert len(bridge.produced) == 3


@pytest.mark.parametrize(("reason", "kind"), [("LIMIT_EXCEEDED", LimitExceeded), ("INVALID_FIELD", InvalidRequest)])
async def test_a_refused_record_becomes_the_end(
    bridge: FakeBridge, client: Client, reason: str, kind: type[ClientError]
) -> None:
    with pytest.raises(kind) as caught:
        async with client.write(*KEY) as writer:
            await writer.text("a")
            await writer.flush()
            bridge.produce_faults.append(Fault(reason, message="too much"))
            await writer.text("b")
            await writer.stopped.wait()
            with pytest.raises(kind) as first:
                await writer.text("c")
    assert caught.value is first.value
    assert bridge.log.text == "a"
    completion = bridge.log.completion
    assert completion is not None
    assert FinishReason.of(completion) is FinishReason.ERROR
    assert completion.error_message == f"{kind.__name__}: too much"
    assert writer.completed
    assert numbers(bridge) == [1, 2, 2]


async def test_a_refused_completion_becomes_another(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(LimitExceeded):
        async with client.write(*KEY) as writer:
            await writer.text("a")
            await writer.flush()
            bridge.produce_faults.append(Fault("LIMIT_EXCEEDED"))
            await writer.complete(attributes={"too": "much"})
    assert (bridge.log.text, finish_reason(bridge)) == ("a", FinishReason.ERROR)


async def test_all_that_comes_before_a_refused_record_is_stored(bridge: FakeBridge, client: Client) -> None:
    bridge.token_bytes = 100
    with pytest.raises(LimitExceeded):
        async with client.write(*KEY) as writer:
            await writer.write(*"abcdefg", "x" * 200, "h")
    assert (bridge.log.text, finish_reason(bridge)) == ("abcdefg", FinishReason.ERROR)


async def test_a_bridge_with_lower_limits_gets_smaller_batches(bridge: FakeBridge, client: Client) -> None:
    bridge.tokens_per_request = 100
    async with client.write(*KEY) as writer:
        await writer.write(*"abcdefgh" * 100)
    assert bridge.log.text == "abcdefgh" * 100
    assert finish_reason(bridge) is FinishReason.STOP
    assert len(bridge.produced) < 30


async def test_concurrent_calls_keep_their_order(bridge: FakeBridge, client: Client) -> None:
    bridge.produce_faults.extend([DOWN, LOST_REPLY, DOWN])
    async with client.write(*KEY, max_unsent_tokens=2) as writer, asyncio.TaskGroup() as tasks:
        for letter in "abcdefgh":
            tasks.create_task(writer.text(letter))
    assert bridge.log.text == "abcdefgh"


async def test_a_cancelled_stream_stops_the_generation(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(StreamCompleted) as caught:
        async with client.write(*KEY) as writer:
            await writer.text("a")
            await writer.flush()
            await client.cancel(*KEY, reason="enough")
            await writer.text("b")
            await asyncio.wait_for(writer.stopped.wait(), PATIENCE_SECONDS)
            await writer.text("c")
    assert (caught.value.finish_reason, caught.value.sealer) == (FinishReason.CANCELLED, Sealer.CANCEL)
    assert bridge.log.text == "a"
    assert not writer.completed
    assert len(bridge.produced) == 2
    assert not hasattr(caught.value, "__notes__")


async def test_another_producer_stops_the_generation(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(ProducerFenced) as caught:
        async with client.write(*KEY) as old:
            await old.text("a")
            await old.flush()
            request = bridge_service_pb2.ProduceRequest(
                stream=bridge.produced[0].stream, tokens=[Token(text="b")], first_sequence=2, producer_epoch=5
            )
            assert bridge.logs.append(request) is None
            await old.text("c")
    assert caught.value.epoch == 5
    assert (bridge.log.text, bridge.log.completion) == ("ab", None)


async def test_a_conflict_is_final(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(SequenceConflict):
        async with client.write(*KEY) as writer:
            bridge.produce_faults.append(Fault("SEQUENCE_CONFLICT", metadata={"sequence": "1"}))
            await writer.text("a")
    assert len(bridge.produced) == 1


async def test_a_stream_of_somebody_else_is_left_alone(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY) as first:
        await first.text("a")
        await first.flush()
        with pytest.raises(SequenceGap) as caught:
            async with client.write(*KEY, producer_epoch=1) as second:
                await second.text("b")
        assert (caught.value.expected, caught.value.received) == (2, 1)
    assert (bridge.log.text, finish_reason(bridge)) == ("a", FinishReason.STOP)


async def test_an_answer_about_other_records_is_noticed(bridge: FakeBridge, client: Client) -> None:
    def lie(receipt: bridge_service_pb2.Receipt) -> None:
        receipt.last_sequence += 1

    bridge.alter_receipt = lie
    with pytest.raises(ProtocolViolation, match="2 instead of 1"):
        async with client.write(*KEY) as writer:
            await writer.text("a")
            await writer.flush()
