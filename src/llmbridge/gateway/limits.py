"""Limits on requests as middleware: how large a body may be, how long it may take, how many requests at once.

Knows nothing of what the requests ask for. (Connections and heads are limited before there is a request: `protocol`.)
"""

import asyncio
from contextlib import suppress

import grpc
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmbridge.gateway.extensions import is_beyond_limit
from llmbridge.gateway.problems import Problem, error_info, response_of
from llmbridge.gateway.sse import MEDIA_TYPE, accepts_events, retry

BODY_SECONDS = 30.0
"""How long a client may take to send a request's body."""

DISCARDED_BYTES = 4 * 1024 * 1024
DISCARD_SECONDS = 2.0
"""How much of a body that is refused is taken and thrown away, and for how long, so that the client sees why."""


class Limits:
    """Middleware that refuses requests beyond the limits."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_requests: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_requests = max_requests
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; see ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if self._requests >= self._max_requests or is_beyond_limit(scope):
            await _refusal(scope, self._max_requests)(scope, receive, send)
            return
        self._requests += 1
        try:
            if scope["type"] == "http":
                receive = _Bounded(scope, receive, self._max_body_bytes)
            await self._app(scope, receive, send)
        finally:
            self._requests -= 1


class _Bounded:
    """A request's `receive` that raises Problem once the body is too large or too slow."""

    def __init__(self, scope: Scope, receive: Receive, maximum: int) -> None:
        self._receive = receive
        self._maximum = maximum
        self._received = 0
        self._complete = False
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        headers = Request(scope).headers
        declared = headers.get("content-length", "")
        self._declared = int(declared) if declared.isdecimal() else 0
        self._asks_first = headers.get("expect", "").lower() == "100-continue"

    async def __call__(self) -> Message:
        if self._complete:
            # What is left to come is the client's leaving, and that may take as long as it likes.
            return await self._receive()
        if self._declared > self._maximum:
            # One that waits to be told to send the body has sent nothing that could be lost.
            if not self._asks_first:
                await self._discard()
            raise _too_large(self._maximum, self._declared)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Problem(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the body did not come within {BODY_SECONDS:g} s",
                status=408,
                headers={"connection": "close"},
            ) from None
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._received > self._maximum:
                await self._discard()
                raise _too_large(self._maximum, self._received)
        return message

    async def _discard(self) -> None:
        """Take some of the rest: a connection closed with unread bytes is reset, and the answer lost with it."""
        left = DISCARDED_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._complete and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._complete = not message.get("more_body", False)


def _refusal(scope: Scope, maximum: int) -> Response:
    """Refuse a request because there are too many; an EventSource, which gives up at every other status, by a 200."""
    problem = _too_many("http_max_connections", maximum)
    if scope["type"] != "http" or scope["method"] != "GET" or not accepts_events(Request(scope)):
        return response_of(problem)
    headers = {"cache-control": "no-store, no-transform", "connection": "close"}
    return Response(f": {problem.message}\n".encode() + retry(), headers=headers, media_type=MEDIA_TYPE)


def _limit_exceeded(limit: str, maximum: int, value: int) -> dict[str, object]:
    return error_info("LIMIT_EXCEEDED", {"limit": limit, "maximum": str(maximum), "value": str(value)})


def _too_large(maximum: int, value: int) -> Problem:
    return Problem(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the body is larger than {maximum} bytes (http_max_body_bytes)",
        details=[_limit_exceeded("http_max_body_bytes", maximum, value)],
        status=413,
        # What is left of the body is not read.
        headers={"connection": "close"},
    )


def _too_many(limit: str, maximum: int) -> Problem:
    return Problem(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the gateway has at most {maximum} connections and requests at once ({limit})",
        details=[_limit_exceeded(limit, maximum, maximum + 1)],
        headers={"retry-after": "1", "connection": "close"},
    )
