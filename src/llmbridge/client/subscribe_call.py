"""One SubscribeMany call: what comes for many subscriptions goes into the inbox of each, which its credit bounds.

Knows neither retries nor places; what a message is to its readers is told in reader.py.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import TypeAlias

import grpc

from llmbridge.client.conversation import HowItEnded, converse
from llmbridge.client.errors import error_from_failure
from llmbridge.client.numbers import Numbers
from llmbridge.client.values import Message
from llmbridge.v1.bridge_service_pb2 import (
    POSITION_LATEST,
    Failure,
    SubscribeManyRequest,
    SubscribeManyResponse,
    SubscribeRequest,
    SubscribeResponse,
    SubscriptionCredit,
    SubscriptionStart,
)

SubscribeStream: TypeAlias = "grpc.aio.StreamStreamCall[bytes, SubscribeManyResponse]"

CREDIT_BYTES = 262_144
"""How much may come for a subscription before its reader has taken anything of it. A larger message comes alone."""

# The bridge takes messages of up to 3 MiB with 4,096 starts, which are not that many in so few bytes.
_MAX_STARTS_BYTES = 131_072
_START_OVERHEAD = 24
# How long a call without a subscription is kept for the next one.
_IDLE_SECONDS = 5.0
# Between two heartbeats of a subscription on a call that is never silent. The bridge's own come as often.
_HEARTBEAT_SECONDS = 15.0


class Arrival:
    """A message that came, once for all who get it: they must not change it."""

    def __init__(self, response: SubscribeResponse, size: int) -> None:
        self.response = response
        self.size = size
        """What it costs of a subscription's credit, in bytes."""
        self.cursor = response.cursor

    @cached_property
    def is_heartbeat(self) -> bool:
        """It has no record."""
        return not self.response.tokens and not self.response.HasField("completion")

    @cached_property
    def message(self) -> Message:
        """What readers get."""
        response = self.response
        completion = response.completion if response.HasField("completion") else None
        return Message(
            tuple(response.tokens), response.first_sequence, response.cursor, completion, response.appended_ms
        )


