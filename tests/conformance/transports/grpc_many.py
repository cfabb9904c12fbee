"""gRPC by the generated stubs, with all appends over one ProduceMany call and all readings over one SubscribeMany call.

Groups, which those do not have, are read by Subscribe.
"""

import asyncio
from typing import Any

import grpc
from google.protobuf.message import Message

from llmbridge.v1.bridge_service_pb2 import ProduceRequest, SubscribeRequest, SubscribeResponse
from llmbridge.v1.bridge_service_pb2_grpc import BridgeServiceStub
from llmbridge.v1.lifecycle_service_pb2 import WatchStreamsRequest, WatchStreamsResponse
from tests.conformance.target import Instance
from tests.conformance.transport import CallFailed, Incoming, Refusal
from tests.conformance.transports.grpc_stubs import GrpcTransport, open_channel, refusal_of_call
from tests.conformance.transports.produce_many import ProduceCall
from tests.conformance.transports.subscribe_many import SubscribeCall


class GrpcManyTransport:
    """One call of each kind, made anew after its end."""

    shows_heartbeats = True
    tells_what_was_not_said = True
    buffered_bytes = 200_000

    def __init__(self, instance: Instance) -> None:
        self._grpc = GrpcTransport(instance)
        self._channel = open_channel(instance)
        self._stub: Any = BridgeServiceStub(self._channel)
        self._producing: list[ProduceCall] = []
        self._subscribing: list[SubscribeCall] = []

    async def call(self, request: Message, timeout: float) -> Any:
        if not isinstance(request, ProduceRequest):
            return await self._grpc.call(request, timeout)
        if not self._producing or self._producing[-1].over:
            self._producing.append(ProduceCall(self._stub.ProduceMany()))
        try:
            async with asyncio.timeout(timeout):
                return await self._producing[-1].produce(request)
        except TimeoutError:
            late = Refusal("DEADLINE_EXCEEDED", f"no receipt within {timeout:g} s", "", "", {}, None, None)
            raise CallFailed(late) from None

    async def call_with_garbage(self) -> None:
        raw: Any = self._channel.stream_stream("/llmbridge.v1.BridgeService/ProduceMany")
        call = raw(timeout=10)
        try:
            await call.write(b"\xff")
            assert await call.read() is grpc.aio.EOF
        except grpc.aio.AioRpcError as error:
            raise CallFailed(refusal_of_call(error)) from None

    def subscribe(self, request: SubscribeRequest) -> Incoming[SubscribeResponse]:
        if request.HasField("group"):
            return self._grpc.subscribe(request)
        if not self._subscribing or self._subscribing[-1].over:
            self._subscribing.append(SubscribeCall(self._stub.SubscribeMany()))
        return self._subscribing[-1].subscribe(request)

    def watch(self, request: WatchStreamsRequest) -> Incoming[WatchStreamsResponse]:
        return self._grpc.watch(request)

    async def close(self) -> None:
        await self._channel.close()
        await self._grpc.close()
        for producing in self._producing:
            await producing.close()
        for subscribing in self._subscribing:
            await subscribing.close()
