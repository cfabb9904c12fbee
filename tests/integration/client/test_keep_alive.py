"""A writer that is silent on purpose tells the bridge that it lives."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio
import logging

import pytest

from llmbridge.client import Client, FinishReason, RetryPolicy, StreamCompleted, keep_alive
from llmbridge.v1 import token_pb2
from tests.support.calls import PATIENCE_SECONDS
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault


@pytest.fixture
def retry() -> RetryPolicy:
    return RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=5.0, give_up_after=20.0)


async def test_a_silent_writer_says_that_it_lives(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY, keep_alive_interval=0.02, producer_epoch=3) as writer:
        await writer.text("a")
        await writer.flush()
        await bridge.until(lambda: len(bridge.kept_alive) >= 3)
    request = bridge.kept_alive[0]
    assert (request.producer_id, request.producer_epoch) == (writer.producer_id, 3)
    assert request.stream == bridge.produced[0].stream
    # What was asked before the end has come by the time that this is answered.
    assert await client.is_serving()
    calls = len(bridge.kept_alive)
    await asyncio.sleep(0.1)
    assert len(bridge.kept_alive) == calls


async def test_a_busy_writer_does_not(bridge: FakeBridge, client: Client) -> None:
    async with client.write(*KEY, keep_alive_interval=2.0) as writer:
        for _ in range(30):
            await writer.text("a")
            await asyncio.sleep(0.08)
    assert bridge.kept_alive == []


async def test_there_may_be_no_stream_before_the_first_token(
    bridge: FakeBridge, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.write(*KEY, keep_alive_interval=0.1) as writer:
        await bridge.until(lambda: len(bridge.kept_alive) >= 2)
        await writer.text("a")
    assert bridge.log.text == "a"
    # The answer, by its message; that one came too late for the interval would be told.
    assert not any("injected" in record.getMessage() for record in caplog.records)


async def test_it_asks_as_often_as_the_bridge_needs(
    bridge: FakeBridge, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = asyncio.get_running_loop().time
    bridge.lost_ms = 400
    bridge.logs.create(KEY)
    monkeypatch.setattr("llmbridge.client.keep_alive._LONGEST_INTERVAL", 1.0)
    async with client.write(*KEY):
        await bridge.until(lambda: len(bridge.kept_alive) == 1)
        first = clock()
        await bridge.until(lambda: len(bridge.kept_alive) == 3)
        # A tenth of a second each.
        assert clock() - first < 1.0


async def test_a_silent_writer_asks_at_least_every_five_seconds(
    bridge: FakeBridge, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for the bridge's sake: it learns of a cancel that way."""
    assert keep_alive._LONGEST_INTERVAL == 5
    monkeypatch.setattr("llmbridge.client.keep_alive._LONGEST_INTERVAL", 0.05)
    bridge.lost_ms = 3_600_000
    bridge.logs.create(KEY)
    async with client.write(*KEY) as writer:
        await bridge.until(lambda: len(bridge.kept_alive) == 3)
        bridge.seal(token_pb2.FINISH_REASON_CANCELLED)
        await asyncio.wait_for(writer.stopped.wait(), PATIENCE_SECONDS)
        with pytest.raises(StreamCompleted):
            await writer.text("a")


async def test_failures_are_outlived(bridge: FakeBridge, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    bridge.logs.create(KEY)
    bridge.keep_alive_faults.extend([Fault("REDIS_UNAVAILABLE"), Fault("INTERNAL"), Fault(hang=True)])
    with caplog.at_level(logging.WARNING, "llmbridge.client"):
        async with client.write(*KEY, keep_alive_interval=0.05) as writer:
            await bridge.until(lambda: len(bridge.kept_alive) >= 5)
            await writer.text("a")
    assert bridge.log.text == "a"
    assert any("keep the stream alive" in record.message for record in caplog.records)


async def test_it_learns_that_the_stream_has_ended(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(StreamCompleted) as caught:
        async with client.write(*KEY, keep_alive_interval=0.02) as writer:
            await writer.text("a")
            await writer.flush()
            bridge.seal(token_pb2.FINISH_REASON_CANCELLED)
            calls = len(bridge.kept_alive)
            await bridge.until(lambda: len(bridge.kept_alive) > calls)
            await asyncio.wait_for(writer.stopped.wait(), PATIENCE_SECONDS)
            await writer.text("b")
    assert caught.value.finish_reason is FinishReason.CANCELLED
    # Told by KeepAlive: the second text was not sent at all.
    assert len(bridge.produced) == 1


async def test_an_end_that_nobody_was_told_of_is_raised_at_the_exit(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(StreamCompleted):
        async with client.write(*KEY, keep_alive_interval=0.02) as writer:
            bridge.seal(token_pb2.FINISH_REASON_CANCELLED)
            await asyncio.wait_for(writer.stopped.wait(), PATIENCE_SECONDS)
    assert bridge.produced == []


async def test_the_writers_own_end_is_no_news(bridge: FakeBridge) -> None:
    """KeepAlive may be answered COMPLETED while the reply to the writer's own completion is still under way."""
    impatient = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=0.5, give_up_after=20.0)
    async with (
        Client(bridge.address, retry=impatient) as client,
        client.write(*KEY, keep_alive_interval=0.02) as writer,
    ):
        await writer.text("a")
        await writer.flush()
        bridge.produce_faults.append(Fault(hang=True, after_storing=True))
        await writer.complete()
        await bridge.until(lambda: bridge.log.completion is not None)
        calls = len(bridge.kept_alive)
        await bridge.until(lambda: len(bridge.kept_alive) > calls)
        await asyncio.sleep(0.05)
        assert not writer.stopped.is_set()
    assert writer.completed
