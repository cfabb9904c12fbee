"""A response of server-sent events that ends as its reader must see it: cleanly, or cut.

Both chat protocols here take a body's clean end for the answer's, so one that breaks off must not end cleanly.
Knows nothing of what the events say.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmbridge.client.tasks import stop
from llmbridge.gateway.extensions import break_off
from llmbridge.gateway.problems import Problem

__all__ = ["DONE", "KEEP_ALIVE", "Cut", "EventBody", "event", "while_connected"]

KEEP_ALIVE = b":\n\n"
"""A comment: proxies see that the connection lives, and clients see nothing."""

DONE = b"data: [DONE]\n\n"
"""What ends a body, by OpenAI's custom."""

_Result = TypeVar("_Result")

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    # nginx would hold the events back.
    "x-accel-buffering": "no",
}


class Cut(Exception):
    """Raised by a body's generator to break the connection off instead of ending the body."""


def event(data: Mapping[str, Any], cursor: str = "") -> bytes:
    """Write an event. `cursor` becomes its id: whoever has this event goes on from there."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"id: {cursor}\ndata: {text}\n\n" if cursor else f"data: {text}\n\n").encode()


class EventBody(Response):
    """Sends what a generator yields, as fast as the client takes it.

    The generator is closed as soon as the client is gone, and before the response ends. When it raises Cut, the body
    stays without its end, and the connection is closed: every client sees an error then, and not an end.
    """

    def __init__(self, events: AsyncGenerator[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers={**_HEADERS, **(headers or {})})
        # A stream has no length that is known before.
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI has it."""
        if scope["method"] == "HEAD":
            await self._events.aclose()
            await Response(status_code=self.status_code, headers=dict(self.headers))(scope, receive, send)
            return
        try:
            async with asyncio.timeout(None) as connected:
                watcher = asyncio.create_task(_expire(connected, receive), name="client watch")
                try:
                    await self._write(scope, send)
                finally:
                    await stop(watcher)
        except TimeoutError:
            if not connected.expired():
                raise
            break_off(scope)

    async def _write(self, scope: Scope, send: Send) -> None:
        async with aclosing(self._events):
            try:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for piece in self._events:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except Cut:
                break_off(scope)
            except OSError:
                # The client is gone, and the server says so by raising it.
                return


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """Do work for a client whose request was read; None, and the work is cancelled, when the client leaves before."""
    worker = asyncio.create_task(work, name="work for a client")
    watcher = asyncio.create_task(_disconnected(receive), name="client watch")
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.wait((worker, watcher))
    return None if worker.cancelled() else worker.result()


async def _expire(connected: asyncio.Timeout, receive: Receive) -> None:
    """End the scope as soon as the client is gone."""
    await _disconnected(receive)
    connected.reschedule(0)


async def _disconnected(receive: Receive) -> None:
    """Wait until the client is gone. One that never sends the body it announced is none to wait for, either."""
    with suppress(Problem):
        while (await receive())["type"] != "http.disconnect":
            pass
