"""Random histories of a consumer group on real Redis, compared step by step with a model.

Three members read, recover and settle with receipts new, stale and foreign; they crash, leave and join again, while the
log grows and is trimmed. Nobody sleeps: the test's clock makes deliveries older than they are.
"""

import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llmbridge.errors import Trimmed
from llmbridge.log.appending import Appended
from llmbridge.log.groups import GroupPlace, GroupPolicy, GroupSettings, History, Receipt, Room, Share, Verb
from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, Producer
from tests.support.log_parts import DAY_MS, LogParts, log_parts
from tests.support.model_group import (
    FOREIGN,
    NOTE_GAP,
    Fate,
    Fit,
    Given,
    Go,
    Grow,
    Join,
    ModelEntry,
    ModelGroup,
    ModelLetter,
    Pass,
    Read,
    Settle,
    Trim,
)
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import keys_without_expiry

DEADLINE_MS = 600_000
MAX_DELIVERIES = 3
SETTINGS = GroupSettings(DEADLINE_MS, MAX_DELIVERIES)
# Consumers with nothing pending are forgotten at once.
POLICY = GroupPolicy(GroupSettings(1, 1), forget_ms=0, dead_letter_retention_ms=2 * DAY_MS, max_dead_letters=100_000)
MEMBERS = ("a", "b", "c")
# Redis names the bystander first.
GROUP, BYSTANDER = "g", "f"
# Of the times in dead letters: Redis counts in whole ms, and looks at its clock more than once in a script.
CLOCK_SLACK_MS = 100

# Makes a pending delivery older, with all that is noted of its times. Where the entry is gone it can't: Redis 7.0 drops
# those from what is pending when they are claimed.
AGE = """
local entry = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)[1]
redis.call('XCLAIM', KEYS[1], ARGV[1], entry[2], 0, ARGV[2],
  'IDLE', entry[3] + tonumber(ARGV[3]), 'RETRYCOUNT', entry[4], 'JUSTID')
for i, name in ipairs(redis.call('HKEYS', KEYS[2])) do
  if string.match(name, ':(.*)$') == ARGV[2] then
    redis.call('HINCRBY', KEYS[2], name, '-' .. ARGV[3])
  end
end
"""

