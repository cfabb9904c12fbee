"""The subscriptions of one call, in groups of those that stand at the same place: what one gets, all get, in one piece.

A cohort moves as one reader does; it counts credit, and knows nothing of the call's responses.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from llmbridge.hub.attached import HELD_AFTER_SECONDS, Ending, State
from llmbridge.hub.connections import Connection
from llmbridge.hub.tail import Found
from llmbridge.subscribe.place import Place


class Cohort:
    """Members at one place of one stream. All of them have credit, or, where it is `held`, none has.

    It is `queued` when the call will look at it, and `busy` while a task of the call finds its place or reads the log,
    or will: then it needs not be told of changes. `found` is what comes next, if that is known: `from_log` when
    it takes one of the places that bound how much is in memory.
    """

    __slots__ = (
        "_queue",
        "_recipients",
        "_spent_at",
        "attached",
        "busy",
        "found",
        "from_log",
        "held",
        "members",
        "place",
        "queued",
        "retry",
        "sent_at",
        "sent_bytes",
        "siblings",
    )

    def __init__(self, place: Place, queue: "Callable[[Cohort], None]") -> None:
        self.place = place
        self.members: dict[int, Subscription] = {}
        self.siblings: list[Cohort] = []
        """The cohorts of the same stream that are not held, itself among them."""
        self.attached = False
        self.held = False
        self.queued = False
        self.busy = False
        self.found: Found | None = None
        self.from_log = False
        self.retry: asyncio.TimerHandle | None = None
        self.sent_at = 0.0
        self.sent_bytes = 0
        self._queue = queue
        # What was sent when the first member's credit is used up, or less.
        self._spent_at = math.inf
        self._recipients: bytes | None = None

    def changed(self) -> None:
        """Have the call look at it: its stream has news."""
        if not (self.queued or self.busy or self.held):
            self.queued = True
            self._queue(self)

    def recipients(self, encode: Callable[[Sequence[int]], bytes]) -> bytes:
        """Give the encoded numbers of its members."""
        if self._recipients is None:
            self._recipients = encode(tuple(self.members))
        return self._recipients

    def add(self, subscription: "Subscription") -> None:
        """Take a member in."""
        subscription.cohort = self
        subscription.spent_at = self.sent_bytes + subscription.credit
        self.members[subscription.number] = subscription
        self._spent_at = min(self._spent_at, subscription.spent_at)
        self._recipients = None

    def remove(self, subscription: "Subscription") -> None:
        """Let a member go, with what it has left. It stays the member's cohort until it has another."""
        del self.members[subscription.number]
        subscription.credit = subscription.spent_at - self.sent_bytes
        subscription.taken_at = max(subscription.taken_at, self.sent_at)
        self._recipients = None

    def add_credit(self, subscription: "Subscription", size: int) -> bool:
        """Give a member more credit; tells whether it has some now."""
        subscription.spent_at += size
        if not self.held:
            return True
        self._spent_at = min(self._spent_at, subscription.spent_at)
        return subscription.spent_at > self.sent_bytes

    def take(self, found: Found, now: float) -> bool:
        """Move on: all members have it. Tells whether the credit of some is used up."""
        place = self.place
        place.cursor = found.cursor
        place.ended = found.ended
        self.found = None
        self.sent_at = now
        self.sent_bytes += len(found.message)
        return self.sent_bytes >= self._spent_at

    def spent(self) -> "list[Subscription]":
        """Give the members whose credit is used up."""
        spent = [member for member in self.members.values() if member.spent_at <= self.sent_bytes]
        self._spent_at = min(
            (member.spent_at for member in self.members.values() if member.spent_at > self.sent_bytes),
            default=math.inf,
        )
        return spent


class Call(Protocol):
    """What a subscription knows of its call."""

    @property
    def held_seconds(self) -> float:
        """For how long the last response has been waiting to be taken; 0 if none is."""

    @property
    def beaten_at(self) -> float:
        """When the last heartbeat was sent, by the event loop's clock in seconds."""


class Subscription:
    """One of the readers that share a call; an Attendee of the registry. Its number tells it from the others.

    `credit` is how many bytes it may still get while it is in no cohort; in one, `spent_at` says it, by what the
    cohort has sent.
    """

    __slots__ = ("_call", "_finish", "cohort", "connection", "credit", "held_at", "number", "spent_at", "taken_at")

    def __init__(
        self,
        number: int,
        credit: float,
        cohort: Cohort,
        call: Call,
        finish: "Callable[[Subscription, Ending], None]",
    ) -> None:
        self.number = number
        self.credit = credit
        self.spent_at = 0.0
        self.cohort = cohort
        self.connection: Connection | None = None
        self.taken_at = asyncio.get_running_loop().time()
        self.held_at = 0.0
        self._call = call
        self._finish = finish

    @property
    def cursor(self) -> str:
        """The cursor of the last record that was handed to it."""
        return self.cohort.place.cursor_text

    @property
    def lag(self) -> int:
        """How many records come after the cursor, as far as the tail knows."""
        return self.cohort.place.lag

    @property
    def last_taken_at(self) -> float:
        """When it last got a message, a heartbeat of its call included, or was made."""
        return max(self.taken_at, self.cohort.sent_at, self._call.beaten_at)

    @property
    def held_seconds(self) -> float:
        """For how long it has been without credit, or its call's last response has been waiting to be taken."""
        without_credit = asyncio.get_running_loop().time() - self.held_at if self.cohort.held else 0.0
        return max(without_credit, self._call.held_seconds)

    @property
    def state(self) -> State:
        """What it is doing at this moment."""
        if not self.cohort.attached:
            return State.ATTACHING
        if self.cohort.held or self._call.held_seconds >= HELD_AFTER_SECONDS:
            return State.HELD
        return State.LIVE if self.lag == 0 and not self.cohort.busy else State.CATCHING_UP

    def beat(self) -> None:
        """Do nothing: the call beats, for all."""

    def drain(self) -> None:
        """Do nothing: the call drains, with all."""

    def end(self, ending: Ending) -> None:
        """End with an error; its call and the others go on."""
        self._finish(self, ending)
