"""Dead letters in Redis: what they keep, how many and how long, and the way back, on each Redis."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from llmbridge.log.dead_letters import StoredLetter
from llmbridge.log.groups import GroupPlace, GroupPolicy, GroupSettings, History, Receipt, Room, Verb
from llmbridge.model.names import StreamName
from tests.support.calls import PATIENCE_SECONDS
from tests.support.log_parts import DAY_MS, LogParts, log_parts
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import keys_without_expiry

NAME = StreamName("s", "m", "r")
DEADLINE_MS = 60_000
SETTINGS = GroupSettings(DEADLINE_MS, 2)
PLENTY = Room(entries=100, records=1_000, size=1_000_000, at_least_one=True)
KEPT_MS = 3_600_000
HELD_UP_MS = 50
"""Redis looks at its clock more than once in a script, and may be kept waiting in between."""
AT_MOST = 50
POLICY = GroupPolicy(SETTINGS, forget_ms=300_000, dead_letter_retention_ms=KEPT_MS, max_dead_letters=AT_MOST)
NODE_ENTRIES = 100
"""Redis trims whole nodes of so many entries where it may be inexact."""


@pytest.fixture
async def parts(each_redis: RedisProcess, key_prefix: str) -> AsyncIterator[LogParts]:
    async with log_parts(each_redis.url, key_prefix, groups=POLICY) as running:
        yield running
    assert await keys_without_expiry(each_redis.url, key_prefix) == []


@dataclass(frozen=True)
class Work:
    """A group with entries at a member."""

    parts: LogParts
    place: GroupPlace
    partition: int
    receipts: list[Receipt]

    async def bury(self, *receipts: Receipt) -> None:
        done = await self.parts.groups.settle(self.place, Verb.BURY, receipts, "bad luck")
        assert done == [True] * len(receipts)

    async def letters(self) -> list[StoredLetter]:
        return await self.parts.letters.page(self.partition, "", 10_000)

    async def pending(self) -> Any:
        """What the group waits for, without the times; nothing where there is no such group."""
        groups: Any = await self.parts.client.xinfo_groups(self.place.log)
        if self.place.group.encode() not in [group["name"] for group in groups]:
            return None
        found: Any = await self.parts.client.xpending_range(self.place.log, self.place.group, "-", "+", 1_000)
        return [(one["message_id"], one["consumer"], one["times_delivered"]) for one in found]


async def work_on(parts: LogParts, entries: int) -> Work:
    await parts.append_tokens(NAME, *[1] * entries)
    place = parts.place(NAME, "g")
    await parts.groups.join(place, SETTINGS, History.REFUSE)
    share = await parts.groups.read(place, "a", entries, ())
    receipts = [Receipt(entry_id, 1) for entry_id, _ in share.entries]
    return Work(parts, place, parts.keys.partition_of(NAME.session_id), receipts)


async def redis_ms(parts: LogParts) -> int:
    seconds, micros = await parts.client.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def test_a_letter_keeps_whose_it_was_and_what_happened(parts: LogParts) -> None:
    began = await redis_ms(parts)
    work = await work_on(parts, 2)
    delivered = await redis_ms(parts)
    rejected, hopeless = work.receipts
    await work.bury(rejected)
    [letter] = await work.letters()
    entries = await parts.entries(NAME)
    assert letter == StoredLetter(
        id=letter.id,
        stream="s:m:r",
        entry=rejected.id.decode(),
        checksum=entries[0].cursor_checksum,
        group="g",
        consumer="a",
        attempts=1,
        reason="bad luck",
        first_delivered_ms=letter.first_delivered_ms,
        last_delivered_ms=letter.last_delivered_ms,
    )
    assert began <= letter.first_delivered_ms == letter.last_delivered_ms <= delivered + HELD_UP_MS

    await parts.groups.settle(work.place, Verb.REQUEUE, [hopeless])
    again = await parts.groups.recover(work.place, "b", PLENTY)
    assert [(one.id, one.attempt) for one in again] == [(hopeless.id, 2)]
    await parts.groups.settle(work.place, Verb.REQUEUE, [again[0].receipt])
    assert await parts.groups.recover(work.place, "c", PLENTY) == []
    _, letter = await work.letters()
    assert (letter.entry, letter.consumer, letter.attempts) == (hopeless.id.decode(), "b", 2)
    assert letter.reason == "max_deliveries"
    assert began <= letter.first_delivered_ms <= delivered + HELD_UP_MS
    assert await work.pending() == []


async def test_a_redriven_entry_is_delivered_at_once_and_as_if_new(parts: LogParts) -> None:
    work = await work_on(parts, 2)
    await work.bury(*work.receipts)
    first, second = await work.letters()
    async with parts.client.pubsub() as channel:
        await channel.subscribe(work.place.settings)
        assert (await channel.get_message(timeout=PATIENCE_SECONDS) or {})["type"] == "subscribe"
        assert await parts.letters.redrive(work.place, first)
        told = (await channel.get_message(timeout=PATIENCE_SECONDS) or {})["data"]
    assert told == b"requeued " + work.receipts[0].id
    assert await work.letters() == [second]
    assert await work.pending() == [(work.receipts[0].id, b"a", 0)]
    [delivery] = await parts.groups.recover(work.place, "b", PLENTY)
    assert (delivery.id, delivery.attempt) == (work.receipts[0].id, 1)
    # Buried again it still knows when it was delivered first.
    await work.bury(delivery.receipt)
    _, again = await work.letters()
    assert (again.entry, again.attempts, again.first_delivered_ms) == (first.entry, 1, first.first_delivered_ms)
    assert again.last_delivered_ms >= again.first_delivered_ms


async def test_redriving_counts_attempts_up_to_the_limit_again(parts: LogParts) -> None:
    work = await work_on(parts, 1)
    await work.bury(*work.receipts)
    assert await parts.letters.redrive(work.place, (await work.letters())[0])
    for attempt in (1, 2):
        [delivery] = await parts.groups.recover(work.place, "b", PLENTY)
        assert delivery.attempt == attempt
        await parts.groups.settle(work.place, Verb.REQUEUE, [delivery.receipt])
    assert await parts.groups.recover(work.place, "b", PLENTY) == []
    assert [(one.attempts, one.reason) for one in await work.letters()] == [(2, "max_deliveries")]


async def trimmed(work: Work) -> None:
    await work.parts.streams.trim(NAME, 1, None)


async def deleted_from_the_log(work: Work) -> None:
    await work.parts.client.xdel(work.place.log, work.receipts[0].id)


async def stream_made_anew(work: Work) -> None:
    await work.parts.streams.delete(NAME)
    await work_on(work.parts, 3)


async def group_deleted(work: Work) -> None:
    assert await work.parts.group_states.delete(work.place)


async def group_made_anew(work: Work) -> None:
    await group_deleted(work)
    await work.parts.groups.join(work.place, SETTINGS, History.REFUSE)


async def group_made_anew_and_at_it(work: Work) -> None:
    await group_made_anew(work)
    assert len((await work.parts.groups.read(work.place, "z", 1, ())).entries) == 1


@pytest.mark.parametrize(
    "ruin",
    [trimmed, deleted_from_the_log, stream_made_anew, group_deleted, group_made_anew, group_made_anew_and_at_it],
    ids=lambda ruin: ruin.__name__,
)
async def test_what_is_gone_stays_a_letter(parts: LogParts, ruin: Callable[[Work], Awaitable[None]]) -> None:
    work = await work_on(parts, 3)
    await work.bury(work.receipts[0])
    await ruin(work)
    letters, pending = await work.letters(), await work.pending()
    assert not await parts.letters.redrive(work.place, letters[0])
    assert await work.letters() == letters
    assert await work.pending() == pending


async def test_the_log_itself_may_be_gone(parts: LogParts) -> None:
    work = await work_on(parts, 1)
    await work.bury(*work.receipts)
    await parts.streams.delete(NAME)
    letters = await work.letters()
    assert not await parts.letters.redrive(work.place, letters[0])
    assert await work.letters() == letters
    assert await parts.client.exists(work.place.log) == 0


async def test_the_same_letter_twice(parts: LogParts) -> None:
    work = await work_on(parts, 1)
    await work.bury(*work.receipts)
    [letter] = await work.letters()
    assert await parts.letters.redrive(work.place, letter)
    assert not await parts.letters.redrive(work.place, letter)
    assert await work.pending() == [(work.receipts[0].id, b"a", 0)]
    assert await work.letters() == []
    assert await parts.letters.find(work.partition, letter.id) is None


async def test_deleted_letters_are_gone(parts: LogParts) -> None:
    work = await work_on(parts, 3)
    await work.bury(*work.receipts)
    one, two, three = await work.letters()
    assert await parts.letters.delete(work.partition, [one.id, three.id, "1-1"]) == 2
    assert await parts.letters.delete(work.partition, [one.id]) == 0
    assert await work.letters() == [two]
    assert not await parts.letters.redrive(work.place, one)
    assert await work.pending() == []


async def test_letters_are_bounded_and_expire(parts: LogParts) -> None:
    work = await work_on(parts, 500)
    for receipt in work.receipts:
        await work.bury(receipt)
    letters = await work.letters()
    assert AT_MOST <= len(letters) <= AT_MOST + NODE_ENTRIES
    assert letters[-1].entry == work.receipts[-1].id.decode()
    kept_ms = await parts.client.pttl(work.place.dead_letters)
    assert KEPT_MS - 10_000 <= kept_ms < DAY_MS
    pages = [await parts.letters.page(work.partition, "", 20)]
    while len(pages[-1]) == 20:
        pages.append(await parts.letters.page(work.partition, pages[-1][-1].id, 20))
    assert [letter for page in pages for letter in page] == letters