WHO = st.sampled_from(MEMBERS)
PICKS = st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0] * 8 + [-1, 1, FOREIGN])), min_size=1, max_size=4).map(
    tuple
)
ROOMS = st.builds(Room, st.integers(0, 5), st.integers(0, 8), st.sampled_from([0, 19, 20, 40, 80]), st.booleans())
STEPS = st.one_of(
    st.builds(Grow, st.integers(1, 4), st.sampled_from([10, 20, 30])),
    st.builds(Grow, st.just(1), st.just(10)),
    st.builds(Read, WHO, st.integers(0, 4), st.lists(st.integers(0, 3), max_size=2).map(tuple)),
    st.builds(Fit, WHO, ROOMS, st.just(False)),
    st.builds(Fit, WHO, ROOMS, st.just(True)),
    st.builds(Fit, WHO, ROOMS, st.just(True)),
    st.builds(Settle, st.sampled_from(Verb), PICKS),
    st.builds(Settle, st.sampled_from(Verb), PICKS),
    st.builds(Pass, st.sampled_from([DEADLINE_MS // 2, DEADLINE_MS, 2 * DEADLINE_MS]), st.none() | st.integers(0, 6)),
    st.builds(Go, WHO, st.booleans()),
    st.builds(Join, st.sampled_from(History)),
    st.builds(Trim, st.integers(1, 6)),
    st.just(NOTE_GAP),
)


@pytest.fixture
async def parts(each_redis: RedisProcess, key_prefix: str) -> AsyncIterator[LogParts]:
    async with log_parts(each_redis.url, key_prefix, groups=POLICY) as running:
        yield running
    assert await keys_without_expiry(each_redis.url, key_prefix) == []


@dataclass
class GroupHistory:
    """Carries steps out on both sides and compares."""

    parts: LogParts
    name: StreamName = field(default_factory=lambda: StreamName(secrets.token_hex(6), "m"))
    model: ModelGroup = field(default_factory=lambda: ModelGroup(DEADLINE_MS, MAX_DELIVERIES))
    began_ms: float = field(default_factory=lambda: time.time() * 1_000)
    # Every delivery there was, and those that the members know of.
    receipts: list[Receipt] = field(default_factory=list)
    hands: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    fragments: dict[bytes, bytes] = field(default_factory=dict)
    incarnation: int = 0
    # Acknowledged by a read, which leaves what was noted of their times to the group's end.
    in_passing: set[bytes] = field(default_factory=set)
    # Of the partition's dead letters, which other examples fill too, those before have been seen.
    letters_seen: bytes = b"-"
    letters: int = 0

    @property
    def place(self) -> GroupPlace:
        return self.parts.place(self.name, GROUP)

    async def run(self, steps: list[Any]) -> None:
        await self._grow(Grow(2, 10))
        await self._grow(Grow(1, 10))
        await self._join(History.REFUSE)
        bystanders = self.parts.place(self.name, BYSTANDER)
        await self.parts.groups.join(bystanders, SETTINGS, History.REFUSE)
        await self.parts.groups.read(bystanders, "z", 1, ())
        async with self.parts.client.pubsub() as channel:
            await channel.subscribe(self.place.settings)
            for number, step in enumerate(steps):
                try:
                    await self._step(step)
                    await self._compare()
                    assert await _heard(channel) == self.model.told
                except Exception as error:
                    error.add_note(f"at step {number}: {step}; {self.model}")
                    raise
                self.model.told.clear()
            await self._drain()
        bystander: Any = await self.parts.client.xpending_range(self.place.log, BYSTANDER, "-", "+", 10)
        assert [(one["consumer"], one["times_delivered"]) for one in bystander] == [(b"z", 1)]

    async def _step(self, step: Any) -> None:
        match step:
            case Grow():
                await self._grow(step)
            case Read():
                await self._read(step)
            case Fit(recover=True):
                await self._recover(step.member, step.room)
            case Fit():
                await self._read_fitting(step.member, step.room)
            case Settle():
                await self._settle(step.verb, [self._receipt(*pick) for pick in step.picks])
            case Pass():
                pending = self.model.pending
                for entry in pending if step.pick is None else pending[step.pick : step.pick + 1]:
                    await self._age(entry, step.ms)
            case Go():
                await self._go(step)
            case Join():
                await self._join(step.history)
            case Trim():
                await self.parts.streams.trim(self.name, step.keep, None)
                self.model.trim(step.keep)
            case _:
                await self.parts.groups.note_gap(self.place)
                self.model.note_gap()

    async def _grow(self, step: Grow) -> None:
        first = self.model.last + 1
        fragment = str(first).encode().ljust(step.size, b".")
        made = await self.parts.appends.append(self.name, Append(first, step.records, None, Producer(0, "p"), fragment))
        assert isinstance(made, Appended)
        self.incarnation = made.cursor.incarnation
        entry_id = f"{self.incarnation}-{made.cursor.sequence}".encode()
        self.model.append(entry_id, step.records, len(fragment), made.cursor.checksum)
        self.fragments[entry_id] = fragment

    async def _read(self, step: Read) -> None:
        hand = self.hands[step.member]
        settled = [hand[-1 - pick % len(hand)] for pick in step.settled if hand]
        self.in_passing.update(settled)
        share = await self.parts.groups.read(self.place, step.member, step.at_most, settled)
        self._take(step.member, share, self.model.read(step.member, step.at_most, settled))

    async def _read_fitting(self, member: str, room: Room) -> None:
        share = await self.parts.groups.read_fitting(self.place, member, room)
        self._within([fields for _, fields in share.entries], room)
        self._take(member, share, self.model.read_fitting(member, room))

    def _take(self, member: str, share: Share, expected: Given) -> None:
        assert [entry_id for entry_id, _ in share.entries] == expected.ids
        assert (_sequence(share.delivered), share.pending) == (expected.delivered, expected.pending)
        assert share.gap is expected.gap
        for entry_id, fields in share.entries:
            self._taken(member, Receipt(entry_id, 1), fields)

    async def _recover(self, member: str, room: Room) -> None:
        deliveries = await self.parts.groups.recover(self.place, member, room)
        self._within([one.fields for one in deliveries], room)
        assert [(one.id, one.attempt) for one in deliveries] == self.model.recover(member, room)
        for one in deliveries:
            self._taken(member, one.receipt, one.fields)

    def _taken(self, member: str, receipt: Receipt, fields: list[bytes]) -> None:
        assert dict(zip(fields[::2], fields[1::2], strict=True))[b"b"] == self.fragments[receipt.id]
        self.receipts.append(receipt)
        self.hands[member].append(receipt.id)

    @staticmethod
    def _within(entries: list[list[bytes]], room: Room) -> None:
        weights = [dict(zip(fields[::2], fields[1::2], strict=True)) for fields in entries]
        records, size = sum(int(one[b"n"]) for one in weights), sum(len(one[b"b"]) for one in weights)
        assert len(entries) <= room.entries
        assert (records <= room.records and size <= room.size) or (room.at_least_one and len(entries) == 1)

    def _receipt(self, pick: int, stray: int) -> Receipt:
        if stray == FOREIGN or not self.receipts:
            entries = self.model.entries
            return Receipt(entries[-1 - pick % len(entries)].id, 1)
        receipt = self.receipts[-1 - pick % len(self.receipts)]
        return Receipt(receipt.id, max(1, receipt.attempt + stray))

    async def _settle(self, verb: Verb, receipts: list[Receipt]) -> None:
        done = await self.parts.groups.settle(self.place, verb, receipts, f"by {verb}")
        assert done == self.model.settle(verb, receipts, f"by {verb}")

    async def _go(self, step: Go) -> None:
        self.hands[step.member].clear()
        mine = [entry for entry in self.model.pending if entry.consumer == step.member]
        assert await self.parts.groups.pending_of(self.place, step.member, 100) == {
            entry.id: entry.attempts for entry in mine
        }
        if step.clean:
            await self._settle(Verb.REQUEUE, [Receipt(entry.id, entry.attempts) for entry in mine])
        await self.parts.groups.leave(self.place, step.member)
        self.model.leave(step.member)

    async def _join(self, history: History) -> None:
        lost = self.model.join(history)
        if lost is None:
            joined = await self.parts.groups.join(self.place, SETTINGS, history)
            incarnation = 0 if history is History.IGNORE else self.incarnation
            assert joined == (SETTINGS, incarnation, len(self.model.pending))
        else:
            with pytest.raises(Trimmed) as refused:
                await self.parts.groups.join(self.place, SETTINGS, history)
            assert Cursor.parse(refused.value.metadata["earliest_cursor"]).sequence == lost

    async def _age(self, entry: ModelEntry, ms: int) -> None:
        if entry.in_log:
            await self.parts.client.eval(AGE, 2, self.place.log, self.place.settings, GROUP, entry.id, ms)
            self.model.age(entry, ms)

    async def _compare(self) -> None:
        """Redis has every entry where the model has it."""
        self.model.check()
        place = self.place
        look = self.parts.client.pipeline()
        look.xpending_range(place.log, GROUP, "-", "+", 1_000)
        look.xinfo_consumers(place.log, GROUP)
        look.xrange(place.log, f"({self.incarnation}-{self.model.delivered}")
        look.xrange(place.dead_letters, self.letters_seen)
        look.hgetall(place.settings)
        look.pttl(place.settings)
        look.pttl(place.log)
        look.xinfo_groups(place.log)
        pending, consumers, ahead, letters, noted, settings_ttl, log_ttl, groups = await look.execute()
        assert [(one["message_id"], one["consumer"].decode(), one["times_delivered"]) for one in pending] == [
            (entry.id, entry.consumer, entry.attempts) for entry in self.model.pending
        ]
        assert [one["time_since_delivered"] >= DEADLINE_MS for one in pending] == [
            self.model.overdue(entry) for entry in self.model.pending
        ]
        assert {one["name"].decode() for one in consumers} == self.model.consumers
        assert [entry_id for entry_id, _ in ahead] == [entry.id for entry in self.model.of(Fate.NEVER_DELIVERED)]
        (group,) = (one for one in groups if one["name"] == GROUP.encode())
        assert _sequence(group["last-delivered-id"]) == self.model.delivered
        assert (noted[b"deadline_ms"], noted[b"max_deliveries"]) == (b"%d" % DEADLINE_MS, b"%d" % MAX_DELIVERIES)
        assert (b"gap" in noted) is self.model.gap
        noted_ids = {name.partition(b":")[2] for name in noted if b":" in name}
        assert noted_ids <= self.in_passing.union(entry.id for entry in self.model.pending)
        assert settings_ttl > log_ttl
        await self._compare_letters(letters)

    async def _compare_letters(self, found: list[Any]) -> None:
        mine = [letter for _, letter in found if letter[b"stream"].decode() == self.place.stream]
        if found:
            self.letters_seen = b"(" + found[-1][0]
            assert await self.parts.client.pttl(self.place.dead_letters) > POLICY.dead_letter_retention_ms
        expected = self.model.letters[self.letters :]
        self.letters += len(mine)
        assert len(mine) == len(expected)
        now_ms = time.time() * 1_000
        for letter, wanted in zip(mine, expected, strict=True):
            assert {name.decode(): letter[name] for name in letter if name not in {b"first", b"last", b"stream"}} == {
                "id": wanted.id,
                "checksum": wanted.checksum.encode(),
                "group": GROUP.encode(),
                "consumer": wanted.consumer.encode(),
                "attempts": b"%d" % wanted.attempts,
                "reason": wanted.reason.encode(),
            }
            self._compare_times(wanted, int(letter[b"first"]), int(letter[b"last"]), now_ms)

    def _compare_times(self, wanted: ModelLetter, first_ms: int, last_ms: int, now_ms: float) -> None:
        earliest, latest = self.began_ms - CLOCK_SLACK_MS, now_ms + CLOCK_SLACK_MS
        assert first_ms <= last_ms <= latest
        for age_ms, told_ms in ((wanted.first_age_ms, first_ms), (wanted.last_age_ms, last_ms)):
            if age_ms is not None:
                assert earliest - age_ms <= told_ms <= latest - age_ms

    async def _drain(self) -> None:
        """Whatever was not acknowledged is delivered again or becomes a dead letter, until nothing is left."""
        await self._join(History.ACCEPT)
        await self._read(Read("a", 1_000, ()))
        plenty = Room(entries=1_000, records=10_000, size=1_000_000, at_least_one=True)
        for _ in range(MAX_DELIVERIES + 1):
            # Every deadline passes, also of entries that are gone.
            await self.parts.client.hset(self.place.settings, "deadline_ms", 0)
            for entry in self.model.pending:
                entry.idle_ms = DEADLINE_MS
            await self._recover("b", plenty)
            await self.parts.client.hset(self.place.settings, "deadline_ms", DEADLINE_MS)
            await self._compare()
            await self._settle(Verb.ACKNOWLEDGE, [Receipt(entry.id, 9) for entry in self.model.pending[::2]])
        await self._compare()
        assert self.model.pending == self.model.of(Fate.NEVER_DELIVERED) == []


async def _heard(channel: Any) -> list[bytes]:
    """What was published so far: what Redis answers to a ping comes after it."""
    await channel.ping()
    heard: list[bytes] = []
    while True:
        message = await channel.get_message(timeout=5)
        assert message is not None
        if message["type"] == "pong":
            return heard
        if message["type"] == "message":
            heard.append(message["data"])


def _sequence(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[2])


# Examples share Redis, not the log: each has a stream of its own. Finding a smaller example of a failure would take
# minutes; the failure's note says which step it was.
@settings(
    max_examples=80,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=15, max_size=50))
async def test_redis_does_what_the_model_does(parts: LogParts, steps: list[Any]) -> None:
    await GroupHistory(parts).run(steps)
