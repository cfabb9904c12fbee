"""A SubscribeMany call as a client in any language would use it, and what each of its subscriptions got."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from llmbridge.v1 import bridge_service_pb2 as pb
from tests.support.calls import PATIENCE_SECONDS, Failure, Received, failure


@dataclass
class Ended:
    """How a subscription ended."""

    code: int
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def ended_of(failure: pb.Failure) -> Ended:
    """Decode an end, whose details every error must carry."""
    if failure.code == 0:
        assert failure == pb.Failure()
        return Ended(0)
    status, info = Status.FromString(failure.status_details), ErrorInfo()
    assert (status.code, status.message) == (failure.code, failure.message)
    assert status.details[0].Unpack(info)
    return Ended(failure.code, info.reason.removeprefix("ERROR_REASON_"), dict(info.metadata))


@dataclass
class Subscribed(Received):
    """What one subscription got. Fails at whatever comes after its end."""

    attached: bool = False
    ended: Ended | None = None
    bytes: int = 0
    largest: int = 0
    """The largest message's bytes."""

    @property
    def over(self) -> bool:
        return self.ended is not None or self.completion is not None

    def deliver(self, delivery: pb.Delivery) -> None:
        assert not self.over, f"after the end: {delivery}"
        match delivery.WhichOneof("event"):
            case "attached":
                assert not self.attached
                self.attached = True
            case "message":
                assert self.attached, "a message before it was attached"
                size = delivery.message.ByteSize()
                self.bytes += size
                self.largest = max(self.largest, size)
                if self.cursor == "" and not delivery.message.tokens and not delivery.message.HasField("completion"):
                    # The first message of a start at the latest place says where that is.
                    self.cursor = delivery.message.cursor
                    self.last = int(self.cursor.split("-")[1]) if self.cursor else 0
                self.take(delivery.message)
            case _:
                self.ended = ended_of(delivery.end)


class ManyCall:
    """One call. Numbers start at 1 and are used once, unless a test says otherwise."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.subscriptions: dict[int, Subscribed] = {}
        self.heartbeats = 0
        self.responses = 0
        self.deliveries = 0
        self.largest = 0
        self._last = 0
        self._done = False

    async def send(self, **fields: Any) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.call.write(pb.SubscribeManyRequest(**fields))

    def new(self, stream: Any, credit: int = 0, number: int = 0, **start: Any) -> pb.SubscriptionStart:
        """A start; what the subscription gets is checked from the cursor it gives."""
        self._last = number or self._last + 1
        cursor = start.get("after_cursor", "")
        self.subscriptions[self._last] = Subscribed(
            cursor=cursor, last=int(cursor.split("-")[1]) if cursor.count("-") == 2 else 0
        )
        request = pb.SubscribeRequest(stream=stream, **start)
        return pb.SubscriptionStart(subscription=self._last, request=request, credit_bytes=credit)

    async def start(self, stream: Any, credit: int = 0, **start: Any) -> Subscribed:
        """Start one subscription; returns what it will get."""
        begun = self.new(stream, credit, **start)
        await self.send(starts=[begun])
        return self.subscriptions[begun.subscription]

    async def read(self) -> pb.SubscribeManyResponse | None:
        """Read one response and hand out what is in it; None after the call's end."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            response = await self.call.read()
        if response is grpc.aio.EOF:
            return None
        assert isinstance(response, pb.SubscribeManyResponse)
        self.responses += 1
        self.largest = max(self.largest, response.ByteSize())
        if not response.deliveries:
            self.heartbeats += 1
        for delivery in response.deliveries:
            self.deliveries += 1
            assert delivery.subscriptions
            for number in delivery.subscriptions:
                self.subscriptions[number].deliver(delivery)
        return response

    async def until(self, condition: Any) -> None:
        """Read until something is so."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                assert await self.read() is not None, "the call ended"

    async def attached(self, *subscribed: Subscribed) -> None:
        await self.until(lambda: all(one.attached for one in subscribed or self.subscriptions.values()))

    async def over(self, *subscribed: Subscribed) -> None:
        await self.until(lambda: all(one.over for one in subscribed or self.subscriptions.values()))

    async def failed(self) -> Failure:
        """Read to the end of the call, which must fail."""

        async def read_all() -> None:
            while await self.read() is not None:
                pass

        return await failure(read_all())

    async def finish(self) -> None:
        """Say that this was all; the call must end OK once every subscription is over."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            if not self._done:
                self._done = True
                await self.call.done_writing()
            while await self.read() is not None:
                pass
            assert await self.call.code() is grpc.StatusCode.OK


@asynccontextmanager
async def many_call(bridge: Any, **options: Any) -> AsyncIterator[ManyCall]:
    """Open a call on a BridgeServiceStub; at the end it is cancelled if it did not end."""
    call = bridge.SubscribeMany(**options)
    try:
        yield ManyCall(call)
    finally:
        call.cancel()
