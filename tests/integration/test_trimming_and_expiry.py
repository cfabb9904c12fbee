"""What a stream keeps, and how long: length limits, retention, and the expiry of all that is beside it."""

from dataclasses import replace
from typing import Any

import pytest

from llmbridge.errors import LimitExceeded
from llmbridge.model.cursor import NO_CHECKSUM
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, FinishReason, Sealer
from llmbridge.produce.lost import LONGEST_PAUSE_MS
from llmbridge.sequencing import Decision
from tests.support.append_cases import NEWER, A, request
from tests.support.log_parts import DAY_MS, NO_LIMITS, LogParts, log_parts, outcome_of
from tests.support.model_log import Create, Outcome, Seal
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import keys_without_expiry

NAME = StreamName("s", "m", "r")
STOP = FinishReason.STOP
CANCEL = Seal(Sealer.CANCEL, FinishReason.CANCELLED)
SOON_MS = 30_000
"""Less than what is to be seen renewed, and longer than a busy machine needs to come to it."""


def _batches(*sizes: int) -> list[str]:
    return ["t" * size for size in sizes]


async def _kept(parts: LogParts, name: StreamName = NAME) -> list[tuple[int, int]]:
    return [(entry.first, entry.last) for entry in await parts.entries(name)]


async def _append(parts: LogParts, *texts: str, name: StreamName = NAME) -> None:
    for text in texts:
        await parts.store(name, request(0, text))


@pytest.mark.parametrize(
    ("limit", "sizes", "kept"),
    [
        (3, (1, 1, 1), [(1, 1), (2, 2), (3, 3)]),
        (3, (1, 1, 1, 1, 1), [(3, 3), (4, 4), (5, 5)]),
        (1, (1, 1, 1), [(3, 3)]),
        (4, (3, 3, 3), [(4, 6), (7, 9)]),
        (3, (3, 3, 3), [(7, 9)]),
        (2, (5,), [(1, 5)]),
        (2, (1, 5), [(2, 6)]),
        (2, (5, 1), [(1, 5), (6, 6)]),
        (2, (5, 2), [(6, 7)]),
    ],
)
async def test_a_length_limit_counts_tokens_and_drops_whole_entries(
    each_redis: RedisProcess, key_prefix: str, limit: int, sizes: tuple[int, ...], kept: list[tuple[int, int]]
) -> None:
    async with log_parts(each_redis.url, key_prefix, replace(NO_LIMITS, max_length=limit)) as parts:
        await _append(parts, *_batches(*sizes))
        assert await _kept(parts) == kept
        # The completion is no token: it pushes nothing out.
        await parts.store(NAME, request(0, finish=STOP))
        end = sum(sizes) + 1
        assert await _kept(parts) == [*kept, (end, end)]


async def test_a_seal_by_the_bridge_pushes_no_token_out(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix, replace(NO_LIMITS, max_length=2)) as parts:
        await _append(parts, *_batches(1, 1, 1))
        await parts.store(NAME, CANCEL)
        assert await _kept(parts) == [(2, 2), (3, 3), (4, 4)]


async def test_tokens_that_come_with_their_end_are_counted(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix, replace(NO_LIMITS, max_length=2)) as parts:
        await _append(parts, *_batches(1, 1, 1))
        await parts.store(NAME, request(0, "t", STOP))
        assert await _kept(parts) == [(3, 3), (4, 5)]


async def test_the_header_stays_until_something_is_trimmed(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix, replace(NO_LIMITS, max_length=2)) as parts:
        await parts.store(NAME, Create())
        state = await parts.streams.inspect(NAME)
        assert state is not None
        assert (state.first_sequence, state.last_sequence, state.entries, state.cursor) == (1, 0, 0, "")
        await _append(parts, *_batches(1, 1))
        assert await _kept(parts) == [(1, 0), (1, 1), (2, 2)]
        state = await parts.streams.inspect(NAME)
        assert state is not None
        assert (state.first_sequence, state.last_sequence, state.entries) == (1, 2, 2)
        await _append(parts, "t")
        assert await _kept(parts) == [(2, 2), (3, 3)]


async def test_a_streams_own_limit_goes_before_the_default_and_lasts(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix, replace(NO_LIMITS, max_length=1)) as parts:
        await parts.streams.create(NAME, None, 3, DAY_MS)
        await _append(parts, *_batches(1, 1, 1, 1, 1))
        await parts.store(NAME, request(6, "t", by=NEWER))
        assert await _kept(parts) == [(4, 4), (5, 5), (6, 6)]


