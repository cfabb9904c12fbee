"""Readings, of however many streams, over one SubscribeMany call, each with credit of its own."""

import asyncio
from collections import deque
from typing import Any

import grpc

from llmbridge.v1 import bridge_service_pb2 as pb
from tests.conformance.transport import CallFailed
from tests.conformance.transports.grpc_stubs import refusal_of_call
from tests.conformance.transports.produce_many import failure_of
from tests.conformance.transports.shared_call import SharedCall

_CREDIT_BYTES = 65_536


class SubscribeCall(SharedCall[pb.SubscribeManyRequest]):
    """One call."""

    def __init__(self, call: Any) -> None:
        self._readings: dict[int, ManyReading] = {}
        self._numbers = 0
        super().__init__(call, pb.SubscribeManyRequest)

    def subscribe(self, request: pb.SubscribeRequest) -> "ManyReading":
        """Begin one more reading."""
        self._numbers += 1
        reading = self._readings[self._numbers] = ManyReading(self, self._numbers, request.after_cursor)
        self._next.starts.add(subscription=self._numbers, request=request, credit_bytes=_CREDIT_BYTES)
        self._has_next.set()
        return reading

    def drop(self, number: int) -> None:
        """Say that a reading is not wanted any more."""
        self._next.drops.append(number)
        self._has_next.set()

    def give_credit(self, number: int, count: int) -> None:
        """Say how many bytes were taken."""
        self._next.credits.add(subscription=number, bytes=count)
        self._has_next.set()

    async def _read(self) -> None:
        why: CallFailed | None = None
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                for delivery in answer.deliveries:
                    self._deliver(delivery)
                if not answer.deliveries:
                    for reading in self._readings.values():
                        reading.take_heartbeat()
            raise AssertionError("the call ended OK though not all was said")
        except grpc.aio.AioRpcError as error:
            why = CallFailed(refusal_of_call(error))
        finally:
            for reading in self._readings.values():
                reading.finish(why)

    def _deliver(self, delivery: pb.Delivery) -> None:
        assert delivery.subscriptions
        for number in delivery.subscriptions:
            # One that is over gets nothing more: there it would be missing here.
            reading = self._readings[number]
            match delivery.WhichOneof("event"):
                case "attached":
                    reading.attach()
                case "message":
                    reading.take(delivery.message)
                case "end":
                    reading.take_end(delivery.end)
                case _:
                    raise AssertionError("a delivery without an event")
            if reading.over:
                del self._readings[number]


class ManyReading:
    """One subscription."""

    def __init__(self, call: SubscribeCall, number: int, place: str) -> None:
        self._call = call
        self._number = number
        self._place = place
        self._waiting: deque[pb.SubscribeResponse] = deque()
        self._changed = asyncio.Event()
        self._is_attached = False
        self._end: CallFailed | None = None
        self.over = False

    async def attached(self) -> None:
        while not self._is_attached:
            if self._end is not None:
                raise self._end
            await self._change()

    async def read(self) -> pb.SubscribeResponse | None:
        while not self._waiting and not self.over:
            await self._change()
        if self._waiting:
            message = self._waiting.popleft()
            if not self.over:
                self._call.give_credit(self._number, message.ByteSize())
            return message
        if self._end is not None:
            raise self._end
        return None

    async def cancel(self) -> None:
        if not self.over:
            self._call.drop(self._number)
        while not self.over:
            await self._change()

    def attach(self) -> None:
        assert not self._is_attached, "attached twice"
        self._is_attached = True
        self._changed.set()

    def take(self, message: pb.SubscribeResponse) -> None:
        assert self._is_attached, "a message came before it was attached"
        self._place = message.cursor
        self._waiting.append(message)
        self.over = message.HasField("completion")
        self._changed.set()

    def take_heartbeat(self) -> None:
        # The call's, and so everybody's who has nothing else to take.
        if self._is_attached and not self._waiting:
            self._waiting.append(pb.SubscribeResponse(cursor=self._place))
            self._changed.set()

    def take_end(self, end: pb.Failure) -> None:
        if not end.code:
            self.finish(None)
            return
        refusal = failure_of(end)
        if refusal.reason == "DRAINING":
            # A call of its own has it in a trailer, too.
            refusal = failure_of(end, self._place)
        self.finish(CallFailed(refusal))

    def finish(self, why: CallFailed | None) -> None:
        self.over, self._end = True, why
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
