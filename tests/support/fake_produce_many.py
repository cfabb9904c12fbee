"""The fake bridge's ProduceMany: appends of many writers, each writer's one after the other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from llmbridge.v1.bridge_service_pb2 import (
    ProduceManyRequest,
    ProduceManyResponse,
    ProduceRequest,
    Receipt,
    WriterEnd,
    WriterStart,
)
from tests.support.faults import Context, Fault, fail


class CallBroken(Exception):
    """The call as a whole is to fail."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class ProducingCall:
    """Serves one call. `append` stores a request; a Fault without a reason breaks the call, as a transport does."""

    def __init__(
        self,
        context: Context,
        append: Callable[[ProduceRequest], Awaitable[Receipt | Fault]],
        ending_of: Callable[[WriterStart], Fault | None],
        changed: Callable[[], Awaitable[object]],
    ) -> None:
        self._context = context
        self._append = append
        self._ending_of = ending_of
        self._changed = changed
        self._starts: dict[int, WriterStart] = {}
        # grpc carries one write of a call at a time.
        self._writing = asyncio.Lock()
        self._lanes: dict[int, asyncio.Queue[tuple[ProduceRequest, int] | None]] = {}

    async def serve(self, requests: AsyncIterator[ProduceManyRequest]) -> None:
        broken: Fault | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                telling = tasks.create_task(self._tell_ends())
                await self._read(requests, tasks)
                for lane in self._lanes.values():
                    lane.put_nowait(None)
                telling.cancel()
        except* CallBroken as group:
            broken = next(error.fault for error in group.exceptions if isinstance(error, CallBroken))
        except* grpc.aio.BaseError:
            # The server was stopped under a message that it was sending: there is nobody to tell.
            broken = None
        if broken is not None:
            await fail(self._context, broken)

    async def _read(self, requests: AsyncIterator[ProduceManyRequest], tasks: asyncio.TaskGroup) -> None:
        async for message in requests:
            for start in message.starts:
                assert start.writer not in self._starts, "the number is in use"
                self._starts[start.writer] = start
                lane = self._lanes[start.writer] = asyncio.Queue()
                tasks.create_task(self._carry(lane))
            for append in message.appends:
                start = self._starts[append.writer]
                request = ProduceRequest(
                    tokens=append.tokens,
                    completion=append.completion if append.HasField("completion") else None,
                    stream=start.stream,
                    first_sequence=append.first_sequence,
                    producer_epoch=start.producer_epoch,
                    producer_id=start.producer_id,
                )
                self._lanes[append.writer].put_nowait((request, append.append_id))
            for number in message.stops:
                del self._starts[number]
                self._lanes.pop(number).put_nowait(None)

    async def _carry(self, lane: "asyncio.Queue[tuple[ProduceRequest, int] | None]") -> None:
        while (item := await lane.get()) is not None:
            request, append_id = item
            outcome = await self._append(request)
            if isinstance(outcome, Fault):
                if not outcome.reason:
                    raise CallBroken(outcome)
                outcome = Receipt(failure=outcome.failure())
            outcome.append_id = append_id
            await self._write(ProduceManyResponse(receipts=[outcome]))

    async def _tell_ends(self) -> None:
        told: set[int] = set()
        while True:
            ends = []
            for number, start in self._starts.items():
                fault = self._ending_of(start) if number not in told else None
                if fault is not None:
                    told.add(number)
                    ends.append(WriterEnd(writer=number, failure=fault.failure()))
            if ends:
                await self._write(ProduceManyResponse(ends=ends))
            await self._changed()

    async def _write(self, response: ProduceManyResponse) -> None:
        async with self._writing:
            await self._context.write(response)
