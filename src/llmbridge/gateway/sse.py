"""Server-Sent Events of one stream, for a browser's EventSource, which resumes by itself.

What EventSource does decides what is answered. It comes back, with the last `id:` it got, when a response of status 200
ends or a connection breaks; at any other status it stops for good. So, to a request that accepts `text/event-stream`:

- what passes (the bridge is away, drains, or is full) is 200 and an end, with a `retry:` time: it comes back;
- a reconnect after the stream's end is 204: it stops;
- what coming back does not help is an `error` event, with an id at which the reconnect is answered with 204; or status
  400, 401 or 403 where the request itself is wrong.

To everybody else what passes is 503 or 429, with Retry-After.
"""

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from llmbridge.client.errors import ClientError, Disconnected, HistoryLost
from llmbridge.gateway.access import SUBSCRIBE
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.event_body import EventBody
from llmbridge.gateway.events import ERROR, HEARTBEAT, Event, error_fields, passes, reading_problem
from llmbridge.gateway.following import Encoded, Following, connected, opened
from llmbridge.gateway.places import END, Start, start_of
from llmbridge.gateway.problems import Problem
from llmbridge.gateway.queries import check_query, place_of
from llmbridge.v1.stream_pb2 import StreamRef

MEDIA_TYPE = "text/event-stream"
_MODEL = "/v1/sessions/{session_id}/models/{model_id}"
PATHS = (f"{_MODEL}/responses/{{response_id}}/events", f"{_MODEL}/events")
"""The second is that of the stream whose response id is empty."""

RETRY_MS = 1_000
"""What a browser waits at least before it comes back; up to three times as long, so that not all come at once."""

_HEARTBEAT = b": heartbeat\n\n"
_HEADERS = {
    "cache-control": "no-store, no-transform",
    # After a drain the browser is to connect anew, and so to another instance.
    "connection": "close",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """How events are written: with their names or not, and what stands before the place in an id."""

    named: bool = True
    id_prefix: str = ""

    def write(self, event: Event) -> bytes:
        """Write one event, as it goes over the wire."""
        if event.name == HEARTBEAT:
            return _HEARTBEAT
        name = f"event: {event.name}\n" if self.named else ""
        place = f"id: {self.id_prefix}{event.place}\n" if event.place else ""
        return f"{name}{place}data: {event.data}\n\n".encode()

    def write_end(self, error: ClientError | Problem, encoded: Encoded, stream: StreamRef) -> bytes:
        """Write what the last thing is after an error: a reason to come back, or an event and an id that ends it."""
        if isinstance(error, ClientError) and passes(error):
            # A comment is for people: line breaks would end it.
            reason = " ".join(error.message.split())
            return f": {reason}\n".encode() + retry(max(error.retry_delay * 1_000, RETRY_MS))
        return self.write(Event(ERROR, encoded.write(error_fields(error), stream), END))


class EventSource(Response):
    """Answers with a stream's events from `start` on; None: there are none."""

    def __init__(
        self,
        gateway: Gateway,
        encoded: Encoded,
        stream: StreamRef,
        start: Start | None,
        *,
        shape: Shape,
        accepts_events: bool,
    ) -> None:
        super().__init__()
        self._gateway = gateway
        self._encoded = encoded
        self._stream = stream
        self._start = start
        self._shape = shape
        self._accepts_events = accepts_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI has it. Raises Problem before anything is sent."""
        if self._start is None:
            await nothing_more()(scope, receive, send)
            return
        async with AsyncExitStack() as reading:
            try:
                begun = await reading.enter_async_context(
                    opened(self._gateway.link, self._encoded, self._stream, self._start, "sse")
                )
            except ClientError as error:
                response = self._refusal(error)
            else:
                response = nothing_more() if begun.is_over else event_body(self._events(begun))
            await response(scope, receive, send)

    def _refusal(self, error: ClientError) -> Response:
        told_by_event = isinstance(error, (HistoryLost, Disconnected)) or (self._accepts_events and passes(error))
        if not told_by_event:
            raise reading_problem(error)
        return event_body(only(self._shape.write_end(error, self._encoded, self._stream)))

    async def _events(self, following: Following) -> AsyncGenerator[bytes]:
        yield retry() + self._shape.write(connected(self._encoded, self._stream, following.place))
        try:
            async for event in following:
                yield event.frame
        except ClientError as error:
            yield self._shape.write_end(error, self._encoded, self._stream)


def event_body(events: AsyncGenerator[bytes]) -> EventBody:
    """Make the response that sends these."""
    return EventBody(events, _HEADERS)


def nothing_more() -> Response:
    """Make the answer that stops an EventSource."""
    return Response(status_code=204, headers={"cache-control": "no-store"})


def retry(at_least_ms: float = RETRY_MS) -> bytes:
    """Write the time after which to come back: at least this, and up to three times as much."""
    # Without an empty line: it is no event, and some clients would take it for one.
    return f"retry: {int(at_least_ms * random.uniform(1, 3))}\n".encode()


def accepts_events(request: Request) -> bool:
    """Whether the client says that it knows events, as every EventSource does."""
    return MEDIA_TYPE in request.headers.get("accept", "").lower()


def get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """Make a route for GET alone: HEAD, which routes allow with it, would wait for a body's end."""
    route = Route(path, endpoint, methods=["GET"])
    route.methods = {"GET"}
    return route


async def only(piece: bytes) -> AsyncGenerator[bytes]:
    """Yield this one piece."""
    yield piece


def routes(gateway: Gateway) -> list[BaseRoute]:
    """Give the endpoint."""
    shape = Shape()
    encoded = Encoded(framed=lambda event, _: shape.write(event))

    async def events(request: Request) -> Response:
        names = request.path_params
        stream = StreamRef(
            session_id=names["session_id"], model_id=names["model_id"], response_id=names.get("response_id", "")
        )
        await gateway.access.check(request, SUBSCRIBE, stream)
        check_query(request, ("cursor", "position"))
        start = start_of(place_of(request), request.query_params.get("position", ""))
        return EventSource(gateway, encoded, stream, start, shape=shape, accepts_events=accepts_events(request))

    return [get(path, events) for path in PATHS]
