"""A writer's way to the bridge: its appends, one at a time, on the call that all of a client's writers share."""

import asyncio
from collections.abc import Callable

from llmbridge.client.attempts import until_answered
from llmbridge.client.errors import (
    ClientError,
    GenerationOver,
    InvalidRequest,
    Unavailable,
    error_from_failure,
)
from llmbridge.client.produce_call import ProduceCall, Seat
from llmbridge.client.retry import RetryPolicy
from llmbridge.client.shared import Shared
from llmbridge.v1.bridge_service_pb2 import Receipt, WriterStart

_DRAINING = "DRAINING"

# What is larger would end the call, and with it everybody's appends.
_LARGEST_START = 65_536


class Appender:
    """Appends for one writer. `on_over` is told when the bridge says, without being asked, that the generation is over.

    A writer has a place on the current call, which it takes with its first append and whenever the call is another one.
    """

    def __init__(
        self,
        shared: Shared[ProduceCall],
        policy: RetryPolicy,
        start: WriterStart,
        on_over: Callable[[GenerationOver], None],
    ) -> None:
        self._shared = shared
        self._policy = policy
        self._start = start.SerializeToString()
        self._on_over = on_over
        self._call: ProduceCall | None = None
        self._seat: Seat | None = None

    async def append(self, form: Callable[[], bytes], *, patient: bool) -> Receipt:
        """Send an encoded WriterAppend (without writer and id) until it is answered; return the receipt of its storing.

        `form` gives it when it can go: the same one again whenever it is sent again. `patient`: see ProduceCall. Raises
        ClientError, see `until_answered`.
        """
        if len(self._start) > _LARGEST_START:
            raise InvalidRequest("the stream's name is too long")
        return await until_answered(self._policy, lambda seconds: self._attempt(form, patient, seconds))

    def hurry(self) -> None:
        """Somebody waits now for what is on its way."""
        if self._call is not None:
            self._call.hurry()

    def leave(self) -> None:
        """Give the place on the call up. The next append takes another."""
        call, seat = self._call, self._seat
        self._call = self._seat = None
        if call is not None and seat is not None:
            call.leave_seat(seat)

    async def _attempt(self, form: Callable[[], bytes], patient: bool, seconds: float) -> Receipt:
        call, seat = self._place()
        append = call.append(seat, form, patient=patient)
        try:
            async with asyncio.timeout(seconds):
                receipt = await append.outcome
        except TimeoutError:
            if seconds >= self._policy.attempt_timeout:
                # Maybe only this one hangs, but nobody else should have to find out.
                call.retire()
            error = Unavailable(f"no answer within {seconds:g} s")
            error.outcome_unknown = append.sent
            raise error from None
        finally:
            if append.outcome.cancelled():
                # A writer's appends are carried out one after the other: the next must not wait behind this one.
                self.leave()
        if receipt.HasField("failure"):
            failure = error_from_failure(receipt.failure)
            if failure.reason == _DRAINING:
                call.retire()
            raise failure
        return receipt

    def _place(self) -> tuple[ProduceCall, Seat]:
        """Give the call to use and the seat there, which is taken if there is none. Raises ClientClosed."""
        call, seat = self._call, self._seat
        if call is None or seat is None or call.retired:
            self.leave()
            call = self._call = self._shared.current()
            seat = self._seat = call.take_seat(self._start, self._note_end)
        return call, seat

    def _note_end(self, error: ClientError) -> None:
        # Any other error meets the appends themselves.
        if isinstance(error, GenerationOver):
            self._on_over(error)
