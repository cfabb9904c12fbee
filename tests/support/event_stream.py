"""Server-Sent Events as they come over the wire, read as the HTML standard says, and strictly."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

BROWSER = {"accept": "text/event-stream"}


def events_path(response: str = "r", session: str = "s", model: str = "m") -> str:
    return f"/v1/sessions/{session}/models/{model}/responses/{response}/events"


@dataclass
class SentEvent:
    """One event; `id` is None where the event has none."""

    name: str
    id: str | None
    text: str

    @property
    def data(self) -> dict[str, Any]:
        found = json.loads(self.text)
        assert isinstance(found, dict)
        return found


@dataclass
class EventStream:
    """What came, in order. Fails at anything that the gateway has no reason to send."""

    events: list[SentEvent] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    """How many events had come before each comment."""
    retries: list[int] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        self.raw += data
        assert b"\r" not in data
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            self._take(block.decode())

    def finish(self) -> None:
        """Take what has come behind the last event: comments and times, no part of an event."""
        before = len(self.events)
        rest, self._rest = self._rest, b""
        assert not rest or rest.endswith(b"\n")
        self._take(rest.decode().removesuffix("\n"))
        assert len(self.events) == before

    def _take(self, block: str) -> None:
        name, id_, data = "message", None, None
        for line in block.split("\n") if block else ():
            key, colon, value = line.partition(":")
            assert colon, f"a line without a colon: {line!r}"
            value = value.removeprefix(" ")
            match key:
                case "":
                    self.comments.append(value)
                    self.before.append(len(self.events))
                case "event":
                    name = value
                case "id":
                    assert value, "an empty id would make the browser forget its place"
                    assert value.isascii()
                    id_ = value
                case "data":
                    assert data is None, "one line of data an event"
                    data = value
                case "retry":
                    self.retries.append(int(value))
                case _:
                    raise AssertionError(f"unknown field {line!r}")
        if data is not None:
            self.events.append(SentEvent(name, id_, data))

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    @property
    def last_id(self) -> str:
        return next((event.id for event in reversed(self.events) if event.id), "")

    @property
    def tokens(self) -> list[dict[str, Any]]:
        """Every token by itself."""
        return [token for event in self.events if event.data["type"] == "token" for token in event.data["tokens"]]

    @property
    def sequences(self) -> list[int]:
        return [token["sequence"] for token in self.tokens]

    @property
    def text(self) -> str:
        return "".join(event.data["content"] for event in self.events if event.data["type"] == "token")


@dataclass
class OpenStream(EventStream):
    """A response that is being read."""

    response: httpx.Response | None = None
    _chunks: AsyncIterator[bytes] | None = None

    async def more(self) -> bool:
        """Read what comes next; False at the response's end."""
        assert self._chunks is not None
        try:
            self.feed(await anext(self._chunks))
        except StopAsyncIteration:
            self.finish()
            return False
        return True

    async def until(self, condition: Any) -> None:
        while not condition():
            assert await self.more(), f"the response ended: {self.raw!r}"

    async def to_end(self) -> None:
        while await self.more():
            pass


@asynccontextmanager
async def reading(http: httpx.AsyncClient, path: str, last_id: str = "", **query: str) -> AsyncIterator[OpenStream]:
    """Open a stream as a browser's EventSource does."""
    headers = BROWSER | ({"last-event-id": last_id} if last_id else {})
    async with http.stream("GET", path, params=query, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield OpenStream(response=response, _chunks=response.aiter_raw())


async def read_to_end(http: httpx.AsyncClient, path: str, last_id: str = "", **query: str) -> OpenStream:
    async with reading(http, path, last_id, **query) as stream:
        await stream.to_end()
        return stream
