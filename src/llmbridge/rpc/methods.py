"""How methods are registered: bytes come in unparsed and are parsed in one place, errors go out through one table.

With gRPC's own deserializers, bytes that are no message end a call with INTERNAL or UNKNOWN; here it is
INVALID_ARGUMENT.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from llmbridge.errors import Draining, MalformedRequest
from llmbridge.rpc.limits import MAX_SHARED_MESSAGE_BYTES, Limits, check_size
from llmbridge.rpc.status import Ending, abort, ending_of

logger = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Gate:
    """Lets calls in until it is closed, and tells when the last one is out."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def pass_through(self) -> Iterator[None]:
        """Count a call while it lasts. Raises Draining when the gate is closed."""
        if self._closed:
            raise Draining
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()

    def close(self) -> None:
        """Let no more calls in."""
        self._closed = True

    async def wait_until_empty(self) -> None:
        """Wait until no call is inside."""
        await self._empty.wait()


class Methods:
    """Makes gRPC method handlers of functions from message to message."""

    def __init__(self, gate: Gate, limits: Limits) -> None:
        self._gate = gate
        self._limits = limits

    def unary(self, request_type: type[Request], handle: Callable[[Request], Awaitable[Message]]) -> Handler:
        """Register a function that answers a request with a response."""

        async def call(raw: bytes, context: Context) -> bytes:
            try:
                with self._gate.pass_through():
                    check_size(raw, self._limits.max_request_bytes)
                    return (await handle(parsed(request_type, raw))).SerializeToString()
            except Exception as error:
                await abort(context, error)

        return grpc.unary_unary_rpc_method_handler(call)

    def server_stream(
        self, request_type: type[Request], handle: Callable[[Request, Context], Awaitable[None]]
    ) -> Handler:
        """Register a function that writes encoded responses to the context."""

        async def call(raw: bytes, context: Context) -> None:
            async def serve() -> None:
                check_size(raw, self._limits.max_request_bytes)
                await handle(parsed(request_type, raw), context)

            await self._serve_stream(serve(), context)

        return grpc.unary_stream_rpc_method_handler(call)

    def bidi(self, handle: Callable[[AsyncIterator[bytes], Context], Coroutine[Any, Any, None]]) -> Handler:
        """Register a function that reads requests, to the client's last, and writes encoded responses to the context.

        It parses them by `parsed_part`: a generator that did so would cost each message another turn.
        """

        async def call(raw_requests: AsyncIterator[bytes], context: Context) -> None:
            await self._serve_stream(handle(raw_requests, context), context)

        return grpc.stream_stream_rpc_method_handler(call)

    async def _serve_stream(self, serving: Coroutine[Any, Any, None], context: Context) -> None:
        """Run a handler that writes to the context, and end its call as it ends."""
        ending = None
        try:
            with closing(serving), self._gate.pass_through():
                await serving
        except grpc.aio.InternalError as error:
            # gRPC's own, where a write meets a client that has just gone: there is nobody left to tell.
            logger.debug("a client has gone while it was written to: %s", error)
        except Exception as error:
            # As above, where gRPC knows already.
            if not context.done():
                ending = ending_of(error)
        # Not in there: a client that takes nothing keeps this waiting, and the error would keep all that its
        # traceback refers to. It must be told all the same: gRPC ends no call by itself, it would wait for ever.
        if ending is not None:
            await _tell(ending, context)


def parsed_part(request_type: type[Request], raw: bytes) -> Request:
    """Parse one of the requests of a call that many share. Raises MalformedRequest, or LimitExceeded for its size."""
    check_size(raw, MAX_SHARED_MESSAGE_BYTES)
    return parsed(request_type, raw)


def parsed(request_type: type[Request], raw: bytes) -> Request:
    """Parse a request. Raises MalformedRequest."""
    try:
        return request_type.FromString(raw)
    except DecodeError:
        raise MalformedRequest(request_type.DESCRIPTOR.name) from None


async def _tell(ending: Ending, context: Context) -> None:
    try:
        await ending.tell(context)
    except grpc.aio.InternalError as error:
        logger.debug("a client has gone before it took how its call ended: %s", error)
