"""The writer: appends one response's tokens, each stored exactly once whatever breaks on the way.

What it is given goes into an outbox, and a task of its own carries that to the bridge. This module is about the block:
who may write when, and which end the stream gets. It knows nothing of readers.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TypedDict

from llmbridge.client.connection import Connection
from llmbridge.client.errors import GenerationOver, Unavailable
from llmbridge.client.keep_alive import KeepAlive
from llmbridge.client.outbox import Outbox, OutboxLimits, encoded
from llmbridge.client.sender import Sender, describe
from llmbridge.client.tasks import outlast, stop
from llmbridge.client.values import FinishReason, stream_ref
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import KeepAliveRequest, WriterStart
from llmbridge.v1.token_pb2 import Completion, Token, Usage


class WriterOptions(TypedDict, total=False):
    """How a writer works. Times are in seconds."""

    linger: float
    """How long a batch that is not full waits for more records once it could go; 0 by default. Meanwhile, and while the
    last batch is on its way, records gather."""
    max_unsent_tokens: int
    """How many records may wait for their batch before `write` waits; 4,096 by default."""
    max_unsent_bytes: int
    """The same in bytes; 1 MiB by default."""
    keep_bytes: int
    """How much of what is stored is kept, to fill a log again that has lost its tail; 4 MiB by default."""
    keep_alive_interval: float | None
    """How long the writer may be silent before it tells the bridge that it lives, and learns whether it is still
    wanted; by default 5 s, or a quarter of the bridge's limit if that is less."""
    close_timeout: float
    """Bounds storing the end when the task was cancelled, or an outage lasted too long; 5 s by default."""


