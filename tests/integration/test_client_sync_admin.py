"""The feed, groups and connections for programs without an event loop, at a real bridge."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from llmbridge.client import (
    ClientClosed,
    ConnectionNotFound,
    Disconnected,
    FinishReason,
    GroupName,
    GroupNotFound,
    RetryPolicy,
    StreamName,
)
from llmbridge.client.sync import Client
from tests.support.running_bridge import RunningBridge

SECONDS = 30.0
QUICK = RetryPolicy(first_delay=0.01, longest_delay=0.1, give_up_after=SECONDS)
FEED = GroupName(None, "g")
NAME = StreamName("s", "m", "r")
_Result = TypeVar("_Result")


async def with_client(bridge: RunningBridge, work: Callable[[Client], _Result]) -> _Result:
    def run() -> _Result:
        with Client(bridge.address, retry=QUICK) as client:
            return work(client)

    async with asyncio.timeout(SECONDS):
        return await asyncio.to_thread(run)


async def test_events_tell_what_happened_and_are_settled(bridge: RunningBridge) -> None:
    def work(client: Client) -> None:
        client.pipe(["hel", "lo"], NAME)
        with client.watch("g", consumer="worker") as watch:
            created, completed = next(watch), next(watch)
            assert (created.completed, created.completion, created.finish_reason) == (False, None, None)
            assert (completed.completed, completed.stream, completed.info.tokens) == (True, NAME, 2)
            assert completed.finish_reason is FinishReason.STOP
            read = client.subscribe(completed.stream, after_cursor=completed.start_cursor)
            assert "".join(read.texts()) == "hello"
            assert read.cursor == completed.cursor
            assert [one.name for one in client.groups.consumers(FEED)] == ["worker"]
            assert created.acknowledge()
            assert not created.acknowledge()
            assert completed.extend()
            assert completed.reject()
            again = next(iter(watch))
            assert (again.cursor, again.info.delivery_attempt) == (completed.cursor, 2)
            assert again.reject(dead_letter=True, reason="enough")
            assert watch.missed == 0
        [letter] = client.groups.dead_letters()
        assert letter.reason == "enough"
        assert client.groups.redrive([letter.id]) == [True]
        assert client.groups.delete_dead_letters([letter.id]) == 0
        assert client.groups.get(FEED).pending == 1
        assert [info.name for info in client.groups.of_log(None)] == ["g"]
        client.groups.delete(FEED)
        with pytest.raises(GroupNotFound):
            client.groups.acknowledge(FEED, [again.info.ack_id])
        with pytest.raises(GroupNotFound):
            client.groups.get(FEED)

    await with_client(bridge, work)


async def test_closing_the_client_ends_a_watch(bridge: RunningBridge) -> None:
    def watch(client: Client) -> None:
        with client.watch("g") as events:
            next(events)

    def work() -> Client:
        return Client(bridge.address, retry=QUICK).__enter__()

    client = await asyncio.to_thread(work)
    waiting = asyncio.create_task(asyncio.to_thread(watch, client))
    async with asyncio.timeout(SECONDS):
        while bridge.core.idle:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(client.__exit__, None, None, None)
        with pytest.raises(ClientClosed):
            await waiting


async def test_connections_are_looked_at_and_ended(bridge: RunningBridge) -> None:
    def work(client: Client) -> None:
        with Client(bridge.address, retry=QUICK) as reading:
            reading.pipe(["a"], "s", "m", "other")
            messages = reading.subscribe("s", "m")
            with reading.write("s", "m") as writer:
                writer.text("a")
                writer.flush()
                assert next(messages).text == "a"
                [found] = client.connections.list("s", page_size=1)
                assert (found.stream.response_id, client.connections.count().total) == ("", 1)
                client.connections.disconnect(found.id)
                with pytest.raises(Disconnected):
                    next(messages)
        with pytest.raises(ConnectionNotFound):
            client.connections.disconnect(found.id)

    await with_client(bridge, work)


async def test_a_method_that_takes_other_arguments_says_so(bridge: RunningBridge) -> None:
    def work(client: Client) -> None:
        anything: Any = client.groups
        with pytest.raises(TypeError, match="ids"):
            anything.redrive()

    await with_client(bridge, work)
