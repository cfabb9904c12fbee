"""One call on which many streams are read: subscriptions come and go, and each response carries what is ready for all.

It decides whose turn it is and what goes into a response. How a stream is read is `place`'s to know, who gets it
together `cohorts`', and what has to be waited for `loader`'s. An idle subscription costs no task and no future.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmbridge.errors import BridgeError, Draining, InvalidField
from llmbridge.hub.attached import Attached, Ending
from llmbridge.hub.connections import Attachment, Caller, Connections
from llmbridge.model.names import StreamName
from llmbridge.subscribe.cohort import Cohort, Subscription
from llmbridge.subscribe.cohorts import Cohorts
from llmbridge.subscribe.deliveries import RESPONSE_BYTES, Deliveries
from llmbridge.subscribe.loader import Loader
from llmbridge.subscribe.place import Place
from llmbridge.subscribe.start import Start

MOST_UNTOLD = 1_024
"""Ends and the like that may wait to be told. Then the client is not listened to until it has taken some."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A subscription that begins. `credit_bytes` 0: any number."""

    number: int
    name: StreamName
    start: Start
    credit_bytes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A subscription that can't begin, and why."""

    number: int
    error: BridgeError


@dataclass(frozen=True, slots=True)
class Change:
    """What a client changes in its set of subscriptions, in this order."""

    drops: Sequence[int]
    starts: Sequence[Begin | Refused]
    credits: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Event:
    """Something to tell, encoded; afterwards these numbers are free."""

    delivery: bytes
    freed: tuple[int, ...] = ()


