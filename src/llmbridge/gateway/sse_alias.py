"""`GET /sse/stream/{sessionId}?modelId=…`, as pages know it from before: events without names, for `onmessage`.

Which response: that of `responseId`; without one the newest of session and model; without a model the session's newest
that is open. Where there is none, the page waits for it. A reconnect stays with the response it began with, whatever
has begun since: the id of an event is `<model>/<response>/<place>`, names percent-encoded.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from llmbridge.client.errors import ClientError
from llmbridge.gateway.access import SUBSCRIBE
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.events import HEARTBEAT, Event, passes
from llmbridge.gateway.following import Encoded, connected, opened
from llmbridge.gateway.names import decoded
from llmbridge.gateway.newest import newest_response
from llmbridge.gateway.places import Start, start_of
from llmbridge.gateway.problems import Problem, invalid_field
from llmbridge.gateway.queries import check_query, place_of
from llmbridge.gateway.sse import (
    EventSource,
    Shape,
    accepts_events,
    event_body,
    get,
    nothing_more,
    only,
    retry,
)
from llmbridge.v1.stream_pb2 import STREAM_STATE_OPEN, StreamInfo, StreamRef

PATHS = ("/sse/stream/{session_id}", "/api/sse/stream/{session_id}")

HEARTBEAT_SECONDS = 15.0
LOOK_SECONDS = (0.1, 1.0)
"""How often a page that waits looks for its response: at first, and later."""

_QUERY = ("modelId", "responseId")
_NAMES = ("sessionId", "modelId", "responseId")


def unnamed(fields: Mapping[str, Any], stream: StreamRef) -> dict[str, Any]:
    """Write an event as pages know it: the fields by themselves, and together as `data`; and who speaks."""
    inner = {name: value for name, value in fields.items() if name not in ("type", "tokens")}
    names = dict(zip(_NAMES, (stream.session_id, stream.model_id, stream.response_id), strict=True))
    return {"type": fields["type"], "data": inner, **fields, **names}


class _Alias:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._encoded = Encoded(unnamed, lambda event, stream: _shape(stream).write(event))

    async def get(self, request: Request) -> Response:
        # Pages that exist may put anything else into their addresses.
        check_query(request, (*_QUERY, "cursor", "position"), others=True)
        query = request.query_params
        stream = StreamRef(
            session_id=request.path_params["session_id"],
            model_id=query.get("modelId", ""),
            response_id=query.get("responseId", ""),
        )
        if stream.response_id and not stream.model_id:
            raise invalid_field("modelId", "modelId: must be given with responseId")
        await self._gateway.access.check(request, SUBSCRIBE, stream)
        names, place = _divide(place_of(request))
        start = start_of(place, query.get("position", ""))
        if start is None:
            return nothing_more()
        if names is not None:
            stream = StreamRef(session_id=stream.session_id, model_id=names[0], response_id=names[1])
        elif "responseId" not in query:
            try:
                found = await self._look(stream)
            except ClientError as error:
                if not (accepts_events(request) and passes(error)):
                    raise
                return event_body(only(Shape(named=False).write_end(error, self._encoded, stream)))
            if found is None:
                return event_body(self._wait(request, stream, start))
            stream = found
        return EventSource(
            self._gateway,
            self._encoded,
            stream,
            start,
            shape=_shape(stream),
            accepts_events=accepts_events(request),
        )

    async def _look(self, wanted: StreamRef) -> StreamRef | None:
        def meant(info: StreamInfo) -> bool:
            if wanted.model_id:
                return info.stream.model_id == wanted.model_id
            return info.state == STREAM_STATE_OPEN

        info = await newest_response(self._gateway.link, wanted.session_id, meant)
        return None if info is None else info.stream

    async def _wait(self, request: Request, wanted: StreamRef, start: Start) -> AsyncGenerator[bytes]:
        """Say that the page is connected, wait for its response, and go on with that."""
        shape, stream = Shape(named=False), wanted
        yield retry() + shape.write(connected(self._encoded, wanted))
        clock = asyncio.get_running_loop().time
        pause, spoken = LOOK_SECONDS[0], clock()
        try:
            while (found := await self._look(wanted)) is None:
                if self._gateway.link.draining:
                    return
                if clock() - spoken >= HEARTBEAT_SECONDS:
                    spoken = clock()
                    yield shape.write(Event(HEARTBEAT))
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(pause * 1.5, LOOK_SECONDS[1])
            stream, shape = found, _shape(found)
            await self._gateway.access.check(request, SUBSCRIBE, stream)
            async with opened(self._gateway.link, self._encoded, stream, start, "sse") as following:
                async for event in following:
                    yield event.frame
        except (ClientError, Problem) as error:
            yield shape.write_end(error, self._encoded, stream)


def _shape(stream: StreamRef) -> Shape:
    return Shape(named=False, id_prefix=f"{quote(stream.model_id, safe='')}/{quote(stream.response_id, safe='')}/")


def _divide(place: str) -> tuple[tuple[str, str] | None, str]:
    """Divide an event's id into the names of model and response, if it has them, and the place. Raises Problem."""
    match place.split("/"):
        case [only]:
            return None, only
        case [model, response, rest] if model:
            return (decoded(model, "cursor", "the event's id"), decoded(response, "cursor", "the event's id")), rest
        case _:
            raise invalid_field("cursor", "cursor: this is not the id of an event")


def routes(gateway: Gateway) -> list[BaseRoute]:
    """Give the endpoint, with and without the prefix."""
    alias = _Alias(gateway)
    return [get(path, alias.get) for path in PATHS]
