"""gRPC by the generated stubs, which retry nothing and repair nothing."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest, SubscribeResponse
from llmbridge.v1.bridge_service_pb2_grpc import BridgeServiceStub
from llmbridge.v1.connection_service_pb2_grpc import ConnectionServiceStub
from llmbridge.v1.group_service_pb2_grpc import GroupServiceStub
from llmbridge.v1.lifecycle_service_pb2 import WatchStreamsRequest, WatchStreamsResponse
from llmbridge.v1.lifecycle_service_pb2_grpc import LifecycleServiceStub
from llmbridge.v1.stream_admin_service_pb2_grpc import StreamAdminServiceStub
from tests.conformance.target import Instance
from tests.conformance.transport import CallFailed, Incoming, Refusal

MessageT = TypeVar("MessageT", bound=Message)

_STUBS: tuple[Callable[[grpc.aio.Channel], Any], ...] = (
    BridgeServiceStub,
    StreamAdminServiceStub,
    GroupServiceStub,
    LifecycleServiceStub,
    ConnectionServiceStub,
)
_OPTIONS = (
    # A connection of its own, on which flow control holds the bridge after about 64 KiB that were not read.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.max_send_message_length", -1),
)


def open_channel(instance: Instance) -> grpc.aio.Channel:
    """Open a connection of its own."""
    return grpc.aio.insecure_channel(instance.address, options=list(_OPTIONS))


class GrpcTransport:
    """One channel with one connection."""

    shows_heartbeats = True
    tells_what_was_not_said = True
    buffered_bytes = 200_000

    def __init__(self, instance: Instance) -> None:
        self._channel = open_channel(instance)
        self._stubs = [stub(self._channel) for stub in _STUBS]

    async def call(self, request: Message, timeout: float) -> Any:
        method = self._method(type(request).__name__.removesuffix("Request"))
        try:
            return await method(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(refusal_of_call(error)) from None

    async def call_with_garbage(self) -> None:
        method: Any = self._channel.unary_unary("/llmbridge.v1.BridgeService/Produce")
        try:
            await method(b"\xff", timeout=10)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(refusal_of_call(error)) from None

    def subscribe(self, request: SubscribeRequest) -> Incoming[SubscribeResponse]:
        return _Reading(self._method("Subscribe")(request))

    def watch(self, request: WatchStreamsRequest) -> Incoming[WatchStreamsResponse]:
        return _Reading(self._method("WatchStreams")(request))

    async def close(self) -> None:
        await self._channel.close()

    def _method(self, name: str) -> Any:
        return next(getattr(stub, name) for stub in self._stubs if hasattr(stub, name))


class _Reading(Generic[MessageT]):
    """One call that streams."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def attached(self) -> None:
        try:
            await self._call.initial_metadata()
            # The metadata of a call that was refused at once is there as well.
            if self._call.done() and await self._call.code() is not grpc.StatusCode.OK:
                await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise CallFailed(refusal_of_call(error)) from None

    async def read(self) -> MessageT | None:
        try:
            message: Any = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise CallFailed(refusal_of_call(error)) from None
        return None if message is grpc.aio.EOF else message

    async def cancel(self) -> None:
        self._call.cancel()
        try:
            await self._call.code()
        except asyncio.CancelledError:
            # grpc may tell the cancellation of the call so; that of the test's own task goes on.
            this = asyncio.current_task()
            if this is not None and this.cancelling():
                raise


def refusal_of(code: grpc.StatusCode, message: str, details: bytes, trailing_cursor: str | None = None) -> Refusal:
    """Read how something failed; `details` is an encoded google.rpc.Status, or nothing where a connection broke."""
    status, info, retry = Status.FromString(details), ErrorInfo(), RetryInfo()
    if details:
        assert status.code == code.value[0], "the details have another code than the status"
        assert status.message == message, "the details have another message than the status"
        assert any(detail.Unpack(info) for detail in status.details), "the details have no ErrorInfo"
        assert info.reason.startswith("ERROR_REASON_")
    has_retry = any(detail.Unpack(retry) for detail in status.details)
    return Refusal(
        code=code.name,
        message=message,
        domain=info.domain,
        reason=info.reason.removeprefix("ERROR_REASON_"),
        metadata=dict(info.metadata),
        retry_ms=retry.retry_delay.ToMilliseconds() if has_retry else None,
        trailing_cursor=trailing_cursor,
    )


def refusal_of_call(error: grpc.aio.AioRpcError) -> Refusal:
    """Read how a call ended."""
    trailers = dict(error.trailing_metadata() or ())
    details, cursor = trailers.get("grpc-status-details-bin", b""), trailers.get("llmbridge-cursor")
    assert isinstance(details, bytes)
    return refusal_of(error.code(), error.details() or "", details, cursor if isinstance(cursor, str) else None)
