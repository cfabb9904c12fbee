"""Carries an outbox to the bridge: batch after batch, each until it is stored, and again when the log has lost it.

A batch is formed when the message is put together that carries it: what is written while it waits for that goes along.

Decides what a failure means for the records; knows nothing of who writes them and how a writer's block is left.
"""

import asyncio
from collections.abc import Callable

from llmbridge.client.appender import Appender
from llmbridge.client.errors import (
    ClientError,
    DataLost,
    InvalidRequest,
    LimitExceeded,
    ProtocolViolation,
    SequenceGap,
)
from llmbridge.client.outbox import Batch, Outbox, encoded
from llmbridge.client.values import FinishReason
from llmbridge.client.waiters import Waiters
from llmbridge.v1.token_pb2 import Completion

# An error's text becomes the completion's error message, which people read; it must not run into a size limit.
_MAX_ERROR_BYTES = 1_024
# How often the number of an error completion is corrected to what the log would take; more is a log that somebody plays
# with.
_CORRECTIONS = 4


class Sender:
    """Sends one writer's records, in the task that carries `run`, until the completion is stored or it fails."""

    def __init__(self, appender: Appender, outbox: Outbox, linger: float, on_stored: Callable[[], None]) -> None:
        self.cursor = ""
        """The cursor of the last record acknowledged."""
        self.last_sequence = 0
        """Its sequence."""
        self.completed = False
        """The completion is stored."""
        self.failure: Exception | None = None
        """Why nothing is sent any more."""
        self.stopped = asyncio.Event()
        """Set as soon as there is a failure."""
        self._appender = appender
        self._outbox = outbox
        self._linger = linger
        self._on_stored = on_stored
        self._loop = asyncio.get_running_loop()
        # Set when there may be more to send, or sooner.
        self._more = asyncio.Event()
        self._formed = Waiters()
        self._stored = Waiters()
        self._flushing = 0

    def note_accepted(self) -> None:
        """Tell that the outbox has more to send."""
        self._more.set()
        if self._outbox.completing:
            self._appender.hurry()

    async def formed(self) -> None:
        """Wait until a batch was formed of what waits, or sending has failed."""
        await self._formed.wait()

    async def flush(self) -> None:
        """Wait until all that was accepted before this call is stored. Raises what sending failed with."""
        through = self._outbox.accepted_through
        self._flushing += 1
        self._more.set()
        self._appender.hurry()
        try:
            while True:
                if self.failure is not None:
                    raise self.failure.with_traceback(None)
                if self._outbox.stored_through >= through:
                    return
                await self._stored.wait()
        finally:
            self._flushing -= 1

    def fail(self, failure: Exception) -> None:
        """Have everybody know that nothing more will be sent."""
        self.failure = failure
        self.stopped.set()
        self._formed.tell()
        self._stored.tell()

    def forget_failure(self) -> None:
        """Allow `run` to be called once more."""
        self.failure = None

    async def run(self) -> None:
        """Send what there is and will be. Ends with `completed` or a `failure`; a defect is raised, too.

        May be cancelled and called again: what was under way is sent again.
        """
        try:
            while self.failure is None and not self.completed:
                # What is written faster than it can be sent loses nothing by gathering.
                patient = self._outbox.has_more
                await self._wait_for_more()
                await self._carry(patient=patient and not self._hurried)
        except Exception as defect:
            self.fail(defect)
            raise

    @property
    def _hurried(self) -> bool:
        """Somebody waits until all is stored."""
        return bool(self._flushing) or self._outbox.completing

    async def _wait_for_more(self) -> None:
        while not self._outbox.has_more:
            self._more.clear()
            await self._more.wait()
        if not self._linger:
            return
        deadline = self._loop.time() + self._linger
        while not (self._outbox.has_full_batch or self._flushing) and self._loop.time() < deadline:
            self._more.clear()
            timer = self._loop.call_at(deadline, self._more.set)
            try:
                await self._more.wait()
            finally:
                timer.cancel()

    async def _carry(self, *, patient: bool) -> None:
        """Send the next batch until it is stored, or until it is clear what is to be done instead."""
        try:
            await self._send(patient=patient)
        except SequenceGap as gap:
            await self._heed_gap(self._outbox.next_batch(), gap)
        except (InvalidRequest, LimitExceeded) as refusal:
            # Numbers that may be stored already are given to the same records again, which is as good as a retry.
            if not self._outbox.divide():
                await self._give_up(refusal, self._outbox.next_batch().first_sequence, describe(refusal))
        except ClientError as error:
            self.fail(error)

    async def _send(self, *, patient: bool = False) -> None:
        receipt = await self._appender.append(self._form, patient=patient)
        batch = self._outbox.next_batch()
        if receipt.last_sequence != batch.last_sequence:
            raise ProtocolViolation(f"the bridge stored up to {receipt.last_sequence} instead of {batch.last_sequence}")
        self._outbox.note_stored()
        self.cursor, self.last_sequence = receipt.cursor, batch.last_sequence
        self.completed = batch.completes
        self._on_stored()
        self._stored.tell()

    def _form(self) -> bytes:
        """Give the next batch as it is to be sent, now."""
        body = self._outbox.next_batch().body
        self._formed.tell()
        return body

    async def _heed_gap(self, batch: Batch, gap: SequenceGap) -> None:
        if not self._outbox.anything_stored or gap.expected < 1:
            # The stream was never this producer's: it is not where it was thought to be.
            self.fail(gap)
        elif gap.expected >= batch.first_sequence or not self._outbox.go_back(gap.expected):
            # In the first case, where the lost records were there are others now, of a producer that thinks this one
            # never was.
            lost = DataLost(
                f"the log has lost records from {gap.expected} on, which are not kept any more", metadata=gap.metadata
            )
            lost.__cause__ = gap
            await self._give_up(lost, gap.expected, f"DATA_LOST: {lost.message}")

    async def _give_up(self, failure: ClientError, sequence: int, message: str) -> None:
        """Drop what is not stored and give the stream an end that says why."""
        self.fail(failure)
        end = Completion(finish_reason=FinishReason.ERROR.on_wire, error_message=message)
        try:
            for _ in range(_CORRECTIONS):
                self._outbox.abandon(sequence, encoded(end, 0))
                try:
                    return await self._send()
                except SequenceGap as gap:
                    sequence = gap.expected
        except ClientError as error:
            failure.add_note(f"llmbridge: the stream's end could not be stored ({describe(error)})")
        else:
            failure.add_note("llmbridge: the stream's end could not be stored")


def describe(error: BaseException) -> str:
    """Say what an error is, in at most 1,024 bytes."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text.encode(errors="replace")[:_MAX_ERROR_BYTES].decode(errors="ignore")
