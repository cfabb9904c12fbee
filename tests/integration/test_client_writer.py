"""The writer against a bridge that fails: what it was given is stored once, in order, and gets an end."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio
from collections.abc import AsyncIterator, Sequence

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
from tests.support.fake_bridge import KEY, FakeBridge, serving
from tests.support.faults import Context, Fault

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=5.0, give_up_after=20.0)
IMPATIENT = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=1.0, give_up_after=1.0)

DOWN = Fault("REDIS_UNAVAILABLE")
LOST_REPLY = Fault("APPEND_OUTCOME_UNKNOWN", after_storing=True)


@pytest.fixture
async def bridge() -> AsyncIterator[FakeBridge]:
    async with serving() as bridge:
        yield bridge


@pytest.fixture
async def client(bridge: FakeBridge) -> AsyncIterator[Client]:
    async with Client(bridge.address, retry=QUICK) as client:
        yield client


def finish_reason(bridge: FakeBridge) -> FinishReason | None:
    completion = bridge.log.completion
    return None if completion is None else FinishReason.of(completion)


def numbers(bridge: FakeBridge) -> Sequence[int]:
    return [request.first_sequence for request in bridge.produced]


async def test_what_is_written_is_stored_and_completed(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY) as writer:
        assert (writer.cursor, writer.last_sequence) == ("", 0)
        await writer.text("Hel")
        assert bridge.log.text == "Hel"
        await writer.write("lo", Token(text=", ", role=token_pb2.ROLE_ASSISTANT), "world")
        assert (writer.cursor, writer.last_sequence) == (bridge.log.cursor(4), 4)
        await writer.reasoning("done?")
        await writer.write()
        assert bridge.log.completion is None
    assert writer.completed
    assert bridge.log.text == "Hello, world"
    assert [token.WhichOneof("content") for token in bridge.log.tokens] == ["text"] * 4 + ["reasoning"]
    assert bridge.log.tokens[0].timestamp_ms > 1_700_000_000_000
    assert finish_reason(bridge) is FinishReason.STOP
    assert (writer.cursor, writer.last_sequence) == (bridge.log.cursor(6), 6)
    assert numbers(bridge) == [1, 2, 5, 6]


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
    with pytest.raises(RuntimeError, match="block"):
        await writer.text("a")
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
        bridge.produce_faults.extend([fault, fault])
        await writer.write("b", "c")
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
        await writer.text("b")
    assert numbers(bridge)[:3] == [1, 1, 1]
    assert bridge.log.text == "ab"


async def test_a_broken_connection_is_made_again(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY) as writer:
        await writer.text("a")
        bridge.produce_faults.append(Fault(hang=True, after_storing=True))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(writer.text("b"))
            await bridge.until(lambda: len(bridge.produced) == 2)
            await bridge.stop()
            await bridge.start()
        await writer.text("c")
    assert bridge.log.text == "abc"
    assert finish_reason(bridge) is FinishReason.STOP


async def test_the_bridge_says_how_long_to_wait(bridge: FakeBridge, client: Client) -> None:
    clock = asyncio.get_running_loop().time
    bridge.produce_faults.append(Fault("REDIS_UNAVAILABLE", retry_delay=0.3))
    async with client.write(*KEY) as writer:
        began = clock()
        await writer.text("a")
        assert clock() - began >= 0.3
    assert len(bridge.produced) == 3


@pytest.mark.parametrize(("reason", "kind"), [("LIMIT_EXCEEDED", LimitExceeded), ("INVALID_FIELD", InvalidRequest)])
async def test_refused_tokens_are_forgotten(
    bridge: FakeBridge, client: Client, reason: str, kind: type[ClientError]
) -> None:
    async with client.write(*KEY) as writer:
        await writer.text("a")
        bridge.produce_faults.append(Fault(reason))
        with pytest.raises(kind):
            await writer.text("too much")
        await writer.text("b")
        bridge.produce_faults.append(Fault(reason))
        with pytest.raises(kind):
            await writer.complete(attributes={"too": "much"})
    assert bridge.log.text == "ab"
    assert finish_reason(bridge) is FinishReason.STOP
    assert numbers(bridge) == [1, 2, 2, 3, 3]


async def test_a_refusal_after_a_lost_reply_is_final(bridge: FakeBridge, client: Client) -> None:
    """It is not known whether the tokens are stored, so their numbers must not be used for others."""
    with pytest.raises(LimitExceeded) as caught:
        async with client.write(*KEY) as writer:
            bridge.produce_faults.extend([LOST_REPLY, Fault("LIMIT_EXCEEDED")])
            with pytest.raises(LimitExceeded) as first:
                await writer.text("a")
            assert first.value.outcome_unknown
            await writer.text("b")
    assert caught.value is first.value
    assert bridge.log.text == "a"


async def test_a_refusal_of_an_older_calls_tokens_is_final(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(LimitExceeded):
        async with client.write(*KEY) as writer:
            bridge.produce_faults.append(Fault(hang=True))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(writer.text("a"), 0.05)
            bridge.produce_faults.append(Fault("LIMIT_EXCEEDED"))
            await writer.text("b")
    assert KEY not in bridge.logs


@pytest.mark.parametrize("stored", [True, False])
async def test_what_a_cancelled_call_was_given_is_stored_first(
    bridge: FakeBridge, client: Client, stored: bool
) -> None:
    async with client.write(*KEY) as writer:
        bridge.produce_faults.append(Fault(hang=True, after_storing=stored))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.text("a"), 0.1)
        await writer.text("b")
        assert writer.last_sequence == 2
    assert bridge.log.text == "ab"


async def test_concurrent_calls_keep_their_order(bridge: FakeBridge, client: Client) -> None:
    bridge.produce_faults.extend([DOWN, LOST_REPLY, DOWN])
    async with client.write(*KEY) as writer, asyncio.TaskGroup() as tasks:
        for letter in "abcdefgh":
            tasks.create_task(writer.text(letter))
    assert bridge.log.text == "abcdefgh"


async def test_cancelled_concurrent_calls_lose_nothing(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY) as writer:
        bridge.produce_faults.append(Fault(hang=True))
        calls = [asyncio.create_task(writer.text(letter)) for letter in "abc"]
        await bridge.until(lambda: len(bridge.produced) == 1)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert all(call.cancelled() for call in calls)
    assert bridge.log.text == "abc"


async def test_a_cancelled_stream_stops_the_generation(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(StreamCompleted) as caught:
        async with client.write(*KEY) as writer:
            await writer.text("a")
            await client.cancel(*KEY, reason="enough")
            await writer.text("b")
    assert (caught.value.finish_reason, caught.value.sealer) == (FinishReason.CANCELLED, Sealer.CANCEL)
    assert bridge.log.text == "a"
    assert not writer.completed
    assert len(bridge.produced) == 2
    assert not hasattr(caught.value, "__notes__")


async def test_another_producer_stops_the_generation(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(ProducerFenced) as caught:
        async with client.write(*KEY) as old:
            await old.text("a")
            request = bridge_service_pb2.ProduceRequest(
                stream=bridge.produced[0].stream, tokens=[Token(text="b")], first_sequence=2, producer_epoch=5
            )
            assert bridge.logs.append(request) is None
            await old.text("c")
    assert caught.value.epoch == 5
    assert (bridge.log.text, bridge.log.completion) == ("ab", None)


async def test_a_deleted_stream_is_not_begun_anew(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(SequenceGap) as caught:
        async with client.write(*KEY) as writer:
            await writer.text("a")
            await client.streams.delete(*KEY)
            await writer.text("b")
    assert (caught.value.expected, caught.value.received) == (1, 2)
    assert KEY not in bridge.logs


async def test_a_conflict_is_final(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(SequenceConflict):
        async with client.write(*KEY) as writer:
            bridge.produce_faults.append(Fault("SEQUENCE_CONFLICT", metadata={"sequence": "1"}))
            await writer.text("a")
    assert len(bridge.produced) == 1


async def test_an_answer_about_other_records_is_noticed() -> None:
    class LyingBridge(FakeBridge):
        async def Produce(  # noqa: N802
            self, request: bridge_service_pb2.ProduceRequest, context: Context
        ) -> bridge_service_pb2.ProduceResponse:
            response = await super().Produce(request, context)
            response.last_sequence += 1
            return response

    async with LyingBridge() as bridge, Client(bridge.address, retry=QUICK) as client:
        with pytest.raises(ProtocolViolation, match="2 instead of 1"):
            async with client.write(*KEY) as writer:
                await writer.text("a")
