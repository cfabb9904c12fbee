"""Appends that share a script call: each has its own outcome, and none can hurt another."""

import asyncio

import pytest
import redis.asyncio

from llmbridge.errors import BridgeError, Completed, Fenced, LimitExceeded, RedisUnavailable, SequenceConflict
from llmbridge.log.appending import MAX_BYTES_A_CALL, MAX_STREAMS_A_CALL, Appended
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, FinishReason
from llmbridge.sequencing import Decision
from tests.support.append_cases import CASES, OLDER, A, request
from tests.support.log_parts import DAY_MS, NO_LIMITS, LogParts, log_parts
from tests.support.model_log import ModelLog, Outcome
from tests.support.redis_process import RedisProcess

STOP = FinishReason.STOP


async def _script_calls(client: "redis.asyncio.Redis") -> int:
    stats = await client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


async def test_every_case_of_the_table_at_once(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        models = [ModelLog() for _ in CASES]
        names = [StreamName(case.name, "m") for case in CASES]
        for case, model, name in zip(CASES, models, names, strict=True):
            for step in case.before:
                model.store(step)
                await parts.store(name, step)
        outcomes = await asyncio.gather(
            *(parts.append(name, case.request) for case, name in zip(CASES, names, strict=True))
        )
        assert outcomes == [case.outcome for case in CASES]
        for case, model, name in zip(CASES, models, names, strict=True):
            if case.outcome.decision is Decision.APPEND:
                model.store(case.request)
            assert await parts.entries(name) == model.entries


async def test_appends_that_wait_together_go_in_few_calls(each_redis: RedisProcess, key_prefix: str) -> None:
    count = 4 * MAX_STREAMS_A_CALL
    async with log_parts(each_redis.url, key_prefix) as parts:
        await parts.append(StreamName("warm", "up"), request(0, "t"))
        before = await _script_calls(parts.client)
        outcomes = await asyncio.gather(
            *(parts.append(StreamName(f"s{i % 50}", "m", str(i)), request(1, "t")) for i in range(count))
        )
        assert {outcome.decision for outcome in outcomes} == {Decision.APPEND}
        assert await _script_calls(parts.client) - before <= 6


async def test_appends_of_one_stream_that_wait_together_keep_their_order(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    name = StreamName("s", "m")
    texts = [chr(ord("a") + i % 26) for i in range(300)]
    async with log_parts(each_redis.url, key_prefix) as parts:
        numbered = [request(i + 1, text) for i, text in enumerate(texts)]
        outcomes = await asyncio.gather(*(parts.append(name, one) for one in numbered))
        assert [outcome.answer[0] for outcome in outcomes] == list(range(1, 301))
        assert [entry.fragment for entry in await parts.entries(name)] == [one.fragment for one in numbered]


async def test_large_appends_are_spread_over_calls(each_redis: RedisProcess, key_prefix: str) -> None:
    size = MAX_BYTES_A_CALL // 4
    async with log_parts(each_redis.url, key_prefix) as parts:
        before = await _script_calls(parts.client)
        large = Append(1, 1, None, A, b"x" * size)
        outcomes = await asyncio.gather(*(parts.append(StreamName(str(i), "m"), large) for i in range(12)))
        assert {outcome.decision for outcome in outcomes} == {Decision.APPEND}
        assert await _script_calls(parts.client) - before >= 3


async def _refused_amid(parts: LogParts, name: StreamName, asked: Append) -> BaseException:
    """Append it between two others in one call; those must be served."""
    before, after = StreamName("before", "m"), StreamName("after", "m")
    outcomes = await asyncio.gather(
        parts.appends.append(before, request(0, "x")),
        parts.appends.append(name, asked),
        parts.appends.append(after, request(0, "y")),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], Appended)
    assert isinstance(outcomes[2], Appended)
    assert isinstance(outcomes[1], BaseException)
    for other in (before, after):
        assert (await parts.entries(other))[-1].last == outcomes[0].cursor.sequence
    return outcomes[1]


async def test_one_that_is_refused_does_not_hurt_the_others(each_redis: RedisProcess, key_prefix: str) -> None:
    name = StreamName("s", "m")
    async with log_parts(each_redis.url, key_prefix, NO_LIMITS) as parts:
        await parts.store(name, request(1, "a"))
        assert isinstance(await _refused_amid(parts, name, request(2, "b", by=OLDER)), Fenced)
        assert isinstance(await _refused_amid(parts, name, request(1, "?")), SequenceConflict)
        await parts.store(name, request(2, finish=STOP))
        assert isinstance(await _refused_amid(parts, name, request(3, "c")), Completed)
        too_long = request(1, "a" * 8)
        huge = Append(1, 10**9, None, A, too_long.fragment)
        assert isinstance(await _refused_amid(parts, StreamName("long", "m"), huge), LimitExceeded)


async def test_one_that_breaks_the_script_does_not_hurt_the_others(each_redis: RedisProcess, key_prefix: str) -> None:
    name = StreamName("s", "m")
    async with log_parts(each_redis.url, key_prefix) as parts:
        # Somebody else's key in the place of the log.
        await parts.client.set(parts.keys.stream(name).log, "x", px=60_000)
        error = await _refused_amid(parts, name, request(1, "a"))
        assert not isinstance(error, BridgeError), "a defect is not passed off as a refusal"
        assert "WRONGTYPE" in str(error)


async def test_every_script_is_sent_again_where_redis_forgot_it(each_redis: RedisProcess, key_prefix: str) -> None:
    name = StreamName("s", "m")
    async with log_parts(each_redis.url, key_prefix, partitions=1) as parts:
        forget = parts.client.script_flush
        await forget()
        await parts.streams.create(name, None, None, DAY_MS)
        await forget()
        await parts.seals.keep_alive(name, A)
        await forget()
        both = await asyncio.gather(parts.append(name, request(1, "a")), parts.append(name, request(2, "b")))
        assert [outcome.decision for outcome in both] == [Decision.APPEND] * 2
        await forget()
        assert [stream.name for stream in (await parts.open_streams.sweep(0, "", 10)).streams] == [name]
        await forget()
        assert await parts.streams.trim(name, 1, None) == (2, 1)
        await forget()
        state = await parts.streams.inspect(name)
        assert state is not None
        assert state.last_sequence == 2
        await forget()
        await asyncio.gather(*(parts.seals.keep_alive(name, A) for _ in range(5)))
        await forget()
        assert await parts.streams.delete(name)


async def test_a_caller_that_leaves_takes_nobody_along(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        names = [StreamName("s", "m", str(i)) for i in range(9)]
        calls = [asyncio.create_task(parts.append(name, request(1, "a"))) for name in names]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(end, Outcome) for end in ended] == [False, True] * 4 + [False]
        # Who left may repeat it: it had been carried all the same, or is now, but once.
        for name in names:
            await parts.append(name, request(1, "a"))
            assert [entry.last for entry in await parts.entries(name)] == [1]


async def test_what_still_waits_when_the_bridge_stops_was_not_sent(each_redis: RedisProcess, key_prefix: str) -> None:
    name = StreamName("s", "m")
    async with log_parts(each_redis.url, key_prefix) as parts:
        await parts.append(name, request(1, "a"))
    with pytest.raises(RedisUnavailable, match="stopped"):
        await parts.appends.append(name, request(2, "b"))
    with pytest.raises(RedisUnavailable, match="stopped"):
        await parts.seals.keep_alive(name, A)