async def test_a_repeat_of_trimmed_records_is_a_duplicate_without_a_checksum(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    async with log_parts(each_redis.url, key_prefix, replace(NO_LIMITS, max_length=1)) as parts:
        await _append(parts, "ab", "c", "d")
        # Nothing is left to compare with.
        for text in ("ab", "??"):
            outcome = await parts.append(NAME, request(1, text))
            assert (outcome, outcome.checksum) == (Outcome(Decision.DUPLICATE, (2,)), NO_CHECKSUM)
        outcome = await parts.append(NAME, request(3, "cd"))
        assert outcome == Outcome(Decision.DUPLICATE, (4,))
        assert outcome.vouched_by(await parts.entries(NAME))
        assert outcome.checksum != NO_CHECKSUM


async def test_a_stream_may_not_grow_beyond_the_limit_but_can_be_ended(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    async with log_parts(each_redis.url, key_prefix, replace(NO_LIMITS, max_stream_tokens=3)) as parts:
        await _append(parts, "ab")
        for first, text, value in ((3, "cd", "4"), (0, "cd", "4"), (1, "abcd", "4"), (3, "c" * 9, "11")):
            with pytest.raises(LimitExceeded) as refused:
                await outcome_of(parts.produce, NAME, request(first, text))
            assert refused.value.metadata == {"limit": "max_stream_tokens", "maximum": "3", "value": value}
        assert await _kept(parts) == [(1, 2)]
        await parts.store(NAME, request(3, "c"))
        with pytest.raises(LimitExceeded):
            await parts.append(NAME, request(4, "d", STOP))
        assert (await parts.append(NAME, request(3, "c"))).decision is Decision.DUPLICATE
        await parts.store(NAME, request(4, finish=STOP))
        assert await _kept(parts) == [(1, 2), (3, 3), (4, 4)]
        with pytest.raises(LimitExceeded):
            await parts.append(StreamName("other", "m"), request(1, "abcd"))
        assert await parts.entries(StreamName("other", "m")) == []
        # The completion is no token.
        await parts.store(StreamName("full", "m"), request(1, "abc", STOP))


async def test_a_stream_from_before_the_limit_was_lowered_can_be_ended(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    async with log_parts(each_redis.url, key_prefix) as before:
        await before.store(NAME, request(1, "abcde"))
    async with log_parts(each_redis.url, key_prefix, replace(NO_LIMITS, max_stream_tokens=3)) as parts:
        with pytest.raises(LimitExceeded):
            await parts.append(NAME, request(6, "f", STOP))
        await parts.store(NAME, request(6, finish=STOP))


@pytest.mark.parametrize("step", [request(0, "t"), request(0, "t", STOP), request(0, "t", by=NEWER), CANCEL])
async def test_what_is_stored_renews_a_short_retention(
    each_redis: RedisProcess, key_prefix: str, step: Append | Seal
) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        await parts.streams.create(NAME, 60_000, None, DAY_MS)
        await _append(parts, "t")
        log = parts.keys.stream(NAME).log
        assert await parts.client.pexpire(log, SOON_MS)
        await parts.store(NAME, step)
        assert SOON_MS < await parts.client.pttl(log) <= 60_000


@pytest.mark.parametrize("step", [request(2, "t"), request(2, "t", STOP), request(2, "t", by=NEWER), CANCEL])
@pytest.mark.parametrize("own", [None, 3_600_000])
async def test_what_is_stored_first_in_a_minute_renews_a_long_retention_for_all_of_it(
    each_redis: RedisProcess, key_prefix: str, step: Append | Seal, own: int | None
) -> None:
    minute_ms = 60_000
    async with log_parts(each_redis.url, key_prefix) as parts:
        if own:
            await parts.streams.create(NAME, own, None, DAY_MS)
        await _append(parts, "t")
        log = parts.keys.stream(NAME).log
        # As if the last entry were an hour old, and as if it were a minute younger, by a clock that was set back since.
        for offset_ms in (-3_600_000, minute_ms):
            found: Any = await parts.client.xrevrange(log, count=1)
            entry_id, fields = found[0]
            time_ms, rest = fields[b"i"].split(b" ", 1)
            async with parts.client.pipeline(transaction=True) as surgery:
                surgery.delete(log)
                surgery.xadd(log, fields | {b"i": b"%d %s" % (int(time_ms) + offset_ms, rest)}, id=entry_id)
                surgery.pexpire(log, SOON_MS)
                await surgery.execute()
            if offset_ms < 0:
                kept: Any = await parts.client.dump(log)
            await parts.store(NAME, step)
            assert 0 <= await parts.client.pttl(log) - (own or DAY_MS) <= minute_ms
            await parts.client.restore(log, SOON_MS, kept, replace=True)
            await parts.client.zadd(parts.keys.stream(NAME).open_index, {parts.keys.stream(NAME).open_member: 0})


async def test_whenever_a_token_is_stored_it_lives_for_its_retention(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        for number in range(1, 20):
            await parts.store(NAME, request(number, "t"))
            assert await parts.client.pttl(parts.keys.stream(NAME).log) >= DAY_MS


async def test_keep_alive_renews_retention(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        for name, own in ((NAME, 60_000), (StreamName("s", "m"), None)):
            await parts.streams.create(name, own, None, DAY_MS)
            log = parts.keys.stream(name).log
            assert await parts.client.pexpire(log, SOON_MS)
            await parts.seals.keep_alive(name, A)
            longer_ms = 0 if own else 60_000
            assert (own or DAY_MS) - 20_000 < await parts.client.pttl(log) <= (own or DAY_MS) + longer_ms


async def test_an_expired_stream_begins_anew(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        await _append(parts, "abc")
        before = await parts.streams.inspect(NAME)
        await parts.client.pexpire(parts.keys.stream(NAME).log, 0)
        assert await parts.streams.inspect(NAME) is None
        assert await parts.append(NAME, request(4, "d")) == Outcome(Decision.GAP, (1,))
        await _append(parts, "x")
        after = await parts.streams.inspect(NAME)
        assert before is not None
        assert after is not None
        assert after.incarnation > before.incarnation


async def test_streams_that_begin_shortly_after_each_other_are_told_apart(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        made = [await parts.streams.create(StreamName("s", "m", str(i)), None, None, DAY_MS) for i in range(9)]
        # In microseconds: a stream may be deleted and begun anew within the same millisecond.
        assert any(incarnation % 1_000 for incarnation in made)


async def test_everything_that_is_written_expires(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        for step in (Create(), request(1, "t"), request(1, "t", STOP), CANCEL):
            name = StreamName(f"{type(step).__name__} {step}", "m")
            await parts.store(name, step)
            if isinstance(step, Create):
                await parts.seals.keep_alive(name, A)
        await _append(parts, "t")
        await parts.streams.trim(NAME, 1, None)
        assert await parts.client.exists(parts.keys.kept_alive_of(StreamName(f"Create {Create()}", "m")))
    assert await keys_without_expiry(each_redis.url, key_prefix) == []


async def test_an_index_lives_as_long_as_the_longest_lived_stream_it_names(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    async with log_parts(each_redis.url, key_prefix, partitions=1) as parts:
        await parts.streams.create(StreamName("s", "long"), 9 * DAY_MS, None, DAY_MS)
        await parts.streams.create(StreamName("s", "short"), 2_000, None, DAY_MS)
        named = parts.keys.stream(StreamName("s", "short"))
        for index in (named.open_index, named.session_index):
            assert await parts.client.pttl(index) > 8 * DAY_MS


async def test_an_index_outlives_a_short_lived_stream_until_a_sweep_renews_it(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    between_sweeps_ms = LONGEST_PAUSE_MS * 3
    async with log_parts(each_redis.url, key_prefix, partitions=1) as parts:
        await parts.streams.create(NAME, 60_000, None, DAY_MS)
        named = parts.keys.stream(NAME)
        indexes = (named.open_index, named.session_index)
        for _ in range(2):
            # Appends renew the stream's own expiry only.
            await _append(parts, "t")
            for index in indexes:
                assert await parts.client.pttl(index) > await parts.client.pttl(named.log) + between_sweeps_ms
                await parts.client.pexpire(index, SOON_MS)
            await parts.open_streams.sweep(0, "", 100)


@pytest.mark.parametrize("step", [request(2, finish=STOP), CANCEL])
async def test_a_seal_renews_the_session_index_since_no_sweep_will(
    each_redis: RedisProcess, key_prefix: str, step: Append | Seal
) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        await _append(parts, "t")
        named = parts.keys.stream(NAME)
        await parts.client.pexpire(named.session_index, SOON_MS)
        await parts.store(NAME, step)
        assert await parts.client.pttl(named.session_index) > DAY_MS - 60_000


async def test_a_sweep_renews_the_indexes_and_drops_what_is_gone(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix, partitions=1) as parts:
        gone = StreamName("s", "gone")
        await _append(parts, "t")
        await _append(parts, "t", name=gone)
        await parts.seals.keep_alive(gone, A)
        await parts.client.delete(parts.keys.stream(gone).log)
        named = parts.keys.stream(NAME)
        for index in (named.open_index, named.session_index):
            assert await parts.client.pexpire(index, SOON_MS)
        sweep = await parts.open_streams.sweep(0, "", 100)
        assert [stream.name for stream in sweep.streams] == [NAME]
        for index in (named.open_index, named.session_index):
            assert await parts.client.pttl(index) > DAY_MS - 60_000
        assert await parts.client.zrange(named.open_index, 0, -1) == [named.open_member.encode()]
        assert await parts.client.hlen(parts.keys.kept_alive(0)) == 0


@pytest.mark.parametrize("long_lived", [0, 3])
async def test_a_session_that_never_rests_does_not_pile_up_dead_streams(
    each_redis: RedisProcess, key_prefix: str, long_lived: int
) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        for i in range(long_lived):
            await _append(parts, "t", name=StreamName("s", f"kept {i}"))
        index = parts.keys.stream(NAME).session_index
        for i in range(200):
            name = StreamName("s", "m", str(i))
            await _append(parts, "t", name=name)
            await parts.client.delete(parts.keys.stream(name).log)
        assert await parts.client.zcard(index) < 40 + long_lived
        alive = {parts.keys.stream(StreamName("s", f"kept {i}")).session_member.encode() for i in range(long_lived)}
        assert alive <= set(await parts.client.zrange(index, 0, -1))
