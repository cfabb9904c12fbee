"""One Subscribe call as an async generator. Knows nothing of how its messages are shown to a browser."""

import asyncio
from collections.abc import AsyncGenerator

import grpc

from llmbridge.client.errors import Unavailable
from llmbridge.gateway.link import Link
from llmbridge.v1.bridge_service_pb2 import (
    POSITION_UNSPECIFIED,
    Position,
    SubscribeRequest,
    SubscribeResponse,
)
from llmbridge.v1.stream_pb2 import StreamRef

TRANSPORT_KEY = "llmbridge-transport"
"""The metadata that tells the bridge how a reader came here (see ConnectionService)."""


async def subscribe(
    link: Link,
    stream: StreamRef,
    *,
    after_cursor: str = "",
    position: Position.ValueType = POSITION_UNSPECIFIED,
    transport: str = "sse",
) -> AsyncGenerator[SubscribeResponse]:
    """Read a stream by one Subscribe call: every message, heartbeats included, to the one with the completion.

    `after_cursor` goes before `position`. `transport` is `sse` or `websocket`. Raises ClientError: Unavailable with the
    reason DRAINING also when the gateway itself stops. Closing the generator cancels the call.
    """
    request = SubscribeRequest(stream=stream)
    if after_cursor:
        request.after_cursor = after_cursor
    elif position != POSITION_UNSPECIFIED:
        request.position = position
    call = link.bridge.Subscribe(request, metadata=((TRANSPORT_KEY, transport),))
    with link.reading(call):
        try:
            with link.connection.translating(own_deadline=False):
                async for message in call:
                    yield message
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if link.draining and task is not None and not task.cancelling():
                raise Unavailable(
                    "the gateway is shutting down", code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING"
                ) from None
            raise
