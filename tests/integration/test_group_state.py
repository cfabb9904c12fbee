"""How groups stand agrees with what redis-cli shows (XINFO GROUPS, XINFO CONSUMERS, XPENDING), on each Redis."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmbridge.log.group_state import GroupState, NoGroup
from llmbridge.log.groups import GroupPlace, GroupSettings, History, Receipt, Verb
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason
from tests.support.calls import PATIENCE_SECONDS
from tests.support.log_parts import LogParts, log_parts
from tests.support.model_log import Create
from tests.support.redis_process import RedisProcess

NAME = StreamName("s", "m", "r")
AS_IT_IS = GroupSettings(0, 0)


@pytest.fixture
async def parts(each_redis: RedisProcess, key_prefix: str) -> AsyncIterator[LogParts]:
    async with log_parts(each_redis.url, key_prefix) as running:
        yield running


async def state_of(parts: LogParts, place: GroupPlace) -> GroupState:
    state = await parts.group_states.state(place)
    assert isinstance(state, GroupState)
    return state


async def check_against_redis(parts: LogParts, place: GroupPlace) -> GroupState:
    """Read a group's state and compare it with Redis' own view."""
    began = time.monotonic()
    groups: Any = await parts.client.xinfo_groups(place.log)
    [group] = [one for one in groups if one["name"] == place.group.encode()]
    consumers: Any = await parts.client.xinfo_consumers(place.log, place.group)
    pending: Any = await parts.client.xpending_range(place.log, place.group, "-", "+", 10_000)
    state = await state_of(parts, place)
    elapsed_ms = (time.monotonic() - began) * 1000 + 2
    assert (state.pending, len(state.consumers)) == (group["pending"], group["consumers"])
    assert state.pending == len(pending)
    oldest_ms = max((entry["time_since_delivered"] for entry in pending), default=0)
    assert oldest_ms <= state.oldest_pending_ms <= (oldest_ms + elapsed_ms if pending else 0)
    told = {one.name.encode(): one for one in state.consumers}
    assert {name: one.pending for name, one in told.items()} == {one["name"]: one["pending"] for one in consumers}
    for one in consumers:
        assert one["idle"] <= told[one["name"]].idle_ms <= one["idle"] + elapsed_ms
    if place.stream:
        assert state.delivered_sequence == int(group["last-delivered-id"].split(b"-")[1])
    return state


async def test_a_groups_state_agrees_with_redis(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    assert await parts.group_states.state(place) is None
    await parts.append_tokens(NAME, 1, 2, 1, 1, 3)
    assert await parts.group_states.state(place) == NoGroup(8)
    await parts.groups.join(place, GroupSettings(1_000, 3), History.REFUSE)
    nothing = await check_against_redis(parts, place)
    assert nothing == GroupState(GroupSettings(1_000, 3), 0, 8, 0, 0, ())
    share = await parts.groups.read(place, "a", 3, ())
    await parts.groups.read(place, "b", 1, ())
    state = await check_against_redis(parts, place)
    assert (state.pending, state.lag, state.delivered_sequence) == (4, 3, 5)
    assert {(one.name, one.pending) for one in state.consumers} == {("a", 3), ("b", 1)}
    first = Receipt(share.entries[0][0], 1)
    assert await parts.groups.settle(place, Verb.ACKNOWLEDGE, [first]) == [True]
    state = await check_against_redis(parts, place)
    assert (state.pending, state.lag, state.delivered_sequence) == (3, 3, 5)


@pytest.mark.parametrize("idle", [(7_000, 90_000, 3_000), (90_000, 7_000, 3_000), (1, 2, 90_000)])
async def test_the_oldest_pending_entry_is_the_one_that_waits_longest(parts: LogParts, idle: tuple[int, ...]) -> None:
    place = parts.place(NAME, "g")
    await parts.append_tokens(NAME, 1, 1, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    share = await parts.groups.read(place, "a", 3, ())
    for (entry_id, _), ms in zip(share.entries, idle, strict=True):
        await parts.client.xclaim(place.log, "g", "a", 0, [entry_id], idle=ms, justid=True)
    state = await check_against_redis(parts, place)
    assert 90_000 <= state.oldest_pending_ms < 90_000 + PATIENCE_SECONDS * 1000


async def test_lag_counts_tokens_only(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await parts.store(NAME, Create())
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    assert (await check_against_redis(parts, place)).lag == 0
    await parts.append_tokens(NAME, 2, 3, finish=FinishReason.STOP)
    assert (await check_against_redis(parts, place)).lag == 5
    await parts.groups.read(place, "a", 1, ())
    state = await check_against_redis(parts, place)
    assert (state.lag, state.delivered_sequence) == (3, 2)
    await parts.groups.read(place, "a", 5, ())
    state = await check_against_redis(parts, place)
    assert (state.lag, state.delivered_sequence) == (0, 6)


async def test_pending_entries_that_are_gone_count_as_redis_counts_them(parts: LogParts) -> None:
    place = parts.place(NAME, "g")
    await parts.append_tokens(NAME, 1, 1, 1, 1)
    await parts.groups.join(place, AS_IT_IS, History.REFUSE)
    await parts.groups.read(place, "a", 3, ())
    await parts.streams.trim(NAME, 1, None)
    assert (await check_against_redis(parts, place)).pending == 3


async def test_a_group_that_somebody_else_made(parts: LogParts) -> None:
    await parts.append_tokens(NAME, 4)
    place = parts.place(NAME, "g")
    await parts.client.xgroup_create(place.log, b"g", "0")
    await parts.client.xgroup_create(place.log, b"\xff\n", "0")
    assert await parts.group_states.names(place.log) == ["g", "\ufffd\n"]
    state = await check_against_redis(parts, place)
    assert (state.settings, state.lag) == (GroupSettings(30_000, 5), 4)


async def test_names_of_a_logs_groups(parts: LogParts) -> None:
    log = parts.place(NAME, "").log
    assert await parts.group_states.names(log) is None
    await parts.append_tokens(NAME, 1)
    assert await parts.group_states.names(log) == []
    for group in ("b", "a"):
        await parts.groups.join(parts.place(NAME, group), AS_IT_IS, History.REFUSE)
    assert sorted(await parts.group_states.names(log) or ()) == ["a", "b"]


async def test_a_deleted_group_is_gone_and_its_members_are_told(parts: LogParts) -> None:
    place, other = parts.place(NAME, "g"), parts.place(NAME, "other")
    assert not await parts.group_states.delete(place)
    await parts.append_tokens(NAME, 1)
    assert not await parts.group_states.delete(place)
    for one in (place, other):
        await parts.groups.join(one, AS_IT_IS, History.REFUSE)
    async with parts.client.pubsub() as channel:
        await channel.subscribe(place.settings)
        assert (await channel.get_message(timeout=PATIENCE_SECONDS) or {})["type"] == "subscribe"
        assert await parts.group_states.delete(place)
        assert (await channel.get_message(timeout=PATIENCE_SECONDS) or {})["data"] == b"deleted"
    assert await parts.group_states.state(place) == NoGroup(1)
    assert await parts.client.exists(place.settings) == 0
    assert isinstance(await parts.group_states.state(other), GroupState)
    assert not await parts.group_states.delete(place)


async def events(parts: LogParts, log: str, first: int, last: int) -> None:
    """Add so numbered events to a part of the feed."""
    for n in range(first, last + 1):
        await parts.client.xadd(log, {"k": "created 1", "s": "s:m:r"}, id=f"{1_000 + n // 3}-{n}")


async def test_the_feeds_lag_counts_events(parts: LogParts) -> None:
    log = parts.keys.feed(1)
    place = GroupPlace(log, parts.keys.feed_group(1, "g"), parts.keys.dead_letters(1), "", "g")
    assert await parts.group_states.state(place) is None
    await events(parts, log, 1, 10)
    assert await parts.group_states.state(place) == NoGroup(10)
    await parts.groups.join(place, GroupSettings(500, 2), History.IGNORE)
    assert await check_against_redis(parts, place) == GroupState(GroupSettings(500, 2), 0, 10, 0, 0, ())
    # To a group that has got nothing, what was dropped is no lag.
    await parts.client.xtrim(log, minid="1001-3", approximate=False)
    assert (await check_against_redis(parts, place)).lag == 8
    await parts.groups.read(place, "a", 3, ())
    state = await check_against_redis(parts, place)
    assert (state.pending, state.lag, state.delivered_sequence) == (3, 5, 0)
    await parts.groups.read(place, "a", 100, ())
    assert (await check_against_redis(parts, place)).lag == 0
    await parts.client.xtrim(log, maxlen=0, approximate=False)
    assert (await check_against_redis(parts, place)).lag == 0
    await events(parts, log, 11, 12)
    assert (await check_against_redis(parts, place)).lag == 2
    await parts.client.delete(log)
