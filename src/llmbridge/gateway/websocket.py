"""Many streams over one WebSocket: the events of Server-Sent Events as JSON frames, each with its subscription's `id`.

Frames from the page are in `websocket_frames`. To the page, for each subscription: `connected`, `token` …, and at last
one of `complete`, `error`, and `ended` (unsubscribed, or nothing comes after the cursor); then the id is free. `token`
and `complete` have a `cursor` to subscribe with again; so has a `connected` that began at "latest". An error that
passes has `retryMs`: subscribe again after that time. Besides, `cancelled` answers `cancel`, and `pong` answers `ping`.
When the gateway or the bridge drains, the socket is closed with code 1012: connect again.

A page that does not read its socket holds all its subscriptions, and nobody else's: each of them keeps one event at
most here, and the rest stays in the bridge's log.
"""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from llmbridge.client.errors import ClientError
from llmbridge.client.values import FinishReason, Sealer
from llmbridge.gateway.access import SUBSCRIBE
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.events import COMPLETE, HEARTBEAT, Event, dump, error_fields, passes
from llmbridge.gateway.following import Encoded, connected, opened
from llmbridge.gateway.places import Start
from llmbridge.gateway.problems import Problem, error_info, invalid_field, response_of
from llmbridge.gateway.websocket_frames import BadFrame, Cancel, Frame, Ping, Subscribe, Unsubscribe, read_frame
from llmbridge.v1.bridge_service_pb2 import CancelRequest
from llmbridge.v1.stream_pb2 import StreamRef

PATH = "/v1/websocket"

ENDED = "ended"

MAX_SUBSCRIPTIONS = 100
MAX_FRAME_CHARACTERS = 65_536
CANCEL_SECONDS = 10.0
RETRY_MS = 1_000

# RFC 6455 and its registry.
_UNSUPPORTED_DATA = 1003
_TOO_BIG = 1009
_RESTART = 1012


