"""Readers as they are in browsers: an EventSource, which comes back by itself, and a page with a WebSocket that does.

They keep their place and their pauses as docs/http.md says, and come back to any of the gateways, as behind a load
balancer. That a connection is dead they notice by silence: a browser's own means, TCP's, are answered by a proxy.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.chaos.ways import Arrived, Key, ReadingFailed, Way
from tests.support.event_stream import BROWSER, EventStream, events_path

SILENCE_SECONDS = 10.0
"""Coming back without need costs only the request."""

_CONNECT_SECONDS = 10.0
_FIRST_RETRY_MS = 3_000
"""Of an EventSource that was not told a time yet; Chrome's."""
_COME_BACK_SECONDS = (1.0, 3.0)
_RESTART = 1012
_ID = "a"


class Browsers:
    """What the two kinds share. Made by `browsers_of`."""

    def __init__(self, http: httpx.AsyncClient, urls: Sequence[str], dice: random.Random, silence: float) -> None:
        self.http = http
        self.dice = dice
        self.silence = silence
        self.comebacks = 0
        """How often a reader came back after what it had not asked for: a cut, a refusal, silence, an end to pass."""
        self._urls = urls

    @property
    def pages(self) -> Mapping[str, Way]:
        """A way to read by each kind, by its name."""
        return {"EventSource": EventSource(self), "WebSocket": WebSocket(self)}

    def any_url(self) -> str:
        return self.dice.choice(self._urls)


class EventSource:
    """Server-Sent Events. Half of the pages close at the end; the others leave it to the gateway to stop them."""

    def __init__(self, browsers: Browsers) -> None:
        self._browsers = browsers

    async def read(self, key: Key, place: str) -> AsyncGenerator[Arrived]:
        """See Way."""
        session, model, response = key
        path, query = events_path(response, session, model), {"cursor": place} if place else {}
        last_id, retry_ms = "", _FIRST_RETRY_MS
        closes = self._browsers.dice.random() < 0.5
        while True:
            came, taken = EventStream(), 0
            headers = BROWSER | ({"last-event-id": last_id} if last_id else {})
            url = self._browsers.any_url() + path
            over = False
            try:
                async with self._browsers.http.stream("GET", url, params=query, headers=headers) as answer:
                    if answer.status_code == 204:
                        return
                    if answer.status_code != 200:
                        # At which an EventSource gives up.
                        raise ReadingFailed(f"HTTP {answer.status_code} {(await answer.aread()).decode()}")
                    async for chunk in answer.aiter_raw():
                        came.feed(chunk)
                        for event in came.events[taken:]:
                            taken += 1
                            last_id = event.id or last_id
                            if (arrived := _arrived(event.data, last_id)) is not None:
                                over = bool(arrived.finish)
                                yield arrived
                        if over and closes:
                            return
                    came.finish()
            except httpx.TransportError:
                # A browser looks for no reason.
                pass
            self._browsers.comebacks += not over
            retry_ms = came.retries[-1] if came.retries else retry_ms
            await asyncio.sleep(retry_ms / 1_000)


class WebSocket:
    """A page with one subscription on its socket."""

    def __init__(self, browsers: Browsers) -> None:
        self._browsers = browsers

    async def read(self, key: Key, place: str) -> AsyncGenerator[Arrived]:
        """See Way."""
        while True:
            url = self._browsers.any_url().replace("http", "ws", 1) + "/v1/websocket"
            try:
                async with connect(
                    url,
                    proxy=None,
                    compression=None,
                    ping_interval=None,
                    open_timeout=_CONNECT_SECONDS,
                    close_timeout=1,
                ) as socket:
                    await socket.send(_subscription(key, place))
                    async for frame in _frames(socket, self._browsers.silence):
                        place = frame.get("cursor", place)
                        if "retryMs" in frame:
                            self._browsers.comebacks += 1
                            await asyncio.sleep(frame["retryMs"] / 1_000)
                            await socket.send(_subscription(key, place))
                        elif frame["type"] == "ended":
                            return
                        elif (arrived := _arrived(frame, place)) is not None:
                            yield arrived
                            if arrived.finish:
                                return
            except websockets.InvalidStatus as error:
                raise ReadingFailed(f"HTTP {error.response.status_code} to a WebSocket") from error
            except websockets.ConnectionClosed as closed:
                if closed.rcvd is not None and closed.rcvd.code != _RESTART:
                    raise ReadingFailed(f"WebSocket {closed.rcvd}") from closed
            except (websockets.InvalidMessage, OSError):
                # Cut while it opened, refused, or silent.
                pass
            self._browsers.comebacks += 1
            await asyncio.sleep(self._browsers.dice.uniform(*_COME_BACK_SECONDS))


def _subscription(key: Key, place: str) -> str:
    session, model, response = key
    names = {"sessionId": session, "modelId": model, "responseId": response}
    return json.dumps({"type": "subscribe", "id": _ID, **names, "cursor": place})


async def _frames(socket: ClientConnection, silence: float) -> AsyncIterator[dict[str, Any]]:
    """Yield what comes; asks whether anybody is there after a silence, and raises TimeoutError after another."""
    asked = False
    while True:
        try:
            async with asyncio.timeout(silence / 2):
                frame = json.loads(await socket.recv())
        except TimeoutError:
            if asked:
                socket.transport.abort()
                raise
            await socket.send('{"type": "ping"}')
            asked = True
        else:
            asked = False
            if frame["type"] != "pong":
                yield frame


def _arrived(fields: Mapping[str, Any], place: str) -> Arrived | None:
    """Read an event; None if nothing of the stream is in it. Raises ReadingFailed."""
    match fields["type"]:
        case "token":
            return Arrived(place, [(token["sequence"], token["content"]) for token in fields["tokens"]])
        case "complete":
            return Arrived(place, (), fields["finishReason"].upper(), fields["sequence"])
        case "error":
            name = "HistoryLost" if "earliestCursor" in fields else fields["status"]
            raise ReadingFailed(f"{name} {fields.get('reason', '')}".rstrip())
    return None


@asynccontextmanager
async def browsers_of(
    urls: Sequence[str], dice: random.Random, silence: float = SILENCE_SECONDS
) -> AsyncIterator[Browsers]:
    """Browsers that know gateways at `urls`, for the time of the context. After `silence` seconds of it they leave."""
    timeout = httpx.Timeout(silence, connect=_CONNECT_SECONDS, pool=None)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False, verify=False) as http:
        yield Browsers(http, urls, dice, silence)
