"""What a member of a stream's group and a watcher of the lifecycle feed have in common: look, hand out, settle, rest.

It goes on from its place whatever fails on the way: while Redis is away it waits, after a failure that nobody foresaw
it begins anew.
"""

import asyncio
import logging
from abc import abstractmethod
from collections import deque

from llmbridge.errors import AppendOutcomeUnknown, BridgeError, RedisUnavailable
from llmbridge.groups.outstanding import Batch, Outstanding
from llmbridge.hub.attached import Attached
from llmbridge.log.connections import pause_seconds
from llmbridge.log.groups import GroupLog, GroupPlace, Receipt, Verb

MOST_OUTSTANDING = 10_000
"""Entries that one member may hold, whatever its limits: so many can be told apart after a look was cut off."""

GOODBYE_SECONDS = 5.0
"""How long giving back may take; after it the deadline does the rest."""

logger = logging.getLogger(__name__)


class Consumer(Attached):
    """One call that shares a log with others. Subclasses say how it looks for more and what it waits for.

    `explicit`: the client settles. Else the bridge does: what the transport has taken is acknowledged with the next
    look.
    """

    def __init__(
        self, groups: GroupLog, consumer: str, explicit: bool, outstanding: Outstanding, heartbeat_seconds: float
    ) -> None:
        super().__init__(heartbeat_seconds)
        self._groups = groups
        self._consumer = consumer
        self._explicit = explicit
        self._outstanding = outstanding
        # Found and not handed out yet; then the one that the transport has.
        self._unsent: deque[Batch] = deque()
        self._in_hand: Batch | None = None
        # What the bridge is to acknowledge.
        self._settled: list[bytes] = []
        # Something happened that only a look can tell.
        self._rung = False
        self._failures = 0

    async def next_message(self) -> bytes | None:
        """As Attached.next_message; None once the group has ended."""
        if self._in_hand is not None:
            if not self._explicit:
                self._settled += self._in_hand.ids
            self._in_hand = None
        return await super().next_message()

    async def detach(self) -> None:
        """Give back what was not settled, then let go.

        What the client has stays its own where the bridge drains: it works on, and settles at another bridge.
        """
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._undeliver_strays()
                await self._settle_taken()
                for batch in self._unsent:
                    self._outstanding.drop(batch.place.log, batch.ids)
                    await self._groups.settle(batch.place, Verb.UNDELIVER, batch.receipts)
                if not self._explicit and self._in_hand is not None:
                    await self._groups.settle(self._in_hand.place, Verb.REQUEUE, self._in_hand.receipts)
                if not self._draining:
                    for place, receipts in self._outstanding.receipts().items():
                        await self._groups.settle(place, Verb.REQUEUE, receipts)
                await self._leave()
        except (BridgeError, TimeoutError) as error:
            logger.info("what %s did not settle goes to others when its deadline passes: %s", self._consumer, error)

    async def _advance(self) -> bytes | None:
        try:
            if not self._unsent and self._due():
                self._rung = False
                await self._look()
            self._failures = 0
        except AppendOutcomeUnknown as error:
            raise RedisUnavailable(error.message) from error
        except BridgeError:
            raise
        except Exception:
            self._failures += 1
            logger.exception("member %s begins anew", self._consumer)
            await asyncio.sleep(pause_seconds(self._failures))
            await self._begin_anew()
            return None
        if self._unsent:
            self._in_hand = self._unsent.popleft()
            return self._in_hand.message
        if not self._ended and not self._due():
            await self._rest()
        return None

    def _ring(self) -> None:
        """Have it look, for a reason of somebody else's."""
        self._rung = True
        self.poke()

    def _found(self, batch: Batch) -> None:
        """Have a batch handed out."""
        self._unsent.append(batch)
        if self._explicit:
            self._outstanding.add(batch)

    async def _bury(self, place: GroupPlace, receipt: Receipt) -> None:
        logger.error("entry %s of %s can't be decoded: it becomes a dead letter", receipt.id.decode(), place.log)
        await self._groups.settle(place, Verb.BURY, (receipt,), "undecodable")

    async def _undeliver_strays_of(self, place: GroupPlace) -> None:
        pending = await self._groups.pending_of(place, self._consumer, MOST_OUTSTANDING)
        known = self._outstanding.ids(place.log).union(self._settled)
        for batch in (*self._unsent, *([self._in_hand] if self._in_hand is not None else ())):
            known.update(batch.ids)
        strays = [Receipt(entry_id, attempt) for entry_id, attempt in pending.items() if entry_id not in known]
        if strays:
            await self._groups.settle(place, Verb.UNDELIVER, strays)

    @abstractmethod
    async def _undeliver_strays(self) -> None:
        """Take back what Redis gave this member in answers that never came here, if there may be any."""

    @abstractmethod
    def _due(self) -> bool:
        """Tell whether there is a reason to look."""

    @abstractmethod
    async def _look(self) -> None:
        """Find what there is, or that there will be nothing more (`_ended`)."""

    @abstractmethod
    async def _rest(self) -> None:
        """Wait until there may be a reason to look."""

    @abstractmethod
    async def _begin_anew(self) -> None:
        """Forget whatever may be wrong after a failure; the group's place is Redis' to know."""

    @abstractmethod
    async def _settle_taken(self) -> None:
        """Acknowledge `_settled`."""

    @abstractmethod
    async def _leave(self) -> None:
        """Have Redis forget this member where it has nothing pending, and stop listening."""
