"""grpc.health.v1: SERVING while Redis answers and the bridge is not draining, for "" and for each service."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from llmbridge.errors import MalformedRequest
from llmbridge.rpc.methods import Context, Handler
from llmbridge.rpc.status import abort

_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_STATUS = health_pb2.HealthCheckResponse.ServingStatus


class Health:
    """The health of all services, which rise and fall together. NOT_SERVING until told otherwise.

    `tell` is called when it is set.
    """

    def __init__(self, services: Sequence[str], tell: Callable[[bool], None] = lambda _: None) -> None:
        self._tell = tell
        self._services = ("", *services)
        self.servicer = health_aio.HealthServicer()
        self._serving = False
        self._draining = False

    @property
    def serving(self) -> bool:
        """Whether the services are SERVING."""
        return self._serving and not self._draining

    async def set_serving(self, serving: bool) -> None:
        """Set the status of every service; without effect after `drain`."""
        self._serving = serving
        if not self._draining:
            self._tell(serving)
        status = _STATUS.SERVING if serving else _STATUS.NOT_SERVING
        for service in self._services:
            await self.servicer.set(service, status)

    async def drain(self) -> None:
        """Set NOT_SERVING for good."""
        self._draining = True
        self._tell(False)
        await self.servicer.enter_graceful_shutdown()


def register_health(server: grpc.aio.Server, health: Health) -> None:
    """Serve Check and Watch by the standard servicer; bytes that are no message are INVALID_ARGUMENT."""
    servicer = health.servicer
    handlers: dict[str, Handler] = {
        "Check": grpc.unary_unary_rpc_method_handler(
            _parsing(health_pb2.HealthCheckRequest, servicer.Check),
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(
            _parsing(health_pb2.HealthCheckRequest, servicer.Watch),
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))


def _parsing(request_type: Any, serve: Callable[[Any, Context], Awaitable[Any]]) -> Any:
    async def call(raw: bytes, context: Context) -> Any:
        try:
            request = request_type.FromString(raw)
        except DecodeError:
            await abort(context, MalformedRequest(request_type.DESCRIPTOR.name))
        return await serve(request, context)

    return call