class Multiplexer(Attached):
    """Serves one call. Made by Subscriptions; `next_message` is used by one task, `apply` and `room` by another."""

    def __init__(
        self,
        connections: Connections,
        place_of: Callable[[StreamName], Place],
        deliveries: Deliveries,
        caller: Caller,
        heartbeat_seconds: float,
    ) -> None:
        super().__init__(heartbeat_seconds)
        self.beaten_at = 0.0
        """When the last heartbeat, which is for all, was sent, by the event loop's clock in seconds."""
        self._connections = connections
        self._place_of = place_of
        self._deliveries = deliveries
        self._caller = caller
        # None: it is over, and its client was not told yet.
        self._subscriptions: dict[int, Subscription | None] = {}
        self._loader = Loader(self)
        self._cohorts = Cohorts(self._queue, self._loader.forget)
        self._events: deque[_Event] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._ready: deque[Cohort] = deque()
        self._failure: Exception | None = None
        self._closed = False
        self._leaving = False

    def apply(self, change: Change) -> None:
        """Do what the client says. A number that is in use makes the call end with InvalidField."""
        for number in change.drops:
            subscription = self._subscriptions.get(number)
            if subscription is not None:
                self._end((subscription,), None)
        together: dict[tuple[StreamName, Start], Cohort] = {}
        for start in change.starts:
            if start.number in self._subscriptions:
                self.broke(InvalidField("starts.subscription", f"{start.number} is in use: choose another number"))
                break
            if isinstance(start, Refused):
                self._refuse(start.number, start.error)
            else:
                self._begin(start, together)
        for (_, place), cohort in together.items():
            if cohort.members:
                self._cohorts.run(cohort)
                self._loader.attach(cohort, place)
        for number, size in change.credits:
            subscription = self._subscriptions.get(number)
            if subscription is not None:
                self._cohorts.add_credit(subscription, size)

    async def room(self) -> None:
        """Wait while the client has much to take before more of what it says is of use."""
        await self._room.wait()

    def close(self) -> None:
        """Note that the client has said all."""
        self._closed = True
        self.poke()

    def broke(self, error: Exception) -> None:
        """Have the call end with an error, at once."""
        self._failure = self._failure or error
        self.poke()

    def drain(self) -> None:
        """Have each subscription told to go on elsewhere, then the call end with Draining."""
        self._leaving = True
        for subscription in tuple(self._subscriptions.values()):
            if subscription is not None:
                self._end((subscription,), Draining(subscription.cursor))
        self.poke()

    async def detach(self) -> None:
        """End all subscriptions, told or not."""
        self._closed = True
        for subscription in tuple(self._subscriptions.values()):
            if subscription is not None:
                self._leave(subscription)
        self._events.clear()
        await self._loader.close()

    def attached(self, cohort: Cohort) -> None:
        """Have a cohort's members told that they are attached."""
        cohort.attached = True
        self._tell(_Event(self._deliveries.attached(cohort.recipients(self._deliveries.recipients))))
        if cohort.found is None:
            self._cohorts.join_another(cohort)
        cohort.changed()

    def looked(self, cohort: Cohort) -> None:
        """Go on with what the log said."""
        if cohort.found is None and cohort.place.ended:
            self._end(tuple(cohort.members.values()), None)
        elif cohort.found is not None or not cohort.place.unchanged:
            cohort.changed()

    def failed(self, cohort: Cohort, error: Exception) -> None:
        """End a cohort's members, whose stream can't be read on."""
        self._end(tuple(cohort.members.values()), error)

    async def _advance(self) -> bytes | None:
        if self._failure is not None:
            raise self._failure
        response = self._response() if self._ready or self._events else None
        if response is None:
            if self._leaving:
                raise Draining
            if self._closed and not self._subscriptions:
                self._ended = True
            else:
                await self._wait()
        return response

    def _heartbeat(self) -> bytes:
        self.beaten_at = self._loop.time()
        return b""

    def _response(self) -> bytes | None:
        """Encode what is ready, in turns, up to the limit."""
        parts: list[bytes] = []
        size = 0
        now = self._loop.time()
        ready = self._ready
        deliveries = self._deliveries
        while size < RESPONSE_BYTES:
            if self._events:
                event = self._events.popleft()
                parts.append(event.delivery)
                size += len(event.delivery)
                for number in event.freed:
                    del self._subscriptions[number]
                continue
            if not ready:
                break
            cohort = ready.popleft()
            cohort.queued = False
            if not cohort.members:
                continue
            found = cohort.found or cohort.place.live()
            if found is None:
                self._look(cohort)
                continue
            message = found.message
            if size and size + len(message) > RESPONSE_BYTES:
                cohort.found = found
                cohort.queued = True
                ready.appendleft(cohort)
                break
            parts += (deliveries.head(cohort.recipients(deliveries.recipients), len(message)), message)
            size += len(message)
            if cohort.from_log:
                self._loader.taken(cohort)
            spent = cohort.take(found, now)
            if found.ended:
                for member in tuple(cohort.members.values()):
                    self._leave(member)
                    del self._subscriptions[member.number]
                continue
            if spent:
                self._cohorts.hold_spent(cohort, now)
            if cohort.held:
                continue
            if len(cohort.siblings) > 1:
                self._cohorts.join_another(cohort)
            if not cohort.place.at_end:
                cohort.changed()
        if len(self._events) < MOST_UNTOLD:
            self._room.set()
        return b"".join(parts) if parts else None

    def _look(self, cohort: Cohort) -> None:
        """See what there is to do for a cohort for which the tail has nothing."""
        if not cohort.place.caught_up():
            self._loader.read(cohort)
        elif cohort.place.ended:
            self._end(tuple(cohort.members.values()), None)

    def _begin(self, begin: Begin, together: dict[tuple[StreamName, Start], Cohort]) -> None:
        key = begin.name, begin.start
        cohort = together.get(key)
        if cohort is None:
            cohort = together[key] = self._cohorts.new(self._place_of(begin.name))
        subscription = Subscription(begin.number, begin.credit_bytes or math.inf, cohort, self, self._end_one)
        try:
            subscription.connection = self._connections.register(subscription, Attachment(begin.name, self._caller))
        except BridgeError as error:
            self._refuse(begin.number, error)
        else:
            self._subscriptions[begin.number] = subscription
            cohort.add(subscription)

    def _refuse(self, number: int, error: BridgeError) -> None:
        self._subscriptions[number] = None
        self._tell(_Event(self._deliveries.end(self._deliveries.recipients((number,)), error), (number,)))

    def _end_one(self, subscription: Subscription, ending: Ending) -> None:
        self._end((subscription,), ending())

    def _end(self, subscriptions: Sequence[Subscription], error: Exception | None) -> None:
        """End subscriptions that are not over, and have it told."""
        numbers = tuple(subscription.number for subscription in subscriptions)
        for subscription in subscriptions:
            self._leave(subscription)
            self._subscriptions[subscription.number] = None
        if numbers:
            self._tell(_Event(self._deliveries.end(self._deliveries.recipients(numbers), error), numbers))

    def _leave(self, subscription: Subscription) -> None:
        """Let go of what a subscription holds."""
        self._cohorts.leave(subscription)
        assert subscription.connection is not None, "whoever leaves was registered"
        self._connections.unregister(subscription.connection)

    def _tell(self, event: _Event) -> None:
        self._events.append(event)
        if len(self._events) >= MOST_UNTOLD:
            self._room.clear()
        self.poke()

    def _queue(self, cohort: Cohort) -> None:
        ready = self._ready
        ready.append(cohort)
        if len(ready) == 1:
            # Whoever waits found none; for those behind the first it has been poked.
            self.poke()
