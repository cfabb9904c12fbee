"""A watcher of the lifecycle feed: one member of a group over all partitions, which are so many logs.

The group's place is in Redis alone, in each partition. The feed's channels tell when something happened, the group's
channels when something was settled or given back; a look at all partitions, every CONSUMER_POLL_TIMEOUT at the latest,
finds what both missed. Knows nothing of how events are encoded.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Protocol, TypeVar

from llmbridge.errors import AppendOutcomeUnknown, GroupNotFound, RedisUnavailable
from llmbridge.groups.bells import Bell, Bells, Ring
from llmbridge.groups.consumer import MOST_OUTSTANDING, Consumer
from llmbridge.groups.outstanding import Batch, Outstanding
from llmbridge.groups.places import AckId
from llmbridge.log.feed import FeedLog, LifecycleEntry, number_of
from llmbridge.log.groups import Delivery, GroupLog, GroupPlace, GroupSettings, History, Room
from llmbridge.log.together import all_of
from llmbridge.model.records import MAX_SEQUENCE

PARTITIONS_AT_ONCE = 32
EVENTS_AT_ONCE = 256
BYTES_AT_ONCE = 1_048_576
"""What one look takes from Redis, and one message carries; the next goes on. Larger events come by themselves."""

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class FeedWire(Protocol):
    """Encodes what watchers are told."""

    def event(self, delivery: AckId, entry: LifecycleEntry) -> bytes:
        """Encode an event; events can be put one after the other. Raises ValueError where its completion is none."""

    def message(self, events: Iterable[bytes], missed: int) -> bytes:
        """Encode a message with events; without any it is a heartbeat."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What a watcher asks for. `wanted` has 0 for what it leaves to the group."""

    group: str
    consumer: str
    max_events: int
    wanted: GroupSettings


@dataclass(slots=True, eq=False)
class _Part:
    """A partition of the feed.

    `pending`: so many events of the whole group were not settled when it was read last. `unsure`: a read did not come
    to its end, so that Redis may have given this watcher what never came here.
    """

    number: int
    place: GroupPlace
    joined: bool = False
    pending: int = 0
    unsure: bool = False


_Take = Callable[[_Part, Room], Awaitable[int]]
"""Takes from a partition as much as has room, and tells how much that was."""


