"""A connection to Redis once it is open: replies in whatever pieces they come, and every way in which it ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError, InvalidResponse, MovedError, ResponseError
from redis.exceptions import ConnectionError as NotConnected

from llmbridge.log.link import Link, refuse
from tests.support.redis_peer import PATIENCE_SECONDS, Caller, Peer, on_both_loops, redis_peer


@asynccontextmanager
async def linked(
    hear: Callable[[Any], None] = refuse, timeout_seconds: float = PATIENCE_SECONDS
) -> AsyncIterator[tuple[Link, Caller]]:
    """A link and its far end."""
    async with redis_peer() as peer:
        link = await peer.connector(timeout_seconds).open("test", hear=hear)
        try:
            yield link, await peer.caller()
        finally:
            await link.close()


async def asked(link: Link, caller: Caller, replies: int = 1) -> "asyncio.Task[list[Any]]":
    """Ask something that has arrived."""
    task = asyncio.create_task(link.ask(b"?", replies))
    assert await caller.hear(1) == b"?"
    return task


async def fails(task: "asyncio.Task[Any]") -> BaseException:
    """Say how a task failed."""
    await asyncio.wait([task])
    error = task.exception()
    assert error is not None
    return error


@on_both_loops
async def test_replies_may_come_in_any_pieces() -> None:
    said = b"$5\r\nhello\r\n:7\r\n$-1\r\n*2\r\n$1\r\na\r\n*1\r\n:1\r\n+OK\r\n"
    replies = [b"hello", 7, None, [b"a", [1]], b"OK"]
    async with linked() as (link, caller):
        for size in (1, 2, 7, len(said)):
            ask = await asked(link, caller, len(replies))
            await caller.say(*(said[start : start + size] for start in range(0, len(said), size)))
            assert await ask == replies
        assert link.is_open


@on_both_loops
async def test_error_replies_are_answers() -> None:
    async with linked() as (link, caller):
        ask = await asked(link, caller, 4)
        await caller.say(b":1\r\n-MOVED 5 127.0.0.1:7000\r\n*2\r\n-ERR no\r\n:2\r\n-READONLY it is\r\n")
        one, moved, [nested, two], read_only = await ask
        assert (one, two) == (1, 2)
        assert isinstance(moved, MovedError)
        assert (moved.slot_id, moved.port) == (5, 7000)
        assert isinstance(nested, ResponseError)
        assert isinstance(read_only, ResponseError)
        assert link.is_open


@on_both_loops
async def test_an_error_of_the_server_ends_it() -> None:
    async with linked() as (link, caller):
        ask = await asked(link, caller, 2)
        await caller.say(b":1\r\n-LOADING Redis is loading\r\n")
        assert isinstance(await fails(ask), BusyLoadingError)
        assert not link.is_open
        await caller.hear_end()


@on_both_loops
async def test_closed_in_the_middle_of_a_reply() -> None:
    async with linked() as (link, caller):
        ask = await asked(link, caller, 2)
        await caller.say(b":1\r\n$5\r\nhel")
        assert not ask.done()
        caller.hang_up()
        assert isinstance(await fails(ask), NotConnected)
        assert not link.is_open
        await link.closed


@on_both_loops
async def test_whole_replies_before_the_end_count() -> None:
    async with linked() as (link, caller):
        ask = await asked(link, caller)
        caller._writer.write(b":1\r\n")
        caller.hang_up()
        assert await ask == [1]
        await link.closed


@on_both_loops
async def test_reset_while_somebody_waits() -> None:
    async with linked() as (link, caller):
        ask = await asked(link, caller)
        caller.reset()
        assert isinstance(await fails(ask), OSError | NotConnected)
        assert not link.is_open


@on_both_loops
async def test_the_end_of_an_idle_one_is_noticed() -> None:
    for leave in (Caller.hang_up, Caller.reset):
        async with linked() as (link, caller):
            leave(caller)
            await link.closed
            assert not link.is_open
            # Whoever has only something to say is not disturbed.
            link.tell(b"!")
            with pytest.raises((OSError, NotConnected)):
                await link.ask(b"?", 1)


@on_both_loops
async def test_what_is_not_understood_ends_it() -> None:
    async with linked() as (link, caller):
        ask = await asked(link, caller)
        await caller.say(b"what?\r\n")
        assert isinstance(await fails(ask), InvalidResponse)
        await link.closed


@on_both_loops
async def test_nobody_speaks_unasked() -> None:
    async with linked() as (link, caller):
        await caller.say(b":1\r\n")
        await link.closed
        assert isinstance(link.error, NotConnected)


@on_both_loops
async def test_more_than_was_asked_for_answers_nothing_else() -> None:
    async with linked() as (link, caller):
        ask = await asked(link, caller)
        await caller.say(b":1\r\n:2\r\n")
        assert await ask == [1]
        assert not link.is_open


@on_both_loops
async def test_messages_are_heard_at_once_and_in_order() -> None:
    heard: list[Any] = []
    async with linked(heard.append) as (link, caller):
        before = link.heard_at
        link.tell(b"hello")
        assert await caller.hear(5) == b"hello"
        await asyncio.sleep(0.01)
        await caller.say(b":1\r\n+two\r", b"\n*1\r\n:3\r\n-ERR four\r\n")
        while len(heard) < 4:
            await asyncio.sleep(0.001)
        assert heard[:3] == [1, b"two", [3]]
        assert isinstance(heard[3], ResponseError)
        assert link.heard_at > before
        assert link.is_open


@on_both_loops
async def test_a_listener_that_fails_ends_it_and_the_error_is_told() -> None:
    heard: list[int] = []
    failure = KeyError("a bug")

    def hear(number: int) -> None:
        heard.append(number)
        if number == 2:
            raise failure

    async with linked(hear) as (link, caller):
        await caller.say(b":1\r\n:2\r\n:3\r\n")
        await link.closed
        assert link.error is failure
        assert heard == [1, 2]
        await caller.hear_end()


@on_both_loops
async def test_a_large_batch_to_one_who_reads_late() -> None:
    """More than sockets hold: it waits in this process, and goes on as the other side takes it."""
    batch = b"x" * 33_554_432
    async with linked() as (link, caller):
        ask = asyncio.create_task(link.ask(batch, 1))
        for _ in range(5):
            await asyncio.sleep(0.01)
        transport: Any = link._transport
        assert transport.get_write_buffer_size() > 0
        assert not ask.done()
        assert await caller.hear(len(batch)) == batch
        await caller.say(b"+OK\r\n")
        assert await ask == [b"OK"]


@on_both_loops
async def test_giving_up_does_not_wait_for_what_was_not_taken() -> None:
    async with linked(timeout_seconds=0.3) as (link, _):
        ask = asyncio.create_task(link.ask(b"x" * 33_554_432, 1))
        assert isinstance(await fails(ask), TimeoutError)
        await link.closed


@on_both_loops
async def test_no_answer_in_time_ends_it() -> None:
    async with linked(timeout_seconds=0.3) as (link, caller):
        ask = await asked(link, caller, 2)
        await caller.say(b":1\r\n")
        assert isinstance(await fails(ask), TimeoutError)
        assert not link.is_open
        await caller.hear_end()


@on_both_loops
async def test_the_time_limit_is_each_questions_own() -> None:
    async with linked(timeout_seconds=2.0) as (link, caller):
        for _ in range(2):
            ask = await asked(link, caller)
            await asyncio.sleep(1.1)
            await caller.say(b":1\r\n")
            assert await ask == [1]
        began = time.monotonic()
        ask = await asked(link, caller)
        assert isinstance(await fails(ask), TimeoutError)
        assert 1.95 < time.monotonic() - began < 8


@on_both_loops
async def test_an_idle_one_stays() -> None:
    async with linked(timeout_seconds=1.5) as (link, caller):
        ask = await asked(link, caller)
        await caller.say(b":1\r\n")
        assert await ask == [1]
        await asyncio.sleep(1.7)
        assert link.is_open


@on_both_loops
async def test_whoever_leaves_in_mid_exchange_ends_it() -> None:
    async with linked() as (link, caller):
        ask = await asked(link, caller, 2)
        await caller.say(b":1\r\n")
        ask.cancel()
        await asyncio.wait([ask])
        assert ask.cancelled()
        assert not link.is_open
        # The second reply will never be taken for the answer to another question.
        await caller.hear_end()


@pytest.mark.parametrize("said_before", [b"+and more\r\n", b"*0\r\n"])
def test_what_is_said_unasked_while_it_is_made(said_before: bytes) -> None:
    """What redis-py has read is not lost: it is no answer to what comes."""

    async def open_and_ask(peer: Peer) -> None:
        link = await peer.connector().open("test")
        # It came later than what redis-py had asked for.
        await link.closed
        await link.ask(b"?", 1)

    async def refused() -> None:
        async with redis_peer() as peer:
            peer.greeting += said_before
            with pytest.raises(NotConnected):
                await open_and_ask(peer)
            await (await peer.caller()).hear_end()

    asyncio.run(refused())


async def test_an_attempt_that_is_cut_short_leaves_nothing_open(peer: Peer) -> None:
    peer.greeting = b""
    opening = asyncio.create_task(peer.connector().open("test"))
    caller = await peer.caller()
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    await caller.hear_end()


async def test_a_name_that_is_refused(peer: Peer) -> None:
    peer.greeting = b"-ERR no\r\n"
    with pytest.raises(ResponseError, match="no"):
        await peer.connector().open("test")
    await (await peer.caller()).hear_end()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with asyncio.timeout(PATIENCE_SECONDS), redis_peer() as running:
        yield running
