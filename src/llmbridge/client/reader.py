"""The reader: a stream's records in order, each once, over as many calls as it takes.

Owns the place (cursor and next sequence) and decides which failures are a broken connection and which an answer; knows
nothing of writers.
"""

import asyncio
from types import TracebackType
from typing import Self, TypedDict

from llmbridge.client.connection import Connection
from llmbridge.client.errors import DeadlineExceeded, ProtocolViolation, Unavailable
from llmbridge.client.pieces import Pieces, texts_of, tokens_of
from llmbridge.client.reading import Reading
from llmbridge.client.retry import Outage
from llmbridge.client.subscribe_call import Arrival
from llmbridge.client.values import Message, Position, stream_ref
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from llmbridge.v1.token_pb2 import Completion, Token


class SubscriptionOptions(TypedDict, total=False):
    """Where a reader begins and how patient it is. Times are in seconds."""

    after_cursor: str
    """Go on after this cursor."""
    position: Position | None
    """Without a cursor, where to begin; by default at the beginning."""
    timeout: float | None
    """How long reading may take as a whole, counted from the first iteration; by default as long as it takes."""
    retry_for: float | None
    """How long an outage may last; None, the default: for ever."""
    silence_timeout: float
    """How long without any message or heartbeat the call that all readers share counts as alive; 45 s by default, three
    of the bridge's heartbeats."""


class Subscription:
    """Reads one stream, as an async iterator of Messages that ends after the completion.

    Reconnects by itself, with jittered backoff, and goes on behind the last message it returned: nothing is lost and
    nothing comes twice, also when `anext` is cancelled (by a timeout, say) and called again. Whoever reads slowly is
    sent no more than 256 KiB ahead, and holds up no other reader. The tokens are shared with the client's other readers
    of the stream: don't change them.

    Iterating raises HistoryLost when records in between are gone, Unavailable when an outage lasts longer than
    `retry_for` seconds (None: never), DeadlineExceeded when `timeout` has passed, LimitExceeded when the bridge has too
    many readers, ProtocolViolation when the bridge leaves a hole. After an error the subscription stands where it
    stood: iterating again tries again.

    After leaving the loop early, it ends with `aclose()`, at the end of `async with`, or when nothing refers to
    the subscription any more.
    """

    def __init__(
        self,
        connection: Connection,
        stream: StreamName,
        *,
        after_cursor: str = "",
        position: Position | None = None,
        timeout: float | None = None,
        retry_for: float | None = None,
        silence_timeout: float = 45.0,
    ) -> None:
        if after_cursor and position is not None:
            raise ValueError("give either a cursor or a position, not both")
        self.stream = stream
        self._connection = connection
        self._ref = stream_ref(stream)
        self._cursor = after_cursor
        self._position = position or Position.BEGINNING
        # Known from the beginning on, or from the first message; a cursor does not tell it.
        self._next_sequence = 1 if self._position is Position.BEGINNING and not after_cursor else None
        # Behind a completion's cursor there is nothing. Everywhere else a stream ends with a completion.
        self._may_be_behind_the_end = bool(after_cursor)
        self._completion: Completion | None = None
        self._ended = False
        self._timeout = timeout
        self._deadline: float | None = None
        self._silence_timeout = silence_timeout
        self._outage = Outage(connection.policy, retry_for)
        self._reading: Reading | None = None
        self._iterating = False
        self._loop = asyncio.get_running_loop()

    @property
    def cursor(self) -> str:
        """Where another reader goes on behind this one: the last message's cursor, or the one given to begin with."""
        return self._cursor

    @property
    def completion(self) -> Completion | None:
        """The stream's end, once it has been read."""
        return self._completion

    def texts(self) -> "Pieces[Subscription, str]":
        """Read only the pieces of text; reasoning, tool calls and JSON are left out. See Pieces."""
        return Pieces(self, texts_of)

    def tokens(self) -> "Pieces[Subscription, Token]":
        """Read the tokens one by one. See Pieces."""
        return Pieces(self, tokens_of)

    async def aclose(self) -> None:
        """End it. Iterating afterwards goes on from where it stood."""
        self._drop_reading()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._iterating:
            raise RuntimeError("a subscription can be read by one task only")
        self._iterating = True
        try:
            message = await self._next_message()
        finally:
            self._iterating = False
        if message is None:
            raise StopAsyncIteration
        return message

    async def _next_message(self) -> Message | None:
        """Return the next message; None after the end."""
        while not self._ended:
            try:
                message = self._accept(await self._next_arrival())
            except Unavailable as error:
                self._drop_reading()
                await self._wait_before_resuming(error)
            except Exception:
                self._drop_reading()
                raise
            else:
                if message is not None:
                    return message
        self._drop_reading()
        return None

    async def _next_arrival(self) -> Arrival | None:
        """Wait for what comes next, having subscribed if need be; None when the subscription has ended well."""
        left = self._time_left()
        if self._reading is None:
            self._reading = self._connection.subscribe(self._request(), silence_timeout=self._silence_timeout)
        if left is None:
            return await self._reading.next()
        try:
            async with asyncio.timeout(left):
                return await self._reading.next()
        except TimeoutError:
            raise self._overdue() from None

    def _time_left(self) -> float | None:
        """Say how many seconds reading may still take; None: any. Raises DeadlineExceeded."""
        if self._timeout is None:
            return None
        now = self._loop.time()
        if self._deadline is None:
            self._deadline = now + self._timeout
        if now >= self._deadline:
            raise self._overdue()
        return self._deadline - now

    def _overdue(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the stream has not come to its end within {self._timeout:g} s")

    def _request(self) -> SubscribeRequest:
        if self._cursor:
            return SubscribeRequest(stream=self._ref, after_cursor=self._cursor)
        return SubscribeRequest(stream=self._ref, position=self._position.on_wire)

    def _accept(self, arrival: Arrival | None) -> Message | None:
        """Check what came and move on behind it; None if there is nothing to return."""
        if arrival is None:
            if not self._may_be_behind_the_end:
                raise ProtocolViolation("the subscription ended without a completion")
            self._ended = True
            return None
        self._outage.over()
        if arrival.is_heartbeat:
            self._pin_latest(arrival.cursor)
            return None
        message = arrival.message
        if message.first_sequence < 1 or message.first_sequence != (self._next_sequence or message.first_sequence):
            raise ProtocolViolation(
                f"the next record is {self._next_sequence or 'any'}, the bridge sent {message.first_sequence}"
            )
        if not message.cursor:
            raise ProtocolViolation("the bridge sent records without a cursor")
        self._cursor, self._next_sequence = message.cursor, message.last_sequence + 1
        self._completion, self._ended = message.completion, message.completion is not None
        self._may_be_behind_the_end = False
        return message

    def _pin_latest(self, cursor: str) -> None:
        """Fix what `latest` means when the bridge first tells it, so that a reconnection skips nothing.

        All other heartbeats tell nothing new: the place is that of the last message returned.
        """
        if self._position is not Position.LATEST or self._cursor:
            return
        self._cursor = cursor
        if not cursor:
            # The stream has no record yet, so that all of it is yet to come.
            self._position, self._next_sequence = Position.BEGINNING, 1

    async def _wait_before_resuming(self, error: Unavailable) -> None:
        """Wait as backoff and bridge ask; raise `error` if the outage would then have lasted for too long."""
        delay = self._outage.next_delay(self._loop.time(), error.retry_delay)
        if delay is None:
            # The next iteration, should there be one, gets the same time again.
            raise error
        left = self._time_left()
        await asyncio.sleep(delay if left is None else min(delay, left))

    def _drop_reading(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
