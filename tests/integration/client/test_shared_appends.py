"""All writers of a client share one call: who waits for whom, and who does not."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio
from functools import partial

import grpc
import pytest

from llmbridge.client import (
    BridgeFailure,
    Client,
    InvalidRequest,
    LimitExceeded,
    ProducerFenced,
    RetryPolicy,
    StreamCompleted,
    Token,
    Writer,
    produce_call,
)
from llmbridge.v1 import token_pb2
from llmbridge.v1.bridge_service_pb2 import ProduceRequest
from llmbridge.v1.stream_pb2 import SEALER_CANCEL
from tests.support.calls import PATIENCE_SECONDS
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=5.0, give_up_after=20.0)
IMPATIENT = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=2.0, give_up_after=20.0)


def key(number: int) -> tuple[str, str, str]:
    return "s", "m", str(number)


async def until_idle() -> None:
    """Let all tasks do what they can do without waiting."""
    for _ in range(20):
        await asyncio.sleep(0)


async def write(client: Client, number: int, *texts: str) -> None:
    async with client.write(*key(number)) as writer:
        for text in texts:
            await writer.text(text)
            await writer.flush()


async def test_writers_share_a_call_and_messages(bridge: FakeBridge, client: Client) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(write(client, number, *"abcde"))
    assert [bridge.logs[key(number)].text for number in range(10)] == ["abcde"] * 10
    assert bridge.produce_calls == 1
    assert len(bridge.produced) == 60
    assert len(bridge.produce_messages) < 30
    # Each said once who it is.
    assert sum(len(message.starts) for message in bridge.produce_messages) == 10
    await bridge.until(lambda: sum(len(message.stops) for message in bridge.produce_messages) == 10)


async def test_a_writer_who_is_alone_never_waits(bridge: FakeBridge) -> None:
    clock = asyncio.get_running_loop().time
    async with Client(bridge.address, retry=QUICK, linger=1.0) as client, client.write(*KEY) as writer:
        began = clock()
        for text in "abcdefgh":
            await writer.text(text)
            await writer.flush()
        assert clock() - began < 1.0
    assert len(bridge.produced) == 9


async def test_messages_of_several_writers_are_spaced(bridge: FakeBridge) -> None:
    clock = asyncio.get_running_loop().time
    async with (
        Client(bridge.address, retry=QUICK, linger=0.5) as client,
        client.write(*key(1)) as first,
        client.write(*key(2)) as second,
        client.write(*key(3)) as third,
    ):
        began = clock()
        await first.text("a")
        await first.flush()
        assert clock() - began < 0.5
        await second.text("b")
        await bridge.until(lambda: len(bridge.produce_messages) == 1)
        await third.text("c")
        await asyncio.gather(second.flush(), third.flush())
        assert clock() - began >= 0.5
        assert [len(message.appends) for message in bridge.produce_messages] == [1, 2]


async def test_what_is_written_while_an_append_waits_goes_along(bridge: FakeBridge) -> None:
    async with (
        Client(bridge.address, retry=QUICK, linger=0.5) as client,
        client.write(*key(1)) as first,
        client.write(*key(2)) as second,
    ):
        await asyncio.gather(first.text("a"), second.text("a"))
        await asyncio.gather(first.flush(), second.flush())
        for letter in "bcd":
            await first.text(letter)
            await until_idle()
        await first.flush()
    appends = [append for message in bridge.produce_messages for append in message.appends if append.writer == 1]
    assert [[token.text for token in append.tokens] for append in appends[:2]] == [["a"], ["b", "c", "d"]]


@pytest.mark.parametrize("awaited", [False, True])
async def test_who_writes_faster_than_messages_go_gathers_until_somebody_waits(
    bridge: FakeBridge, awaited: bool
) -> None:
    """The receipts come later than the next message could go; only the linger counts from there."""
    clock = asyncio.get_running_loop().time
    linger = 0.5
    go_on = asyncio.Event()

    async def held() -> None:
        await go_on.wait()

    bridge.before_produce = held
    async with (
        Client(bridge.address, retry=QUICK, linger=linger) as client,
        client.write(*key(1)) as first,
        client.write(*key(2)) as second,
    ):
        await asyncio.gather(first.text("a"), second.text("a"))
        await bridge.until(lambda: len(bridge.produce_messages) == 1)
        await asyncio.gather(first.text("b"), second.text("b"))
        # Now the next message may go at once.
        await asyncio.sleep(linger)
        began = clock()
        go_on.set()
        while not (first.last_sequence and second.last_sequence):
            await asyncio.sleep(0.001)
        await until_idle()
        await first.text("c")
        waiting = asyncio.create_task(second.flush()) if awaited else None
        await bridge.until(lambda: len(bridge.produce_messages) == 2)
        assert (clock() - began < linger) is awaited
        if waiting is not None:
            await waiting
    assert [len(message.appends) for message in bridge.produce_messages[:2]] == [2, 2]
    assert [token.text for token in bridge.produce_messages[1].appends[0].tokens] == ["b", "c"]


async def test_a_linger_below_zero_is_refused(bridge: FakeBridge) -> None:
    with pytest.raises(ValueError, match="linger"):
        await Client(bridge.address, linger=-0.001).__aenter__()


async def test_a_cancel_is_told_at_once(bridge: FakeBridge, client: Client) -> None:
    bridge.tells_ends = True
    with pytest.raises(StreamCompleted):
        async with client.write(*KEY, keep_alive_interval=60) as writer:
            await writer.text("a")
            await writer.flush()
            await client.cancel(*KEY)
            await asyncio.wait_for(writer.stopped.wait(), PATIENCE_SECONDS)
            await writer.text("b")
    assert len(bridge.produced) == 1
    assert bridge.kept_alive == []


async def test_a_takeover_is_told_at_once(bridge: FakeBridge, client: Client) -> None:
    bridge.tells_ends = True
    with pytest.raises(ProducerFenced):
        async with client.write(*KEY, keep_alive_interval=60) as writer:
            await writer.text("a")
            await writer.flush()
            stream = bridge.produced[0].stream
            other = ProduceRequest(stream=stream, tokens=[Token(text="b")], first_sequence=2, producer_epoch=5)
            assert bridge.logs.append(other) is None
            bridge.notify()
            await asyncio.wait_for(writer.stopped.wait(), PATIENCE_SECONDS)
            await writer.text("c")
    assert bridge.log.text == "ab"


async def test_what_is_told_of_one_writer_is_not_told_of_another(bridge: FakeBridge, client: Client) -> None:
    bridge.tells_ends = True
    async with client.write(*key(2)) as other:
        with pytest.raises(StreamCompleted):
            async with client.write(*key(1)) as writer:
                for one in (writer, other):
                    await one.text("a")
                    await one.flush()
                bridge.seal(token_pb2.FINISH_REASON_CANCELLED, sealer=SEALER_CANCEL, key=key(1))
                await asyncio.wait_for(writer.stopped.wait(), PATIENCE_SECONDS)
        assert not other.stopped.is_set()
        await other.text("b")
    assert bridge.logs[key(2)].text == "ab"


async def test_an_append_without_an_answer_holds_up_nobody_else(bridge: FakeBridge) -> None:
    hanging = asyncio.Event()

    async def hang_once() -> None:
        if bridge.produced[-1].stream.response_id == "1" and not hanging.is_set():
            hanging.set()
            await asyncio.Event().wait()

    bridge.before_produce = hang_once
    async with Client(bridge.address, retry=IMPATIENT) as client, client.write(*key(1)) as writer:
        await writer.text("a")
        await hanging.wait()
        await write(client, 2, *"abcdefgh")
        assert bridge.produce_calls == 1
        # Its own patience ends, too, and it goes on by another call.
        await writer.flush()
    assert bridge.logs[key(1)].text == "a"
    assert bridge.logs[key(2)].text == "abcdefgh"
    assert bridge.produce_calls == 2


async def test_one_refusal_does_not_hurt_the_others(bridge: FakeBridge, client: Client) -> None:
    bridge.produce_faults.append(Fault("SEQUENCE_CONFLICT", metadata={"sequence": "1"}))
    outcomes = await asyncio.gather(*(write(client, number, "a") for number in range(5)), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] * 4 + ["SequenceConflict"]
    assert bridge.produce_calls == 1


async def test_a_broken_call_is_made_again_for_everybody(bridge: FakeBridge, client: Client) -> None:
    def enough(produced: int) -> bool:
        return len(bridge.produced) >= produced

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(write(client, number, *"abcdefgh"))
        for produced in (10, 25, 40):
            await bridge.until(partial(enough, produced))
            await bridge.stop()
            await bridge.start()
    assert [bridge.logs[key(number)].text for number in range(8)] == ["abcdefgh"] * 8
    assert bridge.produce_calls >= 4


async def test_numbers_come_again_when_they_are_free(
    bridge: FakeBridge, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmbridge.client.numbers.LARGEST_NUMBER", 3)
    async with client.write(*key(0)) as longest:
        await longest.text("a")
        await longest.flush()
        for number in range(1, 8):
            await write(client, number, "a")
        await longest.text("b")
    numbers = [start.writer for message in bridge.produce_messages for start in message.starts]
    assert numbers == [1, 2, 3, 2, 3, 2, 3, 2]
    assert bridge.logs[key(0)].text == "ab"


async def test_messages_are_bounded(bridge: FakeBridge, client: Client) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(12):
            tasks.create_task(write(client, number, *["x" * 60_000] * 6))
    assert max(message.ByteSize() for message in bridge.produce_messages) < 1_050_000
    assert all(len(bridge.logs[key(number)].text) == 360_000 for number in range(12))


async def test_what_is_too_large_for_the_call_hurts_only_its_writer(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*key(1)) as other:
        await other.text("a")
        await other.flush()
        with pytest.raises(LimitExceeded):
            await write(client, 2, "a", "x" * 4_000_000, "b")
        with pytest.raises(InvalidRequest, match="too long"):
            async with client.write("s" * 100_000, "m", "r") as long:
                await long.text("a")
        await other.text("b")
    assert (bridge.logs[key(1)].text, bridge.logs[key(2)].text) == ("ab", "a")
    assert bridge.produce_calls == 1


async def test_a_refused_call_is_no_fault_of_the_records(bridge: FakeBridge, client: Client) -> None:
    """Nothing is divided, and no stream is given an end, because of it."""
    bridge.produce_faults.append(Fault(code=grpc.StatusCode.RESOURCE_EXHAUSTED, message="a proxy has enough"))
    with pytest.raises(BridgeFailure, match="enough"):
        async with client.write(*KEY) as writer:
            await writer.write("a", "b")
            await writer.flush()
    assert len(bridge.produced) == 1
    assert KEY not in bridge.logs


async def test_what_is_outstanding_is_bounded(
    bridge: FakeBridge, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce_call, "MAX_OUTSTANDING", 4)
    go_on = asyncio.Event()

    async def held() -> None:
        await go_on.wait()

    bridge.before_produce = held
    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(write(client, number, "a"))
        await bridge.until(lambda: len(bridge.produced) == 4)
        await asyncio.sleep(0.05)
        assert len(bridge.produced) == 4
        go_on.set()
    assert [bridge.logs[key(number)].text for number in range(10)] == ["a"] * 10


async def test_more_writers_than_a_call_takes_get_another(
    bridge: FakeBridge, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce_call, "MAX_SEATS", 2)
    all_wrote = asyncio.Barrier(5)

    async def run(writer: Writer) -> None:
        async with writer:
            for text in "ab":
                await writer.text(text)
                await writer.flush()
                await all_wrote.wait()

    await asyncio.gather(*(run(client.write(*key(number))) for number in range(5)))
    assert [bridge.logs[key(number)].text for number in range(5)] == ["ab"] * 5
    assert bridge.produce_calls == 3


async def test_a_call_that_was_never_answered_is_no_reason_to_wait(bridge: FakeBridge) -> None:
    clock = asyncio.get_running_loop().time
    bridge.produce_faults.append(Fault(hang=True))
    async with Client(bridge.address, retry=QUICK) as client:
        with pytest.raises(KeyboardInterrupt):
            async with client.write(*KEY, close_timeout=0.05) as writer:
                await writer.text("a")
                await bridge.until(lambda: len(bridge.produced) == 1)
                bridge.produce_faults.extend([Fault(hang=True)] * 5)
                raise KeyboardInterrupt
        began = clock()
    assert clock() - began < 3
