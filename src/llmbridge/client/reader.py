"""The reader: a stream's records in order, each once, over as many calls as it takes.

Owns the place (cursor and next sequence) and decides which failures are a broken connection and which an answer; knows
nothing of writers.
"""

import asyncio
import logging
from types import TracebackType
from typing import Self, TypedDict

import grpc

from llmbridge.client.connection import Connection
from llmbridge.client.errors import ClientError, DeadlineExceeded, ProtocolViolation, Unavailable
from llmbridge.client.pieces import Pieces, texts_of, tokens_of
from llmbridge.client.retry import Outage
from llmbridge.client.values import Message, Position, stream_ref
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest, SubscribeResponse
from llmbridge.v1.token_pb2 import Completion, Token

_log = logging.getLogger(__name__)

# After the completion only the call's status is missing, which mostly has come with it.
_STATUS_TIMEOUT = 1.0
# The deadline is kept here; what the bridge is told is for the case that this process is not there to keep it.
_DEADLINE_SLACK = 1.0


class SubscriptionOptions(TypedDict, total=False):
    """Where a reader begins and how patient it is. Times are in seconds."""

    after_cursor: str
    """Go on after this cursor."""
    position: Position | None
    """Without a cursor, where to begin; by default at the beginning."""
    timeout: float | None
    """How long reading may take as a whole, counted from the first iteration; None, the default: as long as it takes.
    The bridge is told, so that it ends the call by itself."""
    retry_for: float | None
    """How long an outage may last; None, the default: for ever."""
    silence_timeout: float
    """How long without message or heartbeat the connection counts as alive; 45 s by default, three of the bridge's
    heartbeats."""


class Subscription:
    """Reads one stream, as an async iterator of Messages that ends after the completion.

    Reconnects by itself, with jittered backoff, and goes on behind the last message it returned: nothing is lost and
    nothing comes twice, also when `anext` is cancelled (by a timeout, say) and called again. Iterating raises
    HistoryLost when records in between are gone, Unavailable when an outage lasts longer than `retry_for` seconds
    (None: never), DeadlineExceeded when `timeout` has passed, LimitExceeded when the bridge has too many readers,
    ProtocolViolation when the bridge leaves a hole.
    After an error the subscription stands where it stood: iterating again tries again.

    After leaving the loop early, the call ends with `aclose()`, at the end of `async with`, or when nothing refers to
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
        self._call: grpc.aio.UnaryStreamCall[SubscribeRequest, SubscribeResponse] | None = None
        self._reading = False
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
        """End the call. Iterating afterwards goes on from where it stood."""
        self._drop_call()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # grpc keeps an open call alive by itself. Garbage may be collected in any thread, and after the loop's end.
        call = getattr(self, "_call", None)
        if call is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call.cancel)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._reading:
            raise RuntimeError("a subscription can be read by one task only")
        self._reading = True
        try:
            message = await self._next_message()
        finally:
            self._reading = False
        if message is None:
            raise StopAsyncIteration
        return message

    async def _next_message(self) -> Message | None:
        """Return the next message; None after the end."""
        while not self._ended:
            try:
                response = await self._read()
                message = self._accept(response)
            except Unavailable as error:
                self._drop_call()
                await self._wait_before_resuming(error)
            except BaseException:
                # Also when this is cancelled: grpc has given the call up, and maybe a message with it.
                self._drop_call()
                raise
            else:
                if message is not None:
                    return message
        await self._take_status()
        return None

    async def _read(self) -> SubscribeResponse | None:
        """Read from the call, which is opened if there is none; None when it has ended well."""
        left = self._time_left()
        patience = self._silence_timeout if left is None else min(self._silence_timeout, left)
        with self._connection.translating(own_deadline=left is not None):
            if self._call is None:
                limit = None if left is None else left + _DEADLINE_SLACK
                self._call = self._connection.bridge.Subscribe(self._request(), timeout=limit)
            try:
                async with asyncio.timeout(patience):
                    response = await self._call.read()
            except TimeoutError:
                if left is not None and left <= self._silence_timeout:
                    raise self._overdue() from None
                # Neither a record nor a heartbeat: the connection is dead, though nobody told.
                raise Unavailable(f"no sign of life for {self._silence_timeout:g} s") from None
        return response if isinstance(response, SubscribeResponse) else None

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

    def _accept(self, response: SubscribeResponse | None) -> Message | None:
        """Check what came and move on behind it; None if there is nothing to return."""
        if response is None:
            if not self._may_be_behind_the_end:
                raise ProtocolViolation("the call ended without a completion")
            self._ended = True
            return None
        self._outage.over()
        completion = response.completion if response.HasField("completion") else None
        if not response.tokens and completion is None:
            self._pin_latest(response.cursor)
            return None
        message = Message(
            tuple(response.tokens), response.first_sequence, response.cursor, completion, response.appended_ms
        )
        if message.first_sequence < 1 or message.first_sequence != (self._next_sequence or message.first_sequence):
            raise ProtocolViolation(
                f"the next record is {self._next_sequence or 'any'}, the bridge sent {message.first_sequence}"
            )
        if not message.cursor:
            raise ProtocolViolation("the bridge sent records without a cursor")
        self._cursor, self._next_sequence = message.cursor, message.last_sequence + 1
        self._completion, self._ended = completion, completion is not None
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

    async def _take_status(self) -> None:
        """Let the call end by itself, so that the bridge doesn't count it as cancelled; the response is whole."""
        call, self._call = self._call, None
        if call is None:
            return
        try:
            with self._connection.translating(own_deadline=False):
                async with asyncio.timeout(_STATUS_TIMEOUT):
                    await call.read()
        except (ClientError, TimeoutError) as error:
            _log.debug("the call ended badly after the completion: %s", error)

    def _drop_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