class Writer:
    """Appends one response, as an async context manager.

    Leaving the block completes the stream and waits until everything is stored: with `stop` after the block's normal
    end, with an error after an exception, also when the task was cancelled, so that readers never wait for an end that
    nobody writes. Calls from several tasks are carried out in the order in which they were made.

    Within the block, writing does not wait for the bridge: `flush` does. What goes wrong meanwhile is raised by the
    next call, or when the block is left; `stopped` tells it at once:

    - StreamCompleted, ProducerFenced: the stream has an end (it was cancelled, say) or another producer. Stop
      generating.
    - Unavailable: the client's retry policy gave up. Leaving the block tries once more.
    - DataLost: the log lost more than is kept. The stream was completed with an error that says so.
    - InvalidRequest, LimitExceeded: a record can't be stored. What was written before it is; the stream was completed
      with an error.
    - SequenceGap: the stream has other records than this writer was told to go on from; it was left as it is.
    - any other ClientError: see `errors`.

    All of these are final.
    """

    def __init__(
        self,
        connection: Connection,
        stream: StreamName,
        *,
        producer_epoch: int = 0,
        first_sequence: int = 1,
        linger: float = 0.0,
        max_unsent_tokens: int = 4_096,
        max_unsent_bytes: int = 1_048_576,
        keep_bytes: int = 4_194_304,
        keep_alive_interval: float | None = None,
        close_timeout: float = 5.0,
    ) -> None:
        self.stream = stream
        self.producer_id = secrets.token_hex(16)
        self.producer_epoch = producer_epoch
        self._close_timeout = close_timeout
        ref = stream_ref(stream)
        limits = OutboxLimits(max_unsent_tokens, max_unsent_bytes, keep_bytes)
        self._outbox = Outbox(first_sequence, limits)
        start = WriterStart(stream=ref, producer_epoch=producer_epoch, producer_id=self.producer_id)
        self._appender = connection.appender(start, self._note_over)
        alive = KeepAliveRequest(stream=ref, producer_epoch=producer_epoch, producer_id=self.producer_id)
        self._keep_alive = KeepAlive(connection, alive, keep_alive_interval, self._note_over)
        self._sender = Sender(self._appender, self._outbox, linger, self._keep_alive.spoke)
        # Whoever waits for room does so in this lock, which lets one in after the other. Between two of them it is
        # open, so that it takes the count to know whether somebody waits.
        self._turn = asyncio.Lock()
        self._queued = 0
        self._failure_told = False
        self._sending: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def cursor(self) -> str:
        """The cursor of the last record that the bridge said is stored; empty before the first."""
        return self._sender.cursor

    @property
    def last_sequence(self) -> int:
        """The sequence of the last record that the bridge said is stored; 0 before the first."""
        return self._sender.last_sequence

    @property
    def completed(self) -> bool:
        """Whether an end of this writer's is known to be stored."""
        return self._sender.completed

    @property
    def stopped(self) -> asyncio.Event:
        """Set as soon as nothing more can be written: wait for it beside the model to stop generating at once.

        The bridge tells of a cancel or a takeover as it happens, to a writer that has sent something; otherwise it is
        noticed with the next batch, or after `keep_alive_interval` of silence.
        """
        return self._sender.stopped

    async def text(self, text: str) -> None:
        """Append a piece of the answer; see `write`."""
        await self.write(text)

    async def reasoning(self, text: str) -> None:
        """Append a piece of the model's reasoning; see `write`."""
        await self.write(Token(reasoning=text, timestamp_ms=_now_ms()))

    async def write(self, *records: Token | str | Completion) -> None:
        """Append tokens; the last may be the completion. A string is a text token made now.

        Returns as soon as the records are in the buffer, and waits only while that is full. A call that is cancelled
        has taken none of them; one that has returned has taken all.

        Raises what has failed since, see Writer. RuntimeError: outside the `async with` block, or after a completion.
        """
        if not records:
            return
        now = _now_ms()
        if Completion in map(type, records[:-1]):
            raise ValueError("nothing can follow a completion")
        parts = [encoded(record, now) for record in records]
        size = sum(map(len, parts))
        # A source that has everything at hand must not keep the loop, and with it the sender, to itself.
        await asyncio.sleep(0)
        self._check_open()
        if self._queued or not self._outbox.has_room_for(len(parts), size):
            await self._wait_for_room(len(parts), size)
        self._accept(parts, completing=isinstance(records[-1], Completion))

    async def _wait_for_room(self, count: int, size: int) -> None:
        """Wait until all who came before have had their turn and there is room; the caller must use it at once."""
        self._queued += 1
        try:
            async with self._turn:
                self._check_open()
                while not self._outbox.has_room_for(count, size):
                    await self._sender.formed()
                    self._check_open()
        finally:
            self._queued -= 1

    async def complete(
        self,
        finish_reason: FinishReason = FinishReason.STOP,
        *,
        error_message: str = "",
        usage: Usage | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """End the stream; see `write`."""
        completion = Completion(
            finish_reason=finish_reason.on_wire, error_message=error_message, usage=usage, attributes=attributes
        )
        await self.write(completion)

    async def flush(self) -> None:
        """Wait until all that was written before this call is stored. Raises what has failed, see Writer."""
        if self._sending is None:
            raise RuntimeError("a writer works only inside its `async with` block")
        try:
            await self._sender.flush()
        except Exception as error:
            self._failure_told = self._failure_told or error is self._sender.failure
            raise

    def _accept(self, parts: list[bytes], *, completing: bool) -> None:
        self._outbox.accept(parts, completing=completing)
        self._sender.note_accepted()

    def _check_open(self) -> None:
        if self._sending is None:
            raise RuntimeError("a writer works only inside its `async with` block")
        self._raise_failure()
        if self._outbox.completing:
            raise RuntimeError("the response is complete: nothing can follow")

    def _raise_failure(self) -> None:
        if self._sender.failure is not None:
            self._failure_told = True
            raise self._sender.failure.with_traceback(None)

    def _note_over(self, error: GenerationOver) -> None:
        # The end that this writer is storing itself is no news.
        if self._sending is not None and not self._outbox.completing and self._sender.failure is None:
            self._sender.fail(error)
            self._sending.cancel()

    async def __aenter__(self) -> Self:
        if self._sending is not None:
            raise RuntimeError("a writer is for one `async with` block")
        self._send()
        self._keeping = asyncio.create_task(self._keep_alive.run(), name=f"keep-alive {self.stream}")
        return self

    def _send(self) -> asyncio.Task[None]:
        self._sending = asyncio.create_task(self._sender.run(), name=f"write {self.stream}")
        return self._sending

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None or isinstance(error, Exception):
                await self._end(error)
            else:
                await outlast(self._end_with_error(error, "producer cancelled"))
        finally:
            await outlast(self._stop_tasks())

    async def _stop_tasks(self) -> None:
        for task in (self._keeping, self._sending):
            if task is not None:
                await stop(task)
        self._appender.leave()
        if not self.completed and self._sender.failure is None:
            # For those who still wait in other tasks.
            self._sender.fail(Unavailable("the writer was left before all was stored"))

    async def _end(self, error: Exception | None) -> None:
        """Give the stream its end after the block was left by itself, or by an error."""
        try:
            if error is None:
                await self._end_normally()
            else:
                await self._end_with_error(error, describe(error))
        except asyncio.CancelledError as cancelled:
            await outlast(self._end_with_error(cancelled, "producer cancelled"))
            raise

    async def _end_normally(self) -> None:
        over_and_told = isinstance(self._sender.failure, GenerationOver) and self._failure_told
        if over_and_told or (self.completed and self._sender.failure is None):
            return
        self._forgive_outage()
        await self._store_end(FinishReason.STOP, "")
        self._raise_failure()

    async def _end_with_error(self, error: BaseException, message: str) -> None:
        """Give the stream its end because of `error`, which goes on to the caller whatever comes of this."""
        gave_up = self._forgive_outage()
        had_failed = self._sender.failure
        hurried = gave_up or not isinstance(error, Exception)
        failure: Exception | None = None
        try:
            # Unhurried, the retry policy is the only bound: a second clock of the same length would hide its error.
            async with asyncio.timeout(self._close_timeout if hurried else None):
                await self._store_end(FinishReason.ERROR, message, hurried=hurried)
            failure = self._sender.failure
        except TimeoutError as timeout:
            failure = timeout
        if failure is not None and failure is not had_failed:
            error.add_note(f"llmbridge: the end of {self.stream} could not be stored ({describe(failure)})")

    def _forgive_outage(self) -> bool:
        """Allow one more try after giving up; says whether that was the case."""
        if not isinstance(self._sender.failure, Unavailable):
            return False
        self._sender.forget_failure()
        return True

    async def _store_end(self, finish_reason: FinishReason, error_message: str, *, hurried: bool = False) -> None:
        """See that all that was accepted and the end are stored, or that this fails; the sender has the failure.

        `hurried`: what is under way is not waited for but sent anew, since it may be hanging.
        """
        sending = self._sending
        if sending is None or self._sender.completed:
            return
        if self._sender.failure is None:
            if not self._outbox.completing:
                completion = Completion(finish_reason=finish_reason.on_wire, error_message=error_message)
                self._accept([encoded(completion, 0)], completing=True)
            if hurried:
                await stop(sending)
            if sending.done() and self._sender.failure is None and not self._sender.completed:
                sending = self._send()
        await asyncio.wait([sending])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
