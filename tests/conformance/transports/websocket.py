"""The events over WebSockets, one for each reading; all else over gRPC."""

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import websockets
from google.protobuf.message import Message
from websockets.asyncio.client import ClientConnection, connect

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest, SubscribeResponse
from llmbridge.v1.lifecycle_service_pb2 import WatchStreamsRequest, WatchStreamsResponse
from tests.conformance.target import Instance
from tests.conformance.transport import CallFailed, Incoming, NotOffered, Refusal
from tests.conformance.transports.event_reading import EventReading
from tests.conformance.transports.events import cursor_of, error_of, message_of, position_of
from tests.conformance.transports.grpc_stubs import GrpcTransport

_RECEIVE_BUFFER_BYTES = 16_384
_ID = "a"
_RESTART = 1012
"""The close code that means: connect again (docs/http.md)."""
_PAUSE_MS = 1_000
"""What the page there waits at least before it does."""


class WebSocketTransport:
    """A client of one gateway and of its bridge."""

    shows_heartbeats = False
    """They are pings of the protocol, which pages do not see."""
    tells_what_was_not_said = False
    buffered_bytes = 4_000_000
    """In the kernel's buffers, and between gateway and bridge; seen: 2.2 MB."""

    def __init__(self, instance: Instance) -> None:
        if instance.http_url is None:
            raise NotOffered("the target's HTTP is not given (README.md says how)")
        self._url = instance.http_url
        self._grpc = GrpcTransport(instance)
        self._readings: list[_Reading] = []

    async def call(self, request: Message, timeout: float) -> Any:
        return await self._grpc.call(request, timeout)

    async def call_with_garbage(self) -> None:
        await self._grpc.call_with_garbage()

    def subscribe(self, request: SubscribeRequest) -> Incoming[SubscribeResponse]:
        if request.HasField("group"):
            raise NotOffered("groups are read over gRPC only")
        self._readings.append(_Reading(self._url, request))
        return self._readings[-1]

    def watch(self, request: WatchStreamsRequest) -> Incoming[WatchStreamsResponse]:
        raise NotOffered("the lifecycle feed is watched over gRPC only")

    async def close(self) -> None:
        for reading in self._readings:
            await reading.cancel()
        await self._grpc.close()


class _Reading(EventReading):
    """One socket with one subscription."""

    def __init__(self, url: str, request: SubscribeRequest) -> None:
        super().__init__(request)
        self._address = urlsplit(url)
        self._socket: ClientConnection | None = None

    async def cancel(self) -> None:
        self._over = True
        if self._socket is not None:
            # As a page that is closed: without a word.
            self._socket.transport.abort()
            await self._socket.wait_closed()

    async def _more(self) -> None:
        try:
            if self._socket is None:
                self._socket = await self._open()
                await self._socket.send(json.dumps(self._subscribe_frame()))
                return
            self._take(json.loads(await self._socket.recv()))
        except websockets.ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code == _RESTART:
                self._fail("DRAINING", closed.rcvd.reason, _PAUSE_MS)
            else:
                self._fail("", str(closed))
        except OSError as error:
            self._fail("", str(error))

    async def _open(self) -> ClientConnection:
        near = socket.socket()
        # What is not read stays with the gateway, as far as that can be had.
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        near.setblocking(False)
        host, secure = self._address.hostname, self._address.scheme == "https"
        assert host is not None
        port = self._address.port or (443 if secure else 80)
        try:
            await asyncio.get_running_loop().sock_connect(near, (host, port))
        except BaseException:
            near.close()
            raise
        url = f"{'wss' if secure else 'ws'}://{self._address.netloc}/v1/websocket"
        return await connect(url, sock=near, proxy=None, compression=None, max_queue=1, max_size=None)

    def _subscribe_frame(self) -> dict[str, str]:
        stream = self._request.stream
        frame = {"sessionId": stream.session_id, "modelId": stream.model_id, "responseId": stream.response_id}
        frame |= {"cursor": self._place, "position": position_of(self._request)}
        return {"type": "subscribe", "id": _ID} | {name: value for name, value in frame.items() if value}

    def _take(self, frame: dict[str, Any]) -> None:
        assert not self._over, "a frame came after the last"
        if "cursor" in frame:
            self._place = cursor_of(frame["cursor"])
        match frame["type"]:
            case "connected":
                assert not self._attached
                self._attached = True
                if "cursor" in frame:
                    # What "now" means.
                    self._waiting.append(SubscribeResponse(cursor=self._place))
            case "token" | "complete" as kind:
                assert frame["id"] == _ID
                assert "cursor" in frame, "what is stored has a cursor"
                self._waiting.append(message_of(frame, self._place))
                self._over = kind == "complete"
            case "ended":
                self._attached = self._over = True
            case _:
                self._over = True
                self._end = error_of(frame, self._place, frame.get("retryMs"))

    def _fail(self, reason: str, message: str, retry_ms: int | None = None) -> None:
        self._over = True
        metadata = {"cursor": self._place} if reason else {}
        domain, trailer = ("llmbridge", self._place) if reason else ("", None)
        self._end = CallFailed(Refusal("UNAVAILABLE", message, domain, reason, metadata, retry_ms, trailer))
