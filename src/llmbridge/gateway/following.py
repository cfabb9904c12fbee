"""One stream as events, from any place, each record once. Knows nothing of how events travel.

What every reader of a stream gets alike is written once: readers share it through `Encoded`.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self

import grpc

from llmbridge.client.errors import HistoryLost
from llmbridge.client.reading import Reading
from llmbridge.client.values import name_of, stream_ref
from llmbridge.gateway.events import (
    COMPLETE,
    CONNECTED,
    HEARTBEAT,
    TOKEN,
    Event,
    complete_fields,
    connected_fields,
    dump,
    token_fields,
)
from llmbridge.gateway.link import Link
from llmbridge.gateway.places import BEGINNING, Start, before_completion
from llmbridge.gateway.reading import subscribe
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.stream_pb2 import StreamRef

Fields = Mapping[str, Any]
Style = Callable[[Fields, StreamRef], Fields]
"""Turns an event's fields into those that a kind of page expects."""
Framed = Callable[[Event, StreamRef], bytes]
"""Writes an event of a stream as it goes over the wire."""

FIRST_EVENT_SECONDS = 0.25
"""How long an answer waits for the first thing that the bridge says, which may be that there is nothing to answer."""

_KEPT_MESSAGES = 256
_KEPT_CHARACTERS = 16_384


def plain(fields: Fields, stream: StreamRef) -> Fields:
    """Leave an event as it is."""
    return fields


class Encoded:
    """The events of the newest messages of all streams that are read here: of up to 256 messages, of up to 16 KiB each.

    `framed`, where there is one, writes the frame of an event.
    """

    def __init__(self, style: Style = plain, framed: Framed | None = None) -> None:
        self._style = style
        self._framed = framed
        self._kept: OrderedDict[tuple[StreamName, str, int], tuple[Event, ...]] = OrderedDict()

    @property
    def kept(self) -> int:
        """Of how many messages the events are kept."""
        return len(self._kept)

    def write(self, fields: Fields, stream: StreamRef) -> str:
        """Write an event's fields."""
        return dump(self._style(fields, stream))

    def events(self, name: StreamName, message: SubscribeResponse) -> tuple[Event, ...]:
        """Write a message's tokens and completion; one that has neither is a heartbeat."""
        cursor = message.cursor
        # A cursor names the log up to its record, so that stream, cursor and first record name the content.
        key = (name, cursor, message.first_sequence)
        events = self._kept.get(key)
        if events is None:
            events = self._events(name, message)
            if sum(len(event.data) for event in events) <= _KEPT_CHARACTERS:
                self._kept[key] = events
                if len(self._kept) > _KEPT_MESSAGES:
                    self._kept.popitem(last=False)
        return events

    def _events(self, name: StreamName, message: SubscribeResponse) -> tuple[Event, ...]:
        stream = stream_ref(name)
        cursor, ended = message.cursor, message.HasField("completion")
        events = []
        if message.tokens:
            place = before_completion(cursor) if ended else cursor
            events.append(Event(TOKEN, self.write(token_fields(message), stream), place))
        if ended:
            events.append(Event(COMPLETE, self.write(complete_fields(message), stream), cursor))
        if not events:
            events.append(Event(HEARTBEAT, place=cursor))
        if self._framed is not None:
            events = [replace(event, frame=self._framed(event, stream)) for event in events]
        return tuple(events)


class Following:
    """A stream's events, as an async iterator: its tokens, its end and the heartbeats between them. Made by `opened`.

    Yields nothing where the place is behind the end. Raises ClientError.
    """

    def __init__(self, reading: Reading, encoded: Encoded, stream: StreamRef, start: Start) -> None:
        self.is_over = False
        """Nothing is to come."""
        self.place = ""
        """Where reading began, once that is known and if it was "latest"."""
        self._reading = reading
        self._encoded = encoded
        self._name = name_of(stream)
        self._start = start
        self._next: deque[Event] = deque()

    async def begin(self) -> None:
        """Wait for a moment for what the bridge says first; raises ClientError if that is an error.

        When it says nothing, there is nothing yet.
        """
        try:
            # What "now" is, is the first thing said, and a reader that is cut off before it knows could lose records.
            async with asyncio.timeout(None if self._start.is_latest else FIRST_EVENT_SECONDS):
                await self._read()
        except TimeoutError:
            return
        except StopAsyncIteration:
            self.is_over = True
            return
        if self._start.is_latest and self._next[0].name == HEARTBEAT:
            self.place = self._next[0].place or BEGINNING

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._next:
            await self._read()
        return self._next.popleft()

    async def _read(self) -> None:
        message = await anext(self._reading)
        if self._start.completion and message.cursor != self._start.completion:
            raise _another_stream(message.cursor)
        self._next.extend(self._encoded.events(self._name, message))


def _another_stream(cursor: str) -> HistoryLost:
    """Make the error of a reader that waits for the completion of a stream that is no more; `cursor` is that of now."""
    return HistoryLost(
        "the stream was deleted, expired or lost" + (", and begun anew" if cursor else ""),
        code=grpc.StatusCode.OUT_OF_RANGE,
        reason="RESTARTED" if cursor else "EXPIRED",
        metadata={"earliest_cursor": ""},
    )


@asynccontextmanager
async def opened(
    link: Link, encoded: Encoded, stream: StreamRef, start: Start, transport: str
) -> AsyncIterator[Following]:
    """Read a stream while the context lasts; raises ClientError if that is what the bridge says first."""
    reading = subscribe(link, stream, after_cursor=start.after_cursor, position=start.position, transport=transport)
    with reading as messages:
        following = Following(messages, encoded, stream, start)
        await following.begin()
        yield following


def connected(encoded: Encoded, stream: StreamRef, place: str = "") -> Event:
    """Make the event that says what is read; with a place only where reading began "now"."""
    return Event(CONNECTED, encoded.write(connected_fields(stream), stream), place)
