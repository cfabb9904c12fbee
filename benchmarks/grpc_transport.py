"""The bridge, spoken to over gRPC with its generated stubs."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self, cast

import grpc
from grpc import aio

from benchmarks.rounds import Reading
from benchmarks.tokens import DeliveryError
from benchmarks.transport import Reader, Transport
from llmbridge.v1 import (
    bridge_service_pb2,
    bridge_service_pb2_grpc,
    group_service_pb2,
    group_service_pb2_grpc,
    stream_pb2,
    token_pb2,
)

CONNECT_TIMEOUT_S = 10.0
MODEL_ID = "bench"
MAX_OUTSTANDING_TOKENS = 10_000
MAX_IDS = 1_000


class GrpcTransport(Transport):
    """Calls on one or more channels, taken in turn."""

    def __init__(self, channels: Sequence[aio.Channel]) -> None:
        self._channels = channels
        self._stubs = itertools.cycle([bridge_service_pb2_grpc.BridgeServiceStub(channel) for channel in channels])

    @classmethod
    async def connect(cls, target: str, channels: int) -> Self:
        """Opens the channels and waits until all are connected. Raises TimeoutError."""
        # Without a pool of its own, channels of one process to the same target share one connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        opened = [aio.insecure_channel(target, options=options) for _ in range(channels)]
        transport = cls(opened)
        try:
            for channel in opened:
                await channel.channel_ready()
        except BaseException:
            await transport.close()
            raise
        return transport

    async def produce(
        self, stream: str, first_sequence: int, tokens: Sequence[str], *, final: bool, awaited: bool = True
    ) -> None:
        """Appends with one Produce call, numbered as a careful client does."""
        assert awaited, "this is what a call by itself costs"
        request = bridge_service_pb2.ProduceRequest(
            tokens=[token_pb2.Token(text=text) for text in tokens],
            stream=stream_ref(stream),
            first_sequence=first_sequence,
            producer_epoch=1,
            producer_id="bench",
        )
        if final:
            request.completion.finish_reason = token_pb2.FINISH_REASON_STOP
        response = await next(self._stubs).Produce(request)
        last = first_sequence + len(tokens) - 1 + final
        if response.last_sequence != last or response.duplicate:
            raise DeliveryError(f"stream {stream}: record {last} was answered with {response}")

    async def read(self, stream: str, reading: Reading, reader: Reader) -> None:
        """Reads with one Subscribe call; heartbeats are passed over. Each read by group makes a group of its own."""
        request = bridge_service_pb2.SubscribeRequest(stream=stream_ref(stream))
        if reading is not Reading.CURSOR:
            request.group.name = secrets.token_hex(8)
            request.group.max_outstanding_tokens = MAX_OUTSTANDING_TOKENS
        if reading is Reading.EXPLICIT:
            request.group.acknowledgement = bridge_service_pb2.ACKNOWLEDGEMENT_EXPLICIT
        async with self._acknowledging(request) as unsettled:
            await self._read(request, reader, unsettled)

    @asynccontextmanager
    async def _acknowledging(self, request: bridge_service_pb2.SubscribeRequest) -> AsyncIterator[asyncio.Queue[str]]:
        """Acknowledges what is put into the queue, with one call at a time, until the context ends."""
        unsettled: asyncio.Queue[str] = asyncio.Queue()
        stub = group_service_pb2_grpc.GroupServiceStub(self._channels[0])
        group = group_service_pb2.GroupRef(stream=request.stream, name=request.group.name)

        async def acknowledge() -> None:
            while True:
                ids = [await unsettled.get()]
                while not unsettled.empty() and len(ids) < MAX_IDS:
                    ids.append(unsettled.get_nowait())
                response = await stub.Acknowledge(group_service_pb2.AcknowledgeRequest(group=group, ack_ids=ids))
                if set(response.results) != {group_service_pb2.SETTLE_RESULT_DONE}:
                    raise DeliveryError(f"an acknowledgement came too late: {response.results}")

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(acknowledge())
            yield unsettled
            task.cancel()

    async def _read(
        self, request: bridge_service_pb2.SubscribeRequest, reader: Reader, unsettled: asyncio.Queue[str]
    ) -> None:
        stream = request.stream.session_id
        call = next(self._stubs).Subscribe(request)
        try:
            await call.initial_metadata()
            reader.attached()
            expected, completed = 1, False
            while True:
                message = await call.read()
                if message is aio.EOF:
                    break
                response = cast("bridge_service_pb2.SubscribeResponse", message)
                records = len(response.tokens) + response.HasField("completion")
                if not records:
                    continue
                if response.first_sequence != expected or completed:
                    raise DeliveryError(
                        f"stream {stream}: expected record {expected}, received {response.first_sequence}; "
                        f"completed before: {completed}"
                    )
                for ack_id in response.ack_ids:
                    unsettled.put_nowait(ack_id)
                expected += records
                completed = response.HasField("completion")
                if response.tokens:
                    reader.take([token.text for token in response.tokens])
            code = await call.code()
            if code is not grpc.StatusCode.OK or not completed:
                raise DeliveryError(f"stream {stream}: ended with {code}, completed: {completed}")
        finally:
            call.cancel()

    async def close(self) -> None:
        """Closes all channels."""
        for channel in self._channels:
            await channel.close()


def stream_ref(stream: str) -> stream_pb2.StreamRef:
    """Names a stream of the benchmark."""
    return stream_pb2.StreamRef(session_id=stream, model_id=MODEL_ID)
