"""What a failure means that meets a batch: nothing was sent, or nobody knows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import ReadOnlyError, ResponseError

from llmbridge.errors import RedisUnavailable
from llmbridge.log import connections
from llmbridge.log import exchange as module
from llmbridge.log.exchange import ConnectionBroken, Exchange, Reply
from tests.support.redis_peer import PATIENCE_SECONDS, Caller, Peer, on_both_loops, redis_peer

COMMAND = ("PING",)
PACKED = b"*1\r\n$4\r\nPING\r\n"


@asynccontextmanager
async def exchanging(timeout_seconds: float = PATIENCE_SECONDS) -> AsyncIterator[tuple[Exchange, Peer, list[None]]]:
    """An exchange, its far end, and how often it has told of trouble."""
    troubles: list[None] = []
    async with redis_peer() as peer:
        exchange = Exchange(peer.connector(timeout_seconds), "test", troubled=lambda: troubles.append(None))
        yield exchange, peer, troubles
        await exchange.close()


def sending(exchange: Exchange, commands: int = 1) -> "asyncio.Task[list[Reply]]":
    return asyncio.create_task(exchange.send([COMMAND] * commands))


async def heard(peer: Peer, commands: int = 1) -> Caller:
    """Take a batch from the next connection."""
    caller = await peer.caller()
    assert await caller.hear(len(PACKED) * commands) == PACKED * commands
    return caller


@on_both_loops
async def test_a_batch_and_its_replies() -> None:
    async with exchanging() as (exchange, peer, troubles):
        batch = sending(exchange, 3)
        caller = await heard(peer, 3)
        await caller.say(b"+a\r\n-ERR b\r\n", b"+c\r\n")
        first, error, last = await batch
        assert (first, last) == (b"a", b"c")
        assert isinstance(error, ResponseError)
        # The same connection goes on.
        again = sending(exchange)
        await caller.hear(len(PACKED))
        await caller.say(b":1\r\n")
        assert await again == [1]
        assert troubles == []


@on_both_loops
async def test_cut_before_the_answer_nobody_knows() -> None:
    for cut in (Caller.hang_up, Caller.reset):
        async with exchanging() as (exchange, peer, troubles):
            batch = sending(exchange, 2)
            caller = await heard(peer, 2)
            await caller.say(b":1\r\n:")
            cut(caller)
            with pytest.raises(ConnectionBroken):
                await batch
            assert len(troubles) == 1
            # It was never sent again.
            again = sending(exchange)
            await (await heard(peer)).say(b":2\r\n")
            assert await again == [2]


@on_both_loops
async def test_cut_while_it_was_idle_nothing_is_in_doubt() -> None:
    for cut in (Caller.hang_up, Caller.reset):
        async with exchanging() as (exchange, peer, troubles):
            batch = sending(exchange)
            caller = await heard(peer)
            await caller.say(b":1\r\n")
            assert await batch == [1]
            link = exchange._link
            assert link is not None
            cut(caller)
            await link.closed
            again = sending(exchange)
            await (await heard(peer)).say(b":2\r\n")
            assert await again == [2]
            assert troubles == []


@on_both_loops
async def test_no_answer_in_time() -> None:
    async with exchanging(timeout_seconds=0.5) as (exchange, peer, troubles):
        with pytest.raises(ConnectionBroken, match="TimeoutError"):
            await exchange.send([COMMAND])
        assert len(troubles) == 1
        assert await (await peer.caller()).hear_end() == PACKED


@on_both_loops
async def test_whoever_is_cancelled_leaves_no_answer_behind() -> None:
    async with exchanging() as (exchange, peer, _):
        batch = sending(exchange)
        late = await heard(peer)
        batch.cancel()
        await asyncio.wait([batch])
        assert batch.cancelled()
        again = sending(exchange)
        caller = await heard(peer)
        assert await late.hear_end() == b""
        await caller.say(b":2\r\n")
        assert await again == [2]


async def test_a_server_that_loads_has_done_nothing_and_is_left_alone_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "pause_seconds", lambda _: 60.0)
    async with exchanging() as (exchange, peer, troubles):
        batch = sending(exchange)
        await (await heard(peer)).say(b"-LOADING Redis is loading the dataset in memory\r\n")
        with pytest.raises(RedisUnavailable, match="loading"):
            await batch
        assert len(troubles) == 1
        with pytest.raises(RedisUnavailable, match="a moment ago"):
            await exchange.send([COMMAND])
        assert len(peer.all_callers) == 1


@pytest.mark.parametrize(
    "said",
    [
        b"-READONLY a replica\r\n",
        b"-ERR Error running script: -READONLY a replica\r\n",
        b"-ERR WAIT cannot be used with replica instances. Please also note...\r\n",
    ],
)
async def test_one_that_is_a_replica_now_is_left(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", -1.0)
    async with exchanging() as (exchange, peer, troubles):
        batch = sending(exchange, 2)
        caller = await heard(peer, 2)
        await caller.say(said + b":1\r\n")
        error, one = await batch
        assert isinstance(error, ReadOnlyError | ResponseError)
        assert one == 1
        assert len(troubles) == 1
        await caller.hear_end()
        again = sending(exchange)
        await (await heard(peer)).say(b":2\r\n")
        assert await again == [2]


async def test_one_that_was_a_replica_from_the_first_can_be_read_from() -> None:
    async with exchanging() as (exchange, peer, troubles):
        batch = sending(exchange)
        caller = await heard(peer)
        await caller.say(b"-READONLY a replica\r\n")
        [error] = await batch
        assert isinstance(error, ReadOnlyError)
        again = sending(exchange)
        await caller.hear(len(PACKED))
        await caller.say(b":2\r\n")
        assert await again == [2]
        assert len(troubles) == 1


async def test_nobody_listens() -> None:
    async with exchanging() as (exchange, _, troubles):
        pass
    with pytest.raises(RedisUnavailable):
        await exchange.send([COMMAND])
    assert (exchange.breaker.failures, len(troubles)) == (1, 1)
    with pytest.raises(RedisUnavailable, match="a moment ago"):
        await exchange.send([COMMAND])