class Inbox:
    """What has come for one subscription and was not taken yet, and how it ended."""

    def __init__(self, request: SubscribeRequest) -> None:
        self.arrivals: deque[Arrival] = deque()
        self.how_it_ended: HowItEnded | None = None
        """Set when nothing more will come because of an error."""
        self.ended = False
        """Set when nothing more will come."""
        self._cursor = request.after_cursor
        self._attached = False
        # Where "latest" is, only the bridge can tell; until then a heartbeat would say something else.
        self._placed = request.position != POSITION_LATEST
        self._waiter: asyncio.Future[None] | None = None

    async def changed(self, within: float) -> None:
        """Wait until something came, or it ended, or so many seconds have passed. For one task at a time."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(within, self._tell)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def attach(self) -> None:
        """The bridge said that the subscription stands where it should."""
        self._attached = True

    def put(self, arrival: Arrival) -> None:
        """Take what came."""
        self._attached = self._placed = True
        self._cursor = arrival.cursor
        self.arrivals.append(arrival)
        self._tell()

    def beat(self) -> None:
        """Take a sign of life of the call: a heartbeat, where the reader has taken everything."""
        if self._attached and self._placed and not self.arrivals and not self.ended:
            self.arrivals.append(Arrival(SubscribeResponse(cursor=self._cursor), 0))
            self._tell()

    def end(self, how: HowItEnded | None) -> None:
        """Nothing more will come; because of an error, unless `how` is None."""
        if not self.ended:
            self.ended, self.how_it_ended = True, how
            self._tell()

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SubscribeCall:
    """A call from its first message on. It ends when it had no subscription for 5 s."""

    def __init__(self, open_stream: Callable[[], SubscribeStream]) -> None:
        self._open_stream = open_stream
        self._stream: SubscribeStream | None = None
        self._loop = asyncio.get_running_loop()
        self._inboxes: dict[int, Inbox] = {}
        self._numbers = Numbers()
        self._starts: dict[int, SubscribeRequest] = {}
        self._drops: list[int] = []
        self._credits: dict[int, int] = {}
        self._wake = asyncio.Event()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._retired = False
        self._finished = False
        self.heard_at = self._beat_at = self._loop.time()
        """When the bridge was last heard of, by the loop's clock; at first when the call began."""

    @property
    def accepting(self) -> bool:
        """Whether anything new may go to it."""
        return not self._retired

    def start(self, request: SubscribeRequest) -> tuple[int, Inbox]:
        """Begin a subscription, under a number of its own."""
        number = self._numbers.next(self._inboxes)
        inbox = self._inboxes[number] = Inbox(request)
        self._starts[number] = request
        self._wake.set()
        return number, inbox

    def drop(self, number: int) -> None:
        """A subscription is not wanted any more. Does nothing if it is over."""
        if self._inboxes.pop(number, None) is None:
            return
        if self._starts.pop(number, None) is None:
            self._drops.append(number)
        self._credits.pop(number, None)
        self._wake.set()
        self._heed_emptiness()

    def grant(self, number: int, size: int) -> None:
        """Let so many bytes more come. Does nothing if the subscription is over."""
        if number in self._inboxes:
            self._credits[number] = self._credits.get(number, 0) + size
            self._wake.set()

    def retire(self) -> None:
        """Take nothing new: something is wrong with this call, or its bridge. It ends with its last subscription."""
        self._retired = True
        self._heed_emptiness()

    def finish(self) -> bool:
        """End it; tells whether it will do so by itself, because nobody reads."""
        self._retired = self._finished = True
        self._wake.set()
        return not self._inboxes

    async def run(self) -> None:
        """Carry the call until it is over, and tell all readers how it ended."""
        self._stream = self._open_stream()
        self._heed_emptiness()
        try:
            self.tell_all(await converse(self._stream, self._says, self._hears, SubscribeManyResponse))
        finally:
            if self._idle_timer is not None:
                self._idle_timer.cancel()

    def tell_all(self, how: HowItEnded) -> None:
        """Tell all readers how the call ended."""
        self._retired = True
        for inbox in self._inboxes.values():
            inbox.end(how)
        self._inboxes.clear()

    def _heed_emptiness(self) -> None:
        if self._inboxes or self._finished:
            return
        if self._retired:
            if self._stream is not None:
                self._stream.cancel()
        elif self._idle_timer is None:
            self._idle_timer = self._loop.call_later(_IDLE_SECONDS, self._finish_if_idle)

    def _finish_if_idle(self) -> None:
        self._idle_timer = None
        if not self._inboxes:
            self.finish()

    async def _says(self) -> bytes | None:
        """Wait for the next message."""
        while not (self._starts or self._drops or self._credits):
            if self._finished:
                return None
            self._wake.clear()
            await self._wake.wait()
        drops, self._drops = self._drops, []
        grants, self._credits = self._credits, {}
        starts: dict[int, SubscribeRequest] = {}
        size = 0
        while self._starts and size < _MAX_STARTS_BYTES:
            number = next(iter(self._starts))
            starts[number] = self._starts.pop(number)
            size += starts[number].ByteSize() + _START_OVERHEAD
        return SubscribeManyRequest(
            drops=drops,
            starts=[
                SubscriptionStart(subscription=number, request=request, credit_bytes=CREDIT_BYTES)
                for number, request in starts.items()
            ],
            credits=[SubscriptionCredit(subscription=number, bytes=size) for number, size in grants.items()],
        ).SerializeToString()

    def _hears(self, response: SubscribeManyResponse) -> None:
        self.heard_at = self._loop.time()
        for delivery in response.deliveries:
            match delivery.WhichOneof("event"):
                case "message":
                    self._deliver(delivery.subscriptions, Arrival(delivery.message, delivery.message.ByteSize()))
                case "attached":
                    for number in delivery.subscriptions:
                        if (inbox := self._inboxes.get(number)) is not None:
                            inbox.attach()
                case "end":
                    for number in delivery.subscriptions:
                        self._end(number, delivery.end)
        if not response.deliveries or self.heard_at - self._beat_at >= _HEARTBEAT_SECONDS:
            self._beat_at = self.heard_at
            for inbox in self._inboxes.values():
                inbox.beat()

    def _deliver(self, numbers: Iterable[int], arrival: Arrival) -> None:
        last = arrival.response.HasField("completion")
        for number in numbers:
            inbox = self._inboxes.get(number)
            if inbox is None:
                continue
            inbox.put(arrival)
            if last:
                inbox.end(None)
                del self._inboxes[number]
        if last:
            self._heed_emptiness()

    def _end(self, number: int, failure: Failure) -> None:
        inbox = self._inboxes.pop(number, None)
        if inbox is None:
            return
        if not failure.code:
            inbox.end(None)
        else:
            if error_from_failure(failure).reason == "DRAINING":
                self._retired = True
            inbox.end(partial(error_from_failure, failure))
        self._heed_emptiness()
