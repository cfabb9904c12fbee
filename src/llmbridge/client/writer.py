"""The writer: appends one response's tokens, each stored exactly once whatever breaks on the way.

Owns the numbers (sequence, producer id) and therefore decides what may be sent again; knows nothing of readers.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from llmbridge.client.connection import Connection
from llmbridge.client.errors import (
    ClientError,
    GenerationOver,
    InvalidRequest,
    LimitExceeded,
    ProtocolViolation,
    Unavailable,
)
from llmbridge.client.keep_alive import KeepAlive
from llmbridge.client.tasks import outlast, stop
from llmbridge.client.values import FinishReason, stream_ref
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import KeepAliveRequest, ProduceRequest
from llmbridge.v1.token_pb2 import Completion, Token, Usage

# An exception's text becomes the completion's error message, which people read; it must not run into a size limit.
_MAX_ERROR_BYTES = 1024


class Writer:
    """Appends one response, as an async context manager.

    Leaving the block completes the stream: with `stop` after its normal end, with an error after an exception, also
    when the task was cancelled, so that readers never wait for an end that nobody writes. What is written belongs to
    the writer from the call on: if a call is cancelled half-way, its tokens are stored before the next ones, so don't
    write them again. Calls from several tasks are carried out in the order in which they were made.
    """

    def __init__(
        self,
        connection: Connection,
        stream: StreamName,
        *,
        producer_epoch: int,
        keep_alive_interval: float | None,
        close_timeout: float,
    ) -> None:
        self.stream = stream
        self.producer_id = secrets.token_hex(16)
        self.producer_epoch = producer_epoch
        self._connection = connection
        self._keep_alive_interval = keep_alive_interval
        self._close_timeout = close_timeout
        self._ref = stream_ref(stream)
        self._cursor = ""
        self._last_sequence = 0
        self._completed = False
        # Accepted and not yet answered, in order; only the first may have been sent. A completion is always the last.
        self._outbox: deque[ProduceRequest] = deque()
        self._sending = asyncio.Lock()
        self._failure: ClientError | None = None
        self._failure_told = False
        self._keep_alive: KeepAlive | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def cursor(self) -> str:
        """The cursor of the last record known to be stored; empty before the first."""
        return self._cursor

    @property
    def last_sequence(self) -> int:
        """The sequence of the last record known to be stored; 0 before the first."""
        return self._last_sequence

    @property
    def completed(self) -> bool:
        """Whether this writer's completion is known to be stored."""
        return self._completed

    async def text(self, text: str) -> None:
        """Append a piece of the answer; see `write`."""
        await self.write(text)

    async def reasoning(self, text: str) -> None:
        """Append a piece of the model's reasoning; see `write`."""
        await self.write(Token(reasoning=text, timestamp_ms=_now_ms()))

    async def write(self, *records: Token | str | Completion) -> None:
        """Append tokens as one batch, and return when they are stored. A string is a text token made now.

        The last may be the completion, which is then stored together with the tokens.

        Raises StreamCompleted or ProducerFenced when the stream has an end or another producer: stop generating.
        Raises InvalidRequest or LimitExceeded when these tokens can't be stored; they are then forgotten, and the
        writer can go on. Raises Unavailable when the client's retry policy gave up. This, like every other error, is
        final: each later call raises it again. RuntimeError: outside the `async with` block, or after a completion.
        """
        if not records:
            return
        if self._keeper is None:
            raise RuntimeError("a writer works only inside its `async with` block")
        request = self._request(records)
        self._raise_failure()
        if self._completing:
            raise RuntimeError("the response is complete: nothing can follow")
        self._outbox.append(request)
        await self._send_through(request)

    async def complete(
        self,
        finish_reason: FinishReason = FinishReason.STOP,
        *,
        error_message: str = "",
        usage: Usage | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """End the stream, and return when that is stored. Raises as `write` does."""
        completion = Completion(
            finish_reason=finish_reason.on_wire, error_message=error_message, usage=usage, attributes=attributes
        )
        await self.write(completion)

    def _request(self, records: Sequence[Token | str | Completion]) -> ProduceRequest:
        request = ProduceRequest(stream=self._ref, producer_epoch=self.producer_epoch, producer_id=self.producer_id)
        now = _now_ms()
        for record in records:
            if request.HasField("completion"):
                raise ValueError("nothing can follow a completion")
            if isinstance(record, Completion):
                request.completion.CopyFrom(record)
            elif isinstance(record, str):
                request.tokens.add(text=record, timestamp_ms=now)
            else:
                request.tokens.append(record)
        return request

    @property
    def _completing(self) -> bool:
        """Whether the completion was accepted (and not refused)."""
        return self._completed or (len(self._outbox) > 0 and self._outbox[-1].HasField("completion"))

    async def _send_through(self, own: ProduceRequest) -> None:
        """Send what was accepted, up to and including `own`."""
        async with self._sending:
            # Calls that were cancelled may have left requests before it, and a later call may have taken it along.
            while any(request is own for request in self._outbox):
                self._raise_failure()
                await self._send_first(own)

    async def _send_first(self, own: ProduceRequest) -> None:
        request = self._outbox[0]
        # If it was sent before, this repeats it: nothing was stored meanwhile, so its numbers are the same again.
        request.first_sequence = self._last_sequence + 1
        last = self._last_sequence + len(request.tokens) + request.HasField("completion")
        try:
            response = await self._connection.unary(self._connection.bridge.Produce, request)
            if response.last_sequence != last:
                raise ProtocolViolation(f"the bridge stored up to {response.last_sequence} instead of {last}")
        except ClientError as error:
            refused = isinstance(error, InvalidRequest | LimitExceeded)
            if refused and request is own and not error.outcome_unknown:
                self._outbox.popleft()
            else:
                # Final, because numbers must not be used anew while it is unknown what is stored under them, and
                # because a later call must not drop the tokens of an earlier one.
                self._failure, self._failure_told = error, True
            raise
        self._outbox.popleft()
        self._cursor, self._last_sequence = response.cursor, last
        self._completed = request.HasField("completion")
        if self._keep_alive is not None:
            self._keep_alive.spoke()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._failure_told = True
            raise self._failure.with_traceback(None)

    def _note_over(self, error: GenerationOver) -> None:
        # The end that this writer is storing itself is no news.
        if not self._completing and self._failure is None:
            self._failure = error

    async def __aenter__(self) -> Self:
        if self._keeper is not None:
            raise RuntimeError("a writer is for one `async with` block")
        request = KeepAliveRequest(stream=self._ref, producer_epoch=self.producer_epoch, producer_id=self.producer_id)
        self._keep_alive = KeepAlive(self._connection, request, self._keep_alive_interval, self._note_over)
        self._keeper = asyncio.create_task(self._keep_alive.run(), name=f"keep-alive {self.stream}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None or isinstance(error, Exception):
                await self._end(error)
            else:
                await outlast(self._end_with_error(error, "producer cancelled"))
        finally:
            if self._keeper is not None:
                await outlast(stop(self._keeper))

    async def _end(self, error: Exception | None) -> None:
        """Give the stream its end after the block was left by itself, or by an error."""
        try:
            if error is None:
                await self._end_normally()
            else:
                await self._end_with_error(error, _describe(error))
        except asyncio.CancelledError as cancelled:
            await outlast(self._end_with_error(cancelled, "producer cancelled"))
            raise

    async def _end_normally(self) -> None:
        if self._completed or (isinstance(self._failure, GenerationOver) and self._failure_told):
            return
        self._forgive_outage()
        await self._store_end(FinishReason.STOP, "")

    async def _end_with_error(self, error: BaseException, message: str) -> None:
        """Give the stream its end because of `error`, which goes on to the caller whatever comes of this."""
        gave_up = self._forgive_outage()
        if self._completed or self._failure is not None:
            return
        hurried = gave_up or not isinstance(error, Exception)
        try:
            # Unhurried, the retry policy is the only bound: a second clock of the same length would hide its error.
            async with asyncio.timeout(self._close_timeout if hurried else None):
                await self._store_end(FinishReason.ERROR, message)
        except (ClientError, TimeoutError) as failure:
            error.add_note(f"llmbridge: the end of {self.stream} could not be stored ({_describe(failure)})")

    def _forgive_outage(self) -> bool:
        """Allow one more try after giving up; says whether that was the case."""
        if not isinstance(self._failure, Unavailable):
            return False
        self._failure = None
        return True

    async def _store_end(self, finish_reason: FinishReason, error_message: str) -> None:
        if self._completing:
            # Accepted already, in a call that did not live to see it stored.
            await self._send_through(self._outbox[-1])
        else:
            await self.complete(finish_reason, error_message=error_message)


def _describe(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text.encode(errors="replace")[:_MAX_ERROR_BYTES].decode(errors="ignore")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
