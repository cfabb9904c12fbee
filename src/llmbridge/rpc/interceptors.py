"""Makes this server's handlers fit for interceptors of other makers. Costs nothing where there are none."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc

from llmbridge.rpc.methods import Context, Handler


def fitted(interceptors: Sequence[Any]) -> Sequence[Any]:
    """Give the interceptors to install so that these ones work."""
    return (*interceptors, _StreamsAsGenerators()) if interceptors else ()


class _StreamsAsGenerators(grpc.aio.ServerInterceptor):
    """Makes a generator of each handler that writes its stream to the context (as Subscribe and health's Watch do).

    gRPC takes both kinds, but interceptors that wrap a handler (OpenTelemetry's) iterate over what it returns. Must be
    the last of the interceptors.
    """

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        write_all = handler.stream_stream or handler.unary_stream
        if not inspect.iscoroutinefunction(write_all):
            return handler
        all_written: tuple[Any, ...] = ()

        async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
            await write_all(request, context)
            for message in all_written:
                yield message

        made = grpc.stream_stream_rpc_method_handler if handler.stream_stream else grpc.unary_stream_rpc_method_handler
        return made(generate, handler.request_deserializer, handler.response_serializer)
