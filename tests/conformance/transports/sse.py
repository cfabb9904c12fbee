"""Server-Sent Events, read as an EventSource reads them but without its coming back by itself; all else over REST.

Of what passes, as a drain, an EventSource is told no reason: the response ends, and says when to come back.
"""

import socket
from typing import Any

import httpx
from google.protobuf.message import Message

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest, SubscribeResponse
from llmbridge.v1.lifecycle_service_pb2 import WatchStreamsRequest, WatchStreamsResponse
from tests.conformance.target import Instance
from tests.conformance.transport import PASSES, CallFailed, Incoming, NotOffered, Refusal
from tests.conformance.transports.event_reading import EventReading
from tests.conformance.transports.events import as_the_contract_names_it, cursor_of, error_of, message_of, position_of
from tests.conformance.transports.rest import Rest, broken, path_of, refusal_of
from tests.support.event_stream import BROWSER, EventStream, SentEvent

_RECEIVE_BUFFER_BYTES = 16_384
_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)


class SseTransport:
    """A client of one gateway."""

    shows_heartbeats = True
    tells_what_was_not_said = False
    buffered_bytes = 4_000_000
    """In the kernel's buffers, and between gateway and bridge; seen: 2.2 MB."""

    def __init__(self, instance: Instance) -> None:
        if instance.http_url is None:
            raise NotOffered("the target's HTTP is not given (README.md says how)")
        # Certificates, which take a while to load, are for TLS only.
        tls = instance.http_url.startswith("https:")
        self._http = httpx.AsyncClient(base_url=instance.http_url, timeout=20, trust_env=False, verify=tls)
        # What is not read stays with the gateway, as far as that can be had.
        narrow = httpx.AsyncHTTPTransport(
            verify=tls,
            limits=_NO_LIMITS,
            socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)],
        )
        self._events = httpx.AsyncClient(base_url=instance.http_url, timeout=None, transport=narrow)
        self._rest = Rest(self._http)

    async def call(self, request: Message, timeout: float) -> Any:
        return await self._rest.call(request, timeout)

    async def call_with_garbage(self) -> None:
        await self._rest.call_with_garbage()

    def subscribe(self, request: SubscribeRequest) -> Incoming[SubscribeResponse]:
        if request.HasField("group"):
            raise NotOffered("groups are read over gRPC only")
        return _Reading(self._events, request)

    def watch(self, request: WatchStreamsRequest) -> Incoming[WatchStreamsResponse]:
        raise NotOffered("the lifecycle feed is watched over gRPC only")

    async def close(self) -> None:
        await self._events.aclose()
        await self._http.aclose()


class _Reading(EventReading):
    """One response."""

    def __init__(self, http: httpx.AsyncClient, request: SubscribeRequest) -> None:
        super().__init__(request)
        self._http = http
        self._path = f"{path_of(request.stream)}/events"
        self._response: httpx.Response | None = None
        self._chunks: Any = None
        self._came = EventStream()
        self._taken = 0
        self._comments = 0

    async def cancel(self) -> None:
        self._over = True
        if self._response is not None:
            await self._response.aclose()

    async def _more(self) -> None:
        """Take what comes next: a chunk, or the response's end."""
        try:
            if self._response is None:
                await self._open()
                return
            self._came.feed(await anext(self._chunks))
        except StopAsyncIteration:
            self._came.finish()
            self._finish()
        except httpx.TransportError as error:
            self._fail(broken(error))
        else:
            for event in self._came.events[self._taken :]:
                self._take_heartbeats()
                self._take(event)
                self._taken += 1
            self._take_heartbeats()

    def _take_heartbeats(self) -> None:
        """Take those that came before the next event."""
        for before in self._came.before[self._comments :]:
            if before > self._taken:
                return
            self._comments += 1
            self._waiting.append(SubscribeResponse(cursor=self._place))

    async def _open(self) -> None:
        position = position_of(self._request)
        query = {"position": position} if position else {}
        headers = BROWSER | ({"last-event-id": self._place} if self._place else {})
        built = self._http.build_request("GET", self._path, params=query, headers=headers)
        self._response = await self._http.send(built, stream=True)
        self._chunks = self._response.aiter_raw()
        if self._response.status_code == 204:
            self._attached = self._over = True
        elif self._response.status_code != 200:
            await self._response.aread()
            self._fail(as_the_contract_names_it(refusal_of(self._response)))

    def _take(self, event: SentEvent) -> None:
        fields = event.data
        assert fields["type"] == event.name
        assert not self._over, "an event came after the end"
        if event.name == "connected":
            assert not self._attached
            self._attached = True
            if event.id is not None:
                # What "now" means.
                self._place = cursor_of(event.id)
                self._waiting.append(SubscribeResponse(cursor=self._place))
        elif event.name == "error":
            self._fail(error_of(fields, self._place))
        else:
            assert event.id is not None, "what is stored has an id"
            self._place = event.id
            self._waiting.append(message_of(fields, self._place))
            self._over = event.name == "complete"

    def _finish(self) -> None:
        if self._over:
            return
        # One came with the beginning.
        assert len(self._came.retries) > self._attached, "it ended without a word"
        message, retry_ms = self._came.comments[-1], self._came.retries[-1]
        metadata = {"cursor": self._place}
        self._fail(CallFailed(Refusal("UNAVAILABLE", message, "", PASSES, metadata, retry_ms, self._place)))

    def _fail(self, failed: CallFailed) -> None:
        self._end = failed
        self._over = True
