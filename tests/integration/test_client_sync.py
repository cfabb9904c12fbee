"""The client for programs without an event loop, used in threads beside the bridge's loop."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from llmbridge.client import (
    ClientClosed,
    DeadlineExceeded,
    FinishReason,
    LimitExceeded,
    ResponseFailed,
    RetryPolicy,
    StreamCompleted,
    StreamNotFound,
)
from llmbridge.client.sync import Client
from llmbridge.client.sync.loop_thread import LoopThread
from llmbridge.v1 import token_pb2
from tests.support.fake_bridge import KEY, FakeBridge, serving
from tests.support.faults import Fault
from tests.support.whole_response import TEXT, WORDS, check_whole

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02, attempt_timeout=5.0, give_up_after=20.0)
_Result = TypeVar("_Result")


@pytest.fixture
async def bridge() -> AsyncIterator[FakeBridge]:
    async with serving() as bridge:
        yield bridge
        assert "llmbridge-client" not in [thread.name for thread in threading.enumerate()]


async def in_a_thread(work: Callable[[], _Result]) -> _Result:
    return await asyncio.wait_for(asyncio.to_thread(work), 30)


async def with_client(bridge: FakeBridge, work: Callable[[Client], _Result]) -> _Result:
    def run() -> _Result:
        with Client(bridge.address, retry=QUICK) as client:
            return work(client)

    return await in_a_thread(run)


async def test_a_response_is_written_and_read(bridge: FakeBridge) -> None:
    def work(client: Client) -> None:
        with client.write(*KEY) as writer:
            writer.text("Hel")
            writer.flush()
            assert (writer.last_sequence, writer.cursor, writer.stream.session_id) == (1, bridge.log.cursor(1), "s")
            writer.write("lo", token_pb2.Token(text="!"))
            writer.reasoning("hm")
            assert not writer.stopped
            writer.complete(FinishReason.LENGTH)
        assert writer.completed
        assert list(client.subscribe(*KEY).texts()) == ["Hel", "lo", "!"]
        assert list(client.subscribe(*KEY).tokens()) == bridge.log.tokens
        with client.subscribe(*KEY) as messages:
            last = list(messages)[-1]
        assert (last.finish_reason, messages.cursor) == (FinishReason.LENGTH, bridge.log.cursor(5))
        assert messages.completion == bridge.log.completion
        assert client.is_serving()

    await with_client(bridge, work)
    assert FinishReason.of(bridge.log.completion or token_pb2.Completion()) is FinishReason.LENGTH


async def test_streams_are_administered(bridge: FakeBridge) -> None:
    def work(client: Client) -> None:
        names = [client.streams.create("s", "m", str(number)) for number in range(3)]
        assert [info.stream.response_id for info in client.streams.of_session("s", page_size=2)] == ["2", "1", "0"]
        assert len(list(client.streams.open(page_size=1))) == 3
        bridge.append("a", "b", key=("s", "m", "0"))
        assert client.streams.get(names[0]).last_sequence == 2
        assert client.streams.trim(names[0], keep_tokens=1).first_sequence == 2
        client.streams.delete(names[0])
        with pytest.raises(StreamNotFound):
            client.streams.get(names[0])

    await with_client(bridge, work)


async def test_a_dead_producers_text_is_taken_over(bridge: FakeBridge) -> None:
    def work(client: Client) -> None:
        bridge.append("a", "b")
        takeover = client.takeover(*KEY)
        assert (takeover.text, [token.text for token in takeover.tokens]) == ("ab", ["a", "b"])
        with takeover.writer as writer:
            writer.text("c")

    await with_client(bridge, work)
    assert bridge.log.text == "abc"


async def test_a_cancel_is_told(bridge: FakeBridge) -> None:
    def work(client: Client) -> None:
        with pytest.raises(StreamCompleted), client.write(*KEY) as writer:
            writer.text("a")
            writer.flush()
            client.cancel(*KEY)
            writer.text("b")
            with pytest.raises(StreamCompleted):
                writer.flush()
            assert writer.stopped
            writer.text("c")

    await with_client(bridge, work)


async def test_an_exception_becomes_the_end(bridge: FakeBridge) -> None:
    def work(client: Client) -> None:
        with pytest.raises(ZeroDivisionError), client.write(*KEY) as writer:
            writer.text("a")
            raise ZeroDivisionError("by 0")
        with pytest.raises(ResponseFailed, match="by 0"):
            list(client.subscribe(*KEY).texts())

    await with_client(bridge, work)


async def test_cuts_are_resumed_and_faults_retried(bridge: FakeBridge) -> None:
    bridge.produce_faults.extend([Fault("DRAINING"), Fault("APPEND_OUTCOME_UNKNOWN", after_storing=True)])
    bridge.subscribe_faults.extend([Fault("DRAINING", after_records=number) for number in (0, 3, 1)])

    def work(client: Client) -> None:
        with client.write(*KEY) as writer:
            for word in WORDS:
                writer.text(word)
        check_whole(list(client.subscribe(*KEY)))

    await with_client(bridge, work)


async def test_reading_ends_in_time(bridge: FakeBridge) -> None:
    def work(client: Client) -> None:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            next(client.subscribe(*KEY, timeout=0.2))
        assert time.monotonic() - began < 10

    await with_client(bridge, work)


async def test_many_threads_share_a_client(bridge: FakeBridge) -> None:
    def one(client: Client, number: int) -> str:
        key = ("s", "m", str(number % 8))
        if number < 8:
            with client.write(*key) as writer:
                for word in WORDS:
                    writer.text(word)
            return TEXT
        return "".join(client.subscribe(*key).texts())

    def work(client: Client) -> None:
        with ThreadPoolExecutor(16) as threads:
            assert set(threads.map(lambda number: one(client, number), range(16))) == {TEXT}

    await with_client(bridge, work)


async def test_threads_that_share_a_writer_lose_nothing(bridge: FakeBridge) -> None:
    def work(client: Client) -> None:
        with client.write(*KEY, max_unsent_tokens=3) as writer, ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda number: writer.text(f"{number} "), range(100)))

    await with_client(bridge, work)
    assert sorted(map(int, bridge.log.text.split())) == list(range(100))


async def test_closing_ends_what_other_threads_wait_for(bridge: FakeBridge) -> None:
    def work() -> list[BaseException | None]:
        with ThreadPoolExecutor(4) as threads:
            with Client(bridge.address, retry=QUICK) as client:
                reading = [threads.submit(list, client.subscribe("s", "m", str(number))) for number in range(4)]
                while bridge.readers < 4:
                    time.sleep(0.01)
                subscription = client.subscribe(*KEY)
            with pytest.raises(ClientClosed):
                next(subscription)
            with pytest.raises(ClientClosed):
                client.is_serving()
            return [call.exception() for call in reading]

    errors = await in_a_thread(work)
    assert [type(error) for error in errors] == [ClientClosed] * 4


async def test_a_client_is_for_its_block(bridge: FakeBridge) -> None:
    client = Client(bridge.address)
    with pytest.raises(RuntimeError, match="block"):
        client.is_serving()

    def work() -> None:
        with client, pytest.raises(RuntimeError, match="block"):
            client.__enter__()

    await in_a_thread(work)


async def test_a_refused_record_is_told(bridge: FakeBridge) -> None:
    bridge.token_bytes = 10

    def work(client: Client) -> None:
        with pytest.raises(LimitExceeded), client.write(*KEY) as writer:
            writer.text("x" * 100)

    await with_client(bridge, work)


def test_a_closed_loop_takes_nothing_more() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    thread = LoopThread()
    outcomes: list[Any] = []

    def wait() -> None:
        try:
            thread.run(never())
        except ClientClosed as error:
            outcomes.append(error)

    waiting = [threading.Thread(target=wait) for _ in range(5)]
    for one in waiting:
        one.start()
    thread.close()
    for one in waiting:
        one.join(10)
    assert len(outcomes) == 5
    with pytest.raises(ClientClosed):
        thread.run(never())
    thread.close()
