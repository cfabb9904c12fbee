"""Producers that die silently: when their streams are sealed, and above all when they are not."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from llmbridge.errors import RedisUnavailable
from llmbridge.log.open_streams import OpenStreams, Sweep
from llmbridge.log.sealing import Silence
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason, Sealer
from llmbridge.produce.lost import LONGEST_WATCH_MS, STREAMS_A_CALL, LostProducers
from llmbridge.sequencing import Decision
from tests.support.append_cases import A, request
from tests.support.log_parts import LogParts, log_parts
from tests.support.model_log import WIRE, Create, Outcome, Seal
from tests.support.redis_process import RedisProcess

PARTITIONS = 3
LIMIT_MS = 60_000
WATCH_SECONDS = LONGEST_WATCH_MS / 1000
NAME = StreamName("s", "m")
LOST = Seal(Sealer.LOST, FinishReason.ERROR)


@dataclass
class Clock:
    """A monotonic clock that the test moves."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


def _sweeper(parts: LogParts, clock: Callable[[], float], open_streams: OpenStreams | None = None) -> LostProducers:
    return LostProducers(open_streams or parts.open_streams, parts.seals, WIRE, PARTITIONS, LIMIT_MS, clock)


async def _age(parts: LogParts, name: StreamName, by_ms: int) -> None:
    """Have Redis believe that the last entry is older; as after a jump of its clock."""
    log = parts.keys.stream(name).log
    async with parts.client.pipeline(transaction=True) as step:
        entries: Any = await parts.client.xrange(log)
        appended_ms, _, rest = entries[-1][1][b"i"].partition(b" ")
        entries[-1][1][b"i"] = b"%d %b" % (int(appended_ms) - by_ms, rest)
        step.delete(log)
        for entry_id, fields in entries:
            step.xadd(log, fields, id=entry_id)
        step.pexpire(log, 3_600_000)
        await step.execute()


async def _sealed(parts: LogParts, name: StreamName = NAME) -> bool:
    state = await parts.streams.inspect(name)
    assert state is not None
    return state.sealer is not None


@pytest.mark.parametrize("begun", [True, False])
async def test_a_silent_stream_is_sealed_after_it_was_watched(
    each_redis: RedisProcess, key_prefix: str, begun: bool
) -> None:
    clock = Clock()
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts:
        await parts.store(NAME, request(1, "ab") if begun else Create())
        lost = _sweeper(parts, clock)
        await lost.sweep()
        clock.now += 10 * WATCH_SECONDS
        await lost.sweep()
        assert not await _sealed(parts), "Redis heard of it a moment ago"
        await _age(parts, NAME, LIMIT_MS)
        await lost.sweep()
        clock.now += WATCH_SECONDS - 0.01
        await lost.sweep()
        assert not await _sealed(parts), "however old it seems, it was not watched for long enough"
        clock.now += 0.01
        await lost.sweep()
        entries = await parts.entries(NAME)
        end = entries[-1]
        assert (end.last, end.records, end.sealer, end.finish_reason) == (
            entries[-2].last + 1,
            1,
            Sealer.LOST,
            FinishReason.ERROR,
        )
        assert end.producer == (A if begun else None), "the seal carries the producer forward"
        if begun:
            assert (await parts.append(NAME, request(1, "ab"))).decision is Decision.DUPLICATE
        told = await parts.append(NAME, request(end.last, "c"))
        assert told == Outcome(Decision.COMPLETED, (FinishReason.ERROR, Sealer.LOST))
        await lost.sweep()
        assert await parts.entries(NAME) == entries


