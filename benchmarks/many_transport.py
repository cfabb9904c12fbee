"""The bridge, spoken to over one ProduceMany and one SubscribeMany call, with its generated stubs."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

from grpc import aio

from benchmarks.grpc_transport import GrpcTransport, stream_ref
from benchmarks.rounds import Reading
from benchmarks.tokens import DeliveryError
from benchmarks.transport import Reader
from llmbridge.v1 import bridge_service_pb2, bridge_service_pb2_grpc, token_pb2

MAX_APPENDS = 1_000
"""In one message. One is some 60 bytes, so a message stays far below 1 MiB."""

_WriteCall = aio.StreamStreamCall[bridge_service_pb2.ProduceManyRequest, bridge_service_pb2.ProduceManyResponse]
_ReadCall = aio.StreamStreamCall[bridge_service_pb2.SubscribeManyRequest, bridge_service_pb2.SubscribeManyResponse]
_Append = tuple[str, int, Sequence[str]]
"""Stream, first sequence, tokens."""


class ManyTransport(GrpcTransport):
    """One call of each kind, opened when it is first needed."""

    def __init__(self, channels: Sequence[aio.Channel]) -> None:
        super().__init__(channels)
        stub = bridge_service_pb2_grpc.BridgeServiceStub(channels[0])
        self._writing = _Writing(stub.ProduceMany)
        self._reading = _Reading(stub.SubscribeMany)
        self._unawaited: dict[str, list[Awaitable[None]]] = {}

    async def produce(
        self, stream: str, first_sequence: int, tokens: Sequence[str], *, final: bool, awaited: bool = True
    ) -> None:
        """Appends with a message of its own."""
        stored = await self._writing.append([(stream, first_sequence, tokens)], final=final)
        pending = self._unawaited.setdefault(stream, [])
        pending.append(stored)
        if awaited or final:
            await asyncio.gather(*self._unawaited.pop(stream))

    async def step(self, sequence: int, texts: Mapping[str, str], *, final: bool) -> Awaitable[None]:
        """Sends a step in as few messages as may be."""
        appends = [(stream, sequence, (text,)) for stream, text in texts.items()]
        return await self._writing.append(appends, final=final)

    async def read(self, stream: str, reading: Reading, reader: Reader) -> None:
        """Reads with one subscription, with any number of bytes on the way."""
        assert reading is Reading.CURSOR, "groups are read by Subscribe"
        await self._reading.read(stream, reader)

    async def close(self) -> None:
        """Ends the calls, then the channels."""
        await self._writing.close()
        await self._reading.close()
        await super().close()


class _Call:
    """A call that is opened when it is first written to, and a task that handles what comes back.

    When the call breaks, or `handle` finds a defect, everything that waits for an answer fails with that.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[None]] = {}
        self._writes = asyncio.Lock()
        self._pump: asyncio.Task[None] | None = None
        self._call: _WriteCall | _ReadCall | None = None

    async def write(self, opened: Callable[[], _WriteCall | _ReadCall], *requests: object) -> None:
        """Writes the requests, one after the other, also when several tasks do."""
        async with self._writes:
            if self._call is None:
                self._call = opened()
                self._pump = asyncio.create_task(self._handle_all(self._call))
            for request in requests:
                await self._call.write(request)  # type: ignore[arg-type]

    async def _handle_all(self, call: _WriteCall | _ReadCall) -> None:
        try:
            while (response := await call.read()) is not aio.EOF:
                self.handle(response)
            reason: Exception = DeliveryError(f"the call ended: {await call.code()}, {await call.details()}")
        except Exception as error:
            reason = error
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(reason)

    def handle(self, response: object) -> None:
        """Handles a response. Raises DeliveryError."""
        raise NotImplementedError

    async def close(self) -> None:
        """Ends the call."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])


class _Writing(_Call):
    """ProduceMany: a writer for each stream, numbered as they come."""

    def __init__(self, method: Callable[[], _WriteCall]) -> None:
        super().__init__()
        self._method = method
        self._writers: dict[str, int] = {}
        self._append_ids = itertools.count(1)
        # What the append is, and what else must be stored before its future is done.
        self._appends: dict[int, tuple[int, int]] = {}
        self._batch_ids = itertools.count(1)
        self._missing: dict[int, int] = {}

    async def append(self, appends: Sequence[_Append], *, final: bool) -> Awaitable[None]:
        batch = next(self._batch_ids)
        stored = self.waiting[batch] = asyncio.get_running_loop().create_future()
        self._missing[batch] = len(appends)
        requests = [
            self._request(appends[start : start + MAX_APPENDS], batch, final=final)
            for start in range(0, len(appends), MAX_APPENDS)
        ]
        await self.write(self._method, *requests)
        return stored

    def _request(self, appends: Sequence[_Append], batch: int, *, final: bool) -> bridge_service_pb2.ProduceManyRequest:
        request = bridge_service_pb2.ProduceManyRequest()
        for stream, first_sequence, tokens in appends:
            writer = self._writers.get(stream)
            if writer is None:
                writer = self._writers[stream] = len(self._writers) + 1
                request.starts.add(writer=writer, stream=stream_ref(stream), producer_epoch=1, producer_id="bench")
            append_id = next(self._append_ids)
            append = request.appends.add(writer=writer, first_sequence=first_sequence, append_id=append_id)
            for text in tokens:
                append.tokens.add(text=text)
            if final:
                append.completion.finish_reason = token_pb2.FINISH_REASON_STOP
            self._appends[append_id] = batch, first_sequence + len(tokens) - 1 + final
        return request

    def handle(self, response: object) -> None:
        for receipt in cast("bridge_service_pb2.ProduceManyResponse", response).receipts:
            batch, last = self._appends.pop(receipt.append_id)
            if receipt.HasField("failure") or receipt.last_sequence != last or receipt.duplicate:
                raise DeliveryError(f"record {last} was answered with {receipt}")
            self._missing[batch] -= 1
            if not self._missing[batch]:
                del self._missing[batch]
                self.waiting.pop(batch).set_result(None)


class _Reading(_Call):
    """SubscribeMany: a subscription for each reader, numbered as they come."""

    def __init__(self, method: Callable[[], _ReadCall]) -> None:
        super().__init__()
        self._method = method
        self._numbers = itertools.count(1)
        self._expected: dict[int, int] = {}
        self._readers: dict[int, Reader] = {}

    async def read(self, stream: str, reader: Reader) -> None:
        number = next(self._numbers)
        self._readers[number], self._expected[number] = reader, 1
        ended = self.waiting[number] = asyncio.get_running_loop().create_future()
        start = bridge_service_pb2.SubscriptionStart(subscription=number)
        start.request.stream.CopyFrom(stream_ref(stream))
        await self.write(self._method, bridge_service_pb2.SubscribeManyRequest(starts=[start]))
        await ended

    def handle(self, response: object) -> None:
        for delivery in cast("bridge_service_pb2.SubscribeManyResponse", response).deliveries:
            event = delivery.WhichOneof("event")
            if event == "message":
                self._deliver(delivery.subscriptions, delivery.message)
            elif event == "attached":
                for number in delivery.subscriptions:
                    self._readers[number].attached()
            else:
                raise DeliveryError(f"subscriptions {list(delivery.subscriptions)} ended: {delivery.end}")

    def _deliver(self, numbers: Sequence[int], message: bridge_service_pb2.SubscribeResponse) -> None:
        texts = [token.text for token in message.tokens]
        completed = message.HasField("completion")
        if not texts and not completed:
            return
        for number in numbers:
            expected = self._expected[number]
            if message.first_sequence != expected:
                raise DeliveryError(f"expected record {expected}, received {message.first_sequence}")
            self._expected[number] = expected + len(texts) + completed
            if texts:
                self._readers[number].take(texts)
            if completed:
                del self._expected[number], self._readers[number]
                self.waiting.pop(number).set_result(None)
