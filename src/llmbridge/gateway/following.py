"""One stream as events, from any place, each record once. Knows nothing of how events travel.

What every reader of a stream gets alike is written once: readers share the JSON of a message through `Encoded`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import grpc

from llmbridge.client.errors import HistoryLost
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
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.stream_pb2 import StreamRef

Fields = Mapping[str, Any]
Style = Callable[[Fields, StreamRef], Fields]
"""Turns an event's fields into those that a kind of page expects."""

FIRST_EVENT_SECONDS = 0.25
"""How long an answer waits for the first thing that the bridge says, which may be that there is nothing to answer."""

_KEPT_MESSAGES = 256
_KEPT_CHARACTERS = 16_384


def plain(fields: Fields, stream: StreamRef) -> Fields:
    """Leave an event as it is."""
    return fields


class Encoded:
    """The JSON of the newest messages of all streams that are read here: up to 256 of them, of up to 16 KiB each."""

    def __init__(self, style: Style = plain) -> None:
        self._style = style
        self._tokens: OrderedDict[tuple[str, str, str, str, int], str] = OrderedDict()

    @property
    def kept(self) -> int:
        """How many messages are kept."""
        return len(self._tokens)

    def write(self, fields: Fields, stream: StreamRef) -> str:
        """Write an event's fields."""
        return dump(self._style(fields, stream))

    def tokens(self, message: SubscribeResponse, stream: StreamRef) -> str:
        """Write a message's tokens."""
        # A cursor names the log up to its record, so that stream, first record and cursor name the content.
        key = (stream.session_id, stream.model_id, stream.response_id, message.cursor, message.first_sequence)
        text = self._tokens.get(key)
        if text is None:
            text = self.write(token_fields(message), stream)
            if len(text) <= _KEPT_CHARACTERS:
                self._tokens[key] = text
                if len(self._tokens) > _KEPT_MESSAGES:
                    self._tokens.popitem(last=False)
        return text


async def follow(
    link: Link, encoded: Encoded, stream: StreamRef, start: Start, transport: str
) -> AsyncGenerator[Event]:
    """Read a stream from a place to its completion: its tokens, its end and the heartbeats between them.

    Yields nothing where the place is behind the end. Raises ClientError. Closing the generator ends the call.
    """
    messages = subscribe(link, stream, after_cursor=start.after_cursor, position=start.position, transport=transport)
    async with aclosing(messages):
        async for message in messages:
            if start.completion and message.cursor != start.completion:
                raise _another_stream(message.cursor)
            ended = message.HasField("completion")
            if message.tokens:
                place = before_completion(message.cursor) if ended else message.cursor
                yield Event(TOKEN, encoded.tokens(message, stream), place)
            if ended:
                yield Event(COMPLETE, encoded.write(complete_fields(message), stream), message.cursor)
            elif not message.tokens:
                yield Event(HEARTBEAT, place=message.cursor)


def _another_stream(cursor: str) -> HistoryLost:
    """Make the error of a reader that waits for the completion of a stream that is no more; `cursor` is that of now."""
    return HistoryLost(
        "the stream was deleted, expired or lost" + (", and begun anew" if cursor else ""),
        code=grpc.StatusCode.OUT_OF_RANGE,
        reason="RESTARTED" if cursor else "EXPIRED",
        metadata={"earliest_cursor": ""},
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """A reading that has begun. `is_over`: nothing is to come. `place`, if known, is one to go on from."""

    events: AsyncIterator[Event]
    is_over: bool
    place: str = ""


@asynccontextmanager
async def opened(
    link: Link, encoded: Encoded, stream: StreamRef, start: Start, transport: str
) -> AsyncIterator[Opened]:
    """Begin to read, and wait for a moment for what the bridge says first; raises ClientError if that is an error.

    When it says nothing, there is nothing yet. Leaving the context ends the call.
    """
    async with aclosing(follow(link, encoded, stream, start, transport)) as events:
        first = asyncio.ensure_future(_next(events))
        try:
            # What "now" is, is the first thing said, and a reader that is cut off before it knows could lose records.
            await asyncio.wait((first,), timeout=None if start.is_latest else FIRST_EVENT_SECONDS)
            if not first.done():
                yield Opened(_Rest(first, events), is_over=False)
                return
            event = first.result()
            is_now = event is not None and event.name == HEARTBEAT and start.is_latest
            place = (event.place or BEGINNING) if event is not None and is_now else ""
            yield Opened(_Rest(first, events), is_over=event is None, place=place)
        finally:
            first.cancel()
            await asyncio.wait((first,))
            if not first.cancelled():
                # Whoever reads has raised it, or has left before.
                first.exception()


def connected(encoded: Encoded, stream: StreamRef, place: str = "") -> Event:
    """Make the event that says what is read; with a place only where reading began "now"."""
    return Event(CONNECTED, encoded.write(connected_fields(stream), stream), place)


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    return await anext(events, None)


class _Rest:
    """Gives the first event, which another task reads, and then the others. A generator would need closing, too."""

    def __init__(self, first: "asyncio.Future[Event | None]", events: AsyncGenerator[Event]) -> None:
        self._first: asyncio.Future[Event | None] | None = first
        self._events = events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        first, self._first = self._first, None
        if first is None:
            return await anext(self._events)
        event = await first
        if event is None:
            raise StopAsyncIteration
        return event