async def test_a_sign_of_life_while_it_is_watched_starts_the_watch_again(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    clock = Clock()
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts:
        await parts.store(NAME, request(1, "a"))
        lost = _sweeper(parts, clock)
        for sequence in (2, 3, 4):
            await _age(parts, NAME, LIMIT_MS)
            await lost.sweep()
            clock.now += 0.9 * WATCH_SECONDS
            await parts.store(NAME, request(sequence, "x"))
        await _age(parts, NAME, LIMIT_MS)
        await lost.sweep()
        await parts.seals.keep_alive(NAME, A)
        clock.now += 2 * WATCH_SECONDS
        await lost.sweep()
        assert not await _sealed(parts)
        await parts.client.hset(parts.keys.kept_alive_of(NAME), parts.keys.stream(NAME).open_member, "1")
        await lost.sweep()
        assert not await _sealed(parts), "what it had been watched for before counts no more"
        clock.now += WATCH_SECONDS
        await lost.sweep()
        assert await _sealed(parts)


async def test_keep_alive_counts_as_a_sign_of_life(each_redis: RedisProcess, key_prefix: str) -> None:
    clock = Clock()
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts:
        await parts.store(NAME, Create())
        await parts.seals.keep_alive(NAME, A)
        await _age(parts, NAME, 10 * LIMIT_MS)
        lost = _sweeper(parts, clock)
        for _ in range(3):
            await lost.sweep()
            clock.now += WATCH_SECONDS
        assert not await _sealed(parts)


async def test_a_keep_alive_is_forgotten_with_its_stream(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix, partitions=1) as parts:
        kept = parts.keys.kept_alive(0)
        deleted, cancelled, ended = (StreamName("s", "m", r) for r in ("deleted", "cancelled", "ended"))
        for name in (deleted, cancelled, ended):
            await parts.store(name, request(1, "a"))
            await parts.seals.keep_alive(name, A)
        assert await parts.client.hlen(kept) == 3
        await parts.streams.delete(deleted)
        await parts.store(cancelled, LOST)
        assert await parts.client.hkeys(kept) == [parts.keys.stream(ended).open_member.encode()]
        await parts.store(ended, request(2, finish=FinishReason.STOP))
        # An append tells the hash nothing; the next KeepAlives of others clean up.
        await parts.store(NAME, Create())
        await parts.seals.keep_alive(NAME, A)
        await parts.seals.keep_alive(NAME, A)
        assert await parts.client.hkeys(kept) == [parts.keys.stream(NAME).open_member.encode()]


async def test_the_seal_itself_looks_once_more(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:

        async def seal(last_id: str, at_least_ms: int) -> bool:
            silence = Silence(last_id, at_least_ms)
            made = await parts.seals.seal(NAME, Sealer.LOST, FinishReason.ERROR, LOST.fragment, silence)
            return made is not None and made.sealed_now

        assert not await seal("1-1", 0), "absent"
        assert await parts.entries(NAME) == []
        await parts.store(NAME, request(1, "a"))
        state = await parts.streams.inspect(NAME)
        assert state is not None
        seen = f"{state.incarnation}-1"
        await parts.store(NAME, request(2, "b"))
        assert not await seal(seen, 0), "an append came in between"
        now = f"{state.incarnation}-2"
        assert not await seal(f"{state.incarnation + 1}-2", 0), "another stream of the same name"
        assert not await seal(now, 5_000), "not silent for long enough"
        await _age(parts, NAME, 5_000)
        await parts.seals.keep_alive(NAME, A)
        assert not await seal(now, 5_000), "a sign of life came in between"
        await parts.client.hset(parts.keys.kept_alive_of(NAME), parts.keys.stream(NAME).open_member, "1")
        assert await seal(now, 5_000)
        assert not await seal(now, 5_000), "sealed already"
        assert len(await parts.entries(NAME)) == 3


async def test_every_silent_stream_is_found_in_however_many_calls(each_redis: RedisProcess, key_prefix: str) -> None:
    clock = Clock()
    names = [StreamName("s", "m", str(i)) for i in range(2 * STREAMS_A_CALL + 1)]
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts:
        await asyncio.gather(*(parts.store(name, request(1, "a")) for name in names))
        for name in names[1:]:
            await _age(parts, name, LIMIT_MS)
        lost = _sweeper(parts, clock)
        await lost.sweep()
        clock.now += WATCH_SECONDS
        await lost.sweep()
        assert [await _sealed(parts, name) for name in names] == [False, *[True] * (len(names) - 1)]


@dataclass
class _CutShort(OpenStreams):
    """Redis goes away when one partition is looked at."""

    real: OpenStreams
    cut_at: int | None = None

    async def sweep(self, partition: int, after_member: str, at_most: int) -> Sweep:
        if partition == self.cut_at:
            raise RedisUnavailable("gone")
        return await self.real.sweep(partition, after_member, at_most)


def _one_a_partition(parts: LogParts) -> list[StreamName]:
    names = {parts.keys.partition_of(str(i)): StreamName(str(i), "m") for i in range(99)}
    return [names[partition] for partition in range(PARTITIONS)]


async def _lost_everywhere(parts: LogParts) -> list[StreamName]:
    """Have a stream in each partition whose producer was not heard of for too long."""
    names = _one_a_partition(parts)
    for name in names:
        await parts.store(name, request(1, "a"))
        await _age(parts, name, LIMIT_MS)
    return names


async def test_a_sweep_that_is_cut_short_forgets_nothing(each_redis: RedisProcess, key_prefix: str) -> None:
    clock = Clock()
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts:
        name = _one_a_partition(parts)[0]
        await parts.store(name, request(1, "a"))
        await _age(parts, name, LIMIT_MS)
        open_streams = _CutShort(parts.open_streams)
        lost = _sweeper(parts, clock, open_streams)
        await lost.sweep()
        clock.now += WATCH_SECONDS
        open_streams.cut_at = 0
        await lost.sweep()
        assert not await _sealed(parts, name)
        open_streams.cut_at = None
        await lost.sweep()
        assert await _sealed(parts, name), "it was watched for long enough"


async def _sweep_twice(parts: LogParts, open_streams: OpenStreams | None = None) -> None:
    clock = Clock()
    lost = _sweeper(parts, clock, open_streams)
    await lost.sweep()
    clock.now += WATCH_SECONDS
    await lost.sweep()


async def test_a_partition_that_is_away_keeps_no_other_from_being_swept(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts:
        names = await _lost_everywhere(parts)
        await _sweep_twice(parts, _CutShort(parts.open_streams, cut_at=0))
        assert [await _sealed(parts, name) for name in names] == [False, True, True]
        await _sweep_twice(parts)
        assert await _sealed(parts, names[0])


async def test_an_index_that_is_none_concerns_its_partition_alone(
    each_redis: RedisProcess, key_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts:
        names = await _lost_everywhere(parts)
        await parts.client.set(parts.keys.open_index(0), "no index", px=60_000)
        await _sweep_twice(parts)
        assert [await _sealed(parts, name) for name in names] == [False, True, True]
    assert "partition 0 can't be swept" in caplog.text


async def test_an_entry_that_no_bridge_wrote_concerns_its_stream_alone(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    names = [StreamName("s", "m", response) for response in "abc"]
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts:
        for name in names:
            await parts.store(name, request(1, "a"))
            await _age(parts, name, LIMIT_MS)
        await parts.client.xadd(parts.keys.stream(names[0]).log, {"not": "ours"})
        await _sweep_twice(parts)
        assert [await _sealed(parts, name) for name in names[1:]] == [True, True]
        assert await parts.client.zrange(parts.keys.stream(names[0]).open_index, 0, -1) == [b"s:m:a"]


@dataclass
class _Overtaken(OpenStreams):
    """Something is heard of the stream right after it was looked at."""

    real: OpenStreams
    hear: Callable[[], Awaitable[object]]

    async def sweep(self, partition: int, after_member: str, at_most: int) -> Sweep:
        found = await self.real.sweep(partition, after_member, at_most)
        if found.streams:
            await self.hear()
        return found


@pytest.mark.parametrize("by_append", [True, False])
async def test_an_append_that_overtakes_the_seal_wins(
    each_redis: RedisProcess, key_prefix: str, by_append: bool
) -> None:
    clock = Clock()
    async with log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts:

        async def hear() -> None:
            if clock.now > Clock.now:
                await (parts.store(NAME, request(2, "b")) if by_append else parts.seals.keep_alive(NAME, A))

        await parts.store(NAME, request(1, "a"))
        await _age(parts, NAME, LIMIT_MS)
        lost = _sweeper(parts, clock, _Overtaken(parts.open_streams, hear))
        await lost.sweep()
        clock.now += WATCH_SECONDS
        await lost.sweep()
        assert not await _sealed(parts)