class _Leave(Exception):
    """The socket is to be closed."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Subscription:
    stream: StreamRef
    task: asyncio.Task[None]


class _Socket:
    """One socket and its subscriptions. One task reads frames, and each subscription has one that writes events."""

    def __init__(self, gateway: Gateway, encoded: Encoded, socket: WebSocket) -> None:
        self._gateway = gateway
        self._encoded = encoded
        self._socket = socket
        self._subscriptions: dict[str, _Subscription] = {}
        # So that one frame waits for the page to take the one before, and not one of each subscription.
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        """Serve until the page leaves or must leave."""
        await self._socket.accept()
        leave: _Leave | None = None
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._take(group)
        except* WebSocketDisconnect:
            # The page has left.
            pass
        except* _Leave as leaves:
            leave = next(error for error in leaves.exceptions if isinstance(error, _Leave))
        if leave is not None:
            with suppress(WebSocketDisconnect):
                await self._socket.close(leave.code, leave.reason)

    async def _take(self, group: asyncio.TaskGroup) -> None:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"], message.get("reason"))
        text = message.get("text")
        if text is None:
            raise _Leave(_UNSUPPORTED_DATA, "frames are JSON text")
        if len(text) > MAX_FRAME_CHARACTERS:
            raise _Leave(_TOO_BIG, f"a frame may have {MAX_FRAME_CHARACTERS} characters")
        id_ = ""
        try:
            frame = read_frame(text)
            id_ = frame.id
            await self._serve(frame, group)
        except BadFrame as error:
            await self._send_error(error.id, error.problem)
        except (Problem, ClientError) as error:
            await self._send_error(id_, error)

    async def _serve(self, frame: Frame, group: asyncio.TaskGroup) -> None:
        match frame:
            case Subscribe():
                await self._subscribe(frame, group)
            case Unsubscribe():
                await self._unsubscribe(frame)
            case Cancel():
                await self._cancel(frame)
            case Ping():
                await self._send({"type": "pong", **({"id": frame.id} if frame.id else {})})

    async def _subscribe(self, frame: Subscribe, group: asyncio.TaskGroup) -> None:
        if frame.id in self._subscriptions:
            # Without the id, since the subscription that has it goes on.
            raise BadFrame(invalid_field("id", f"id: {frame.id!r} is subscribed already"))
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            raise _too_many_subscriptions()
        await self._gateway.access.check(self._socket, SUBSCRIBE, frame.stream)
        if frame.start is None:
            await self._send({"type": ENDED, "id": frame.id})
            return
        task = group.create_task(self._read(frame.id, frame.stream, frame.start), name=f"subscription {frame.id}")
        self._subscriptions[frame.id] = _Subscription(frame.stream, task)

    async def _unsubscribe(self, frame: Unsubscribe) -> None:
        task = self._find(frame.id).task
        task.cancel()
        await asyncio.wait((task,))
        self._subscriptions.pop(frame.id, None)
        # It may have been sending its last frame.
        if task.cancelled():
            await self._send({"type": ENDED, "id": frame.id})

    async def _cancel(self, frame: Cancel) -> None:
        stream = self._find(frame.id).stream
        await self._gateway.access.check(self._socket, SUBSCRIBE, stream)
        link = self._gateway.link
        with link.connection.translating(own_deadline=True):
            answer = await link.bridge.Cancel(CancelRequest(stream=stream, reason=frame.reason), timeout=CANCEL_SECONDS)
        await self._send(
            {
                "type": "cancelled",
                "id": frame.id,
                "finishReason": FinishReason(answer.finish_reason).name.lower(),
                "sealer": Sealer(answer.sealer).name.lower(),
                "sealedNow": answer.sealed_now,
            }
        )

    def _find(self, id_: str) -> "_Subscription":
        found = self._subscriptions.get(id_)
        if found is None:
            raise BadFrame(invalid_field("id", f"id: nothing is subscribed as {id_!r}"))
        return found

    async def _read(self, id_: str, stream: StreamRef, start: Start) -> None:
        """Send a stream's events, to its end. Cancelled by `unsubscribe`, and with the socket."""
        try:
            async with opened(self._gateway.link, self._encoded, stream, start, "websocket") as following:
                if not following.is_over:
                    await self._send_event(id_, connected(self._encoded, stream, following.place))
                async for event in following:
                    if event.name == COMPLETE:
                        # Before the page can know: it may use the id again at once.
                        del self._subscriptions[id_]
                    if event.name != HEARTBEAT:
                        await self._send_event(id_, event)
        except ClientError as error:
            if error.reason == "DRAINING":
                raise _Leave(_RESTART, "draining: connect again") from None
            del self._subscriptions[id_]
            await self._send_error(id_, error)
            return
        if following.is_over:
            del self._subscriptions[id_]
            await self._send({"type": ENDED, "id": id_})

    async def _send_event(self, id_: str, event: Event) -> None:
        # The event's JSON is shared by all who read the stream; what is the subscription's own stands before it.
        own = dump({"id": id_, "cursor": event.place} if event.place else {"id": id_})
        await self._send_text(f"{own[:-1]},{event.data[1:]}")

    async def _send_error(self, id_: str, error: ClientError | Problem) -> None:
        own: dict[str, Any] = {"id": id_} if id_ else {}
        if isinstance(error, ClientError) and passes(error):
            own["retryMs"] = int(max(error.retry_delay * 1_000, RETRY_MS) * random.uniform(1, 3))
        await self._send({**error_fields(error), **own})

    async def _send(self, fields: dict[str, Any]) -> None:
        await self._send_text(dump(fields))

    async def _send_text(self, text: str) -> None:
        async with self._sending:
            await self._socket.send_text(text)


def _too_many_subscriptions() -> Problem:
    metadata = {"limit": "max_subscriptions", "maximum": str(MAX_SUBSCRIPTIONS), "value": str(MAX_SUBSCRIPTIONS + 1)}
    return Problem(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"a socket may have {MAX_SUBSCRIPTIONS} subscriptions",
        details=[error_info("LIMIT_EXCEEDED", metadata)],
    )


def routes(gateway: Gateway) -> list[BaseRoute]:
    """Give the endpoint."""
    encoded = Encoded()

    async def serve(socket: WebSocket) -> None:
        await _Socket(gateway, encoded, socket).serve()

    async def refuse(_: Request) -> Response:
        problem = Problem(
            grpc.StatusCode.FAILED_PRECONDITION,
            "this is for a WebSocket: connect to it by ws:// or wss://",
            status=426,
            headers={"upgrade": "websocket", "connection": "upgrade"},
        )
        return response_of(problem)

    return [WebSocketRoute(PATH, serve), Route(PATH, refuse, methods=["GET"])]
