"""Reflection: lets tools such as grpcurl ask what is served. Bytes that are no message are INVALID_ARGUMENT."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from llmbridge.errors import MalformedRequest
from llmbridge.rpc.methods import Context, Handler
from llmbridge.rpc.status import abort


def register_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Serve reflection by the standard servicer, for these services and itself."""
    servicer = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))

    async def talk(raw_requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[ServerReflectionResponse]:
        async with aclosing(_parsed(raw_requests, context)) as requests:
            async for response in servicer.ServerReflectionInfo(requests, context):
                yield response

    handlers: dict[str, Handler] = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            talk, response_serializer=ServerReflectionResponse.SerializeToString
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, handlers),))


async def _parsed(raw_requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[ServerReflectionRequest]:
    async for raw in raw_requests:
        try:
            request = ServerReflectionRequest.FromString(raw)
        except DecodeError:
            await abort(context, MalformedRequest(ServerReflectionRequest.DESCRIPTOR.name))
        yield request