class Watcher(Consumer):
    """Gets its share of all events. Made and attached by Watchers; used by one task."""

    def __init__(
        self,
        places: Sequence[GroupPlace],
        watch: Watch,
        groups: GroupLog,
        feed: FeedLog,
        bells: Bells,
        wire: FeedWire,
        heartbeat_seconds: float,
        poll_seconds: float,
    ) -> None:
        super().__init__(groups, watch.consumer, True, Outstanding(watch.max_events, MAX_SEQUENCE), heartbeat_seconds)
        self._parts = [_Part(number, place) for number, place in enumerate(places)]
        self._feed = feed
        self._bells = bells
        self._wire = wire
        self._poll_seconds = poll_seconds
        # What the group has, once a partition told; a partition that begins later gets the same.
        self._settings = watch.wanted
        self._agreed = False
        self._listening = ExitStack()
        # Partitions that may have new events, or none so far; and those that may have overdue ones. In the order in
        # which they are to be looked at.
        self._news: dict[_Part, None] = {}
        self._overdue: dict[_Part, None] = {}
        self._poll_at = 0.0
        self._missed = 0

    async def attach(self) -> None:
        """Make or join the group where there are events. Raises GroupSettingsDiffer, or Unavailable."""
        for part in self._parts:
            self._listening.enter_context(self._bells.listen(part.place.log, partial(self._hear_of_news, part)))
            self._listening.enter_context(self._bells.listen(part.place.settings, partial(self._hear, part)))
        self._news = dict.fromkeys(self._parts)
        await self._join_begun()

    async def detach(self) -> None:
        """As Consumer.detach."""
        try:
            await super().detach()
        finally:
            self._listening.close()

    async def _advance(self) -> bytes | None:
        """Hand out all that a look found in one message.

        What waited here for its turn, while another watcher was given what came later, could be overtaken by it: a
        stream's completed event must not be handed out before its created one.
        """
        events = await super()._advance()
        if events is None:
            return None
        together = [events]
        size = len(events)
        while self._unsent and (size := size + len(self._unsent[0].message)) <= BYTES_AT_ONCE:
            together.append(self._unsent.popleft().message)
        missed, self._missed = self._missed, 0
        return self._wire.message(together, missed)

    def _heartbeat(self) -> bytes:
        return self._wire.message((), 0)

    def _due(self) -> bool:
        if self._rung or self._loop.time() >= self._poll_at:
            return True
        return not self._outstanding.full and bool(self._news or self._overdue)

    async def _rest(self) -> None:
        await self._wait(self._poll_at - self._loop.time())

    async def _look(self) -> None:
        if self._loop.time() >= self._poll_at:
            self._poll_at = self._loop.time() + self._poll_seconds
            self._news |= dict.fromkeys(self._parts)
            self._overdue |= dict.fromkeys(part for part in self._parts if part.pending)
            if self._outstanding.full:
                # Somebody may have settled at another bridge, and the bell been lost.
                await all_of([self._reach(part, partial(self._recount, part), None) for part in self._joined()])
        await self._join_begun()
        # What is overdue comes first, or a flood of new events would keep it waiting.
        await self._take(self._overdue, self._recover)
        await self._take(self._news, self._read)

    async def _take(self, parts: dict[_Part, None], take: _Take) -> None:
        """Take from partitions, sharing what room there is among them, until there is something to hand out."""
        while not self._unsent and not self._outstanding.full:
            records = self._outstanding.room(EVENTS_AT_ONCE, BYTES_AT_ONCE).records
            joined = (part for part in parts if part.joined)
            some = list(islice(joined, min(records, PARTITIONS_AT_ONCE)))
            if not some:
                return
            each = min(records, EVENTS_AT_ONCE) // len(some)
            room = Room(each, each, BYTES_AT_ONCE // len(some), at_least_one=True)
            for part in some:
                del parts[part]
            try:
                taken = await all_of(
                    [self._reach(part, partial(self._take_from, part, room, take), 0) for part in some]
                )
            except BaseException:
                parts |= dict.fromkeys(some)
                raise
            parts |= dict.fromkeys(part for part, count in zip(some, taken, strict=True) if count)

    async def _reach(self, part: _Part, work: Callable[[], Awaitable[_Result]], otherwise: _Result) -> _Result:
        """Do something in a partition. Where its server is away, the next look at all partitions does.

        The others go on, once it is known how the group was made.
        """
        try:
            return await work()
        except (RedisUnavailable, AppendOutcomeUnknown) as error:
            if not self._agreed:
                raise
            logger.debug("%s can't be reached: %s", part.place.log, error)
            return otherwise

    async def _take_from(self, part: _Part, room: Room, take: _Take) -> int:
        await self._undeliver_strays_in(part)
        part.unsure = True
        taken = await take(part, room)
        part.unsure = False
        return taken

    async def _recover(self, part: _Part, room: Room) -> int:
        try:
            deliveries = await self._groups.recover(part.place, self._consumer, room)
        except GroupNotFound:
            await self._raise_if_deleted(part)
            return 0
        await self._give(part, deliveries)
        return len(deliveries)

    async def _read(self, part: _Part, room: Room) -> int:
        try:
            share = await self._groups.read_fitting(part.place, self._consumer, room)
        except GroupNotFound:
            await self._raise_if_deleted(part)
            return 0
        part.pending = share.pending + len(share.entries)
        if share.entries:
            missed = number_of(share.entries[0][0]) - number_of(share.delivered) - 1
            if missed > 0:
                logger.warning("group %s missed %d events of %s", part.place.group, missed, part.place.log)
                self._missed += missed
        await self._give(part, [Delivery(entry_id, fields, 1) for entry_id, fields in share.entries])
        return len(share.entries)

    async def _give(self, part: _Part, deliveries: Sequence[Delivery]) -> None:
        """Have events handed out; bury what is none."""
        for attempt, same in groupby(deliveries, lambda delivery: delivery.attempt):
            events: dict[bytes, bytes] = {}
            for delivery in same:
                try:
                    entry = LifecycleEntry.parse(delivery.id, delivery.fields)
                    events[delivery.id] = self._wire.event(AckId(part.number, delivery.receipt), entry)
                except ValueError:
                    await self._bury(part.place, delivery.receipt)
            if events:
                weights = tuple((1, len(event)) for event in events.values())
                self._found(Batch(b"".join(events.values()), part.place, tuple(events), attempt, weights))

    async def _join_begun(self) -> None:
        """Join the group where a partition has begun since, making it where there is none.

        The first partition, one that has the group if any does, decides on the settings for the others.
        """
        absent = [part for part in self._news if not part.joined]
        for part in absent:
            del self._news[part]
        try:
            begun = await all_of([self._reach(part, partial(self._feed.begun, part.place), False) for part in absent])
            waiting = [part for part, has_begun in zip(absent, begun, strict=True) if has_begun]
            if waiting and not self._agreed:
                known = await all_of([self._feed.group_settings(part.place) for part in waiting])
                first = next((part for part, made in zip(waiting, known, strict=True) if made), waiting[0])
                await self._join(first)
                waiting.remove(first)
            await all_of([self._reach(part, partial(self._join, part), None) for part in waiting])
        except BaseException:
            self._news |= dict.fromkeys(absent)
            raise

    async def _join(self, part: _Part) -> None:
        joined = await self._groups.join(part.place, self._settings, History.IGNORE)
        if joined is None:
            return
        self._settings = joined.settings
        self._agreed = True
        self._poll_seconds = min(self._poll_seconds, self._settings.ack_deadline_ms / 1000)
        part.joined, part.pending = True, joined.pending
        self._news[part] = None
        if part.pending:
            self._overdue[part] = None

    async def _raise_if_deleted(self, part: _Part) -> None:
        """Raise GroupNotFound unless the partition is gone, group and all, because nothing happened in it for long."""
        if await self._feed.begun(part.place):
            raise GroupNotFound(part.place.group)
        part.joined, part.pending = False, 0
        self._outstanding.keep(part.place.log, ())

    async def _recount(self, part: _Part) -> None:
        """Hold no longer what is not pending any more."""
        try:
            pending = await self._groups.pending_of(part.place, self._consumer, MOST_OUTSTANDING)
        except GroupNotFound:
            await self._raise_if_deleted(part)
        else:
            self._outstanding.keep(part.place.log, pending)

    async def _undeliver_strays(self) -> None:
        await all_of([self._reach(part, partial(self._undeliver_strays_in, part), None) for part in self._joined()])

    async def _undeliver_strays_in(self, part: _Part) -> None:
        if part.unsure:
            try:
                await self._undeliver_strays_of(part.place)
            except GroupNotFound:
                await self._raise_if_deleted(part)
            part.unsure = False

    async def _begin_anew(self) -> None:
        self._poll_at = 0.0
        self._overdue = dict.fromkeys(self._joined())

    async def _settle_taken(self) -> None:
        """Nothing: the client settles."""

    async def _leave(self) -> None:
        await all_of([self._groups.leave(part.place, self._consumer) for part in self._joined()])

    def _hear_of_news(self, part: _Part, bell: Bell) -> None:
        del bell
        self._news[part] = None
        if not self._outstanding.full:
            self.poke()

    def _hear(self, part: _Part, bell: Bell) -> None:
        dropped = self._outstanding.drop(part.place.log, bell.ids)
        if bell.ring is not Ring.SETTLED:
            if part.joined:
                self._overdue[part] = None
            self._news[part] = None
        if dropped or bell.ring is not Ring.SETTLED:
            self._ring()

    def _joined(self) -> list[_Part]:
        return [part for part in self._parts if part.joined]
