"""The fake bridge's SubscribeMany: many subscriptions on one call, each with its credit."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from llmbridge.v1.bridge_service_pb2 import (
    Delivery,
    Failure,
    SubscribeManyRequest,
    SubscribeManyResponse,
    SubscribeRequest,
    SubscribeResponse,
    SubscriptionAttached,
    SubscriptionStart,
)
from tests.support.faults import Context, Fault, fail

Serve = Callable[[SubscribeRequest], AsyncGenerator[SubscribeResponse]]
"""Yields what a subscription gets; raises SubscriptionFailed."""


class SubscriptionFailed(Exception):
    """A subscription is to fail; with a fault that has no reason, or hangs, the call as a whole."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


@dataclass(eq=False)
class _Subscription:
    start: SubscriptionStart
    credit: int
    more: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class ReadingCall:
    """Serves one call. `on_ending` is told how each subscription ended: served, failed, or cancelled."""

    def __init__(
        self,
        context: Context,
        serve: Serve,
        heartbeat: float,
        on_beat: Callable[[], None],
        on_ending: Callable[[str], None],
    ) -> None:
        self._context = context
        self._serve = serve
        self._heartbeat = heartbeat
        self._on_beat = on_beat
        self._on_ending = on_ending
        self._subscriptions: dict[int, _Subscription] = {}
        self._ready: deque[Delivery | Fault] = deque()
        self._wake = asyncio.Event()
        self._all_said = False

    async def serve(self, requests: AsyncIterator[SubscribeManyRequest]) -> None:
        fault: Fault | None = None
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(requests, tasks))
            fault = await self._write()
            reading.cancel()
            for subscription in self._subscriptions.values():
                assert subscription.task is not None
                subscription.task.cancel()
        if fault is not None:
            await fail(self._context, fault)

    async def _read(self, requests: AsyncIterator[SubscribeManyRequest], tasks: asyncio.TaskGroup) -> None:
        async for message in requests:
            for number in message.drops:
                dropped = self._subscriptions.get(number)
                if dropped is not None and dropped.task is not None:
                    dropped.task.cancel()
            for start in message.starts:
                assert start.subscription not in self._subscriptions, "the number is in use"
                subscription = self._subscriptions[start.subscription] = _Subscription(start, start.credit_bytes)
                subscription.task = tasks.create_task(self._carry(subscription))
            for credit in message.credits:
                if (subscribed := self._subscriptions.get(credit.subscription)) is not None:
                    subscribed.credit += credit.bytes
                    subscribed.more.set()
        self._all_said = True
        self._wake.set()

    async def _carry(self, subscription: _Subscription) -> None:
        number = subscription.start.subscription
        ending, last, completed = "cancelled", Failure(), False
        try:
            async with aclosing(self._serve(subscription.start.request)) as responses:
                self._put(Delivery(subscriptions=[number], attached=SubscriptionAttached()))
                async for response in responses:
                    while subscription.credit <= 0:
                        subscription.more.clear()
                        await subscription.more.wait()
                    subscription.credit -= response.ByteSize()
                    completed = response.HasField("completion")
                    self._put(Delivery(subscriptions=[number], message=response))
            ending = "served"
        except SubscriptionFailed as failed:
            if failed.fault.hang or not failed.fault.reason:
                self._put(failed.fault)
                ending = "cancelled" if failed.fault.hang else "failed"
                await asyncio.Event().wait()
            ending, last = "failed", failed.fault.failure()
        finally:
            del self._subscriptions[number]
            self._on_ending(ending)
            if not completed:
                self._put(Delivery(subscriptions=[number], end=last))
            self._wake.set()

    def _put(self, delivery: Delivery | Fault) -> None:
        self._ready.append(delivery)
        self._wake.set()

    async def _write(self) -> Fault | None:
        """Send what is ready until the call is over; returns how it is to fail."""
        while self._ready or self._subscriptions or not self._all_said:
            self._wake.clear()
            if not self._ready:
                try:
                    async with asyncio.timeout(self._heartbeat):
                        await self._wake.wait()
                except TimeoutError:
                    self._on_beat()
                    await self._context.write(SubscribeManyResponse())
                continue
            deliveries: list[Delivery] = []
            while self._ready and not isinstance(self._ready[0], Fault):
                self._add(deliveries, self._ready.popleft())
            if deliveries:
                await self._context.write(SubscribeManyResponse(deliveries=deliveries))
            if self._ready and isinstance(fault := self._ready[0], Fault):
                if fault.hang:
                    await asyncio.Event().wait()
                return fault
        return None

    def _add(self, deliveries: list[Delivery], delivery: Delivery | Fault) -> None:
        """Put a message together with the same one of another subscription, where that was the last to come."""
        assert isinstance(delivery, Delivery)
        last = deliveries[-1] if deliveries else Delivery()
        if last.HasField("message") and delivery.HasField("message") and last.message == delivery.message:
            last.subscriptions.extend(delivery.subscriptions)
        else:
            deliveries.append(delivery)
