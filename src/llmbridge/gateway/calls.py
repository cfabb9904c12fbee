"""Unary calls to the bridge on behalf of a request: once, in bounded time, counted. Knows nothing of JSON."""

import asyncio
from typing import TypeVar

import grpc

from llmbridge.gateway.counts import Counts
from llmbridge.gateway.link import Link
from llmbridge.v1.bridge_service_pb2 import ProduceRequest, ProduceResponse

__all__ = ["CALL_SECONDS", "ask", "produce"]

CALL_SECONDS = 10.0
"""How long the bridge may take to answer. It answers within milliseconds, or says UNAVAILABLE after its own limits."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


async def ask(
    link: Link, method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request
) -> _Response:
    """Send a request once: trying again is for the client to decide. Raises ClientError."""
    with link.connection.translating(own_deadline=True):
        return await method(request, timeout=CALL_SECONDS)


async def produce(link: Link, counts: Counts, request: ProduceRequest) -> ProduceResponse:
    """Send a ProduceRequest as `ask` does, and count it."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        answer = await ask(link, link.bridge.Produce, request)
    except Exception:
        counts.failed()
        raise
    counts.stored(len(request.tokens), clock() - begun)
    return answer
