"""One ProduceMany call: appends of many writers on their way, spaced so that several go with one message.

An append is formed when it goes, so that it carries all that its writer has then. Knows neither retries nor what an
append holds; a writer is a number here, and the bytes of its start.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from llmbridge.client.conversation import HowItEnded, converse
from llmbridge.client.errors import (
    BridgeFailure,
    ClientError,
    InvalidRequest,
    LimitExceeded,
    Unavailable,
    error_from_failure,
)
from llmbridge.client.framing import embedded
from llmbridge.client.numbers import Numbers
from llmbridge.v1.bridge_service_pb2 import (
    ProduceManyRequest,
    ProduceManyResponse,
    Receipt,
    WriterAppend,
    WriterStart,
)

ProduceStream: TypeAlias = "grpc.aio.StreamStreamCall[bytes, ProduceManyResponse]"

_STARTS = ProduceManyRequest.STARTS_FIELD_NUMBER
_APPENDS = ProduceManyRequest.APPENDS_FIELD_NUMBER

# What is larger would end the call, and with it everybody's appends; the bridge takes messages of up to 3 MiB.
LARGEST_APPEND = 3 * 1024 * 1024 - 131_072
MAX_MESSAGE_BYTES = 1_048_576
MAX_MESSAGE_APPENDS = 1_024
# Half of what the bridge lets onto one call. More writers than that make another one.
MAX_SEATS = 8_192
# The bridge stops reading at 4,096 appends or 8 MiB without a receipt; what waits, waits better here, where it can
# still be taken back.
MAX_OUTSTANDING = 2_048
MAX_OUTSTANDING_BYTES = 4_194_304
"""And one append more, since how large that is shows when it is formed."""


@dataclass(slots=True, eq=False)
class Seat:
    """A writer's place on the call."""

    number: int
    start: bytes
    """The writer's WriterStart, without its number."""
    on_end: Callable[[ClientError], None]
    """Told when the bridge says that the writer can append no more."""
    started: bool = False
    left: bool = False


@dataclass(slots=True, eq=False)
class Append:
    """An append on its way."""

    seat: Seat
    form: Callable[[], bytes]
    """Gives a WriterAppend without its writer and its id. Called when it is to go, or once before that."""
    outcome: "asyncio.Future[Receipt]"
    """Its receipt, which may tell a failure, or how the call ended before there was one. Cancelled: nobody waits."""
    sent: bool = False
    size: int = 0
    """Its bytes, once it is sent."""


class ProduceCall:
    """A call from its first message on. `linger` is the least time between two messages, in seconds.

    The first message goes at once, and one is held back only behind another that has just gone and carried other
    writers' appends: a writer who is alone never waits. Where all that waits is *patient*, the time counts from the
    last receipts instead: those writers have more to say whenever they get a receipt, and nobody waits for theirs, so
    that each append carries more.
    """

    def __init__(self, open_stream: Callable[[], ProduceStream], linger: float) -> None:
        self._open_stream = open_stream
        self._linger = linger
        self._stream: ProduceStream | None = None
        self._clock = asyncio.get_running_loop().time
        self._waiting: deque[Append] = deque()
        self._outstanding: dict[int, Append] = {}
        self._outstanding_bytes = 0
        self._seats: dict[int, Seat] = {}
        self._left: list[Seat] = []
        self._numbers = Numbers()
        self._last_append = 0
        self._wake = asyncio.Event()
        self._said_at = self._heard_at = 0.0
        # Set when somebody waits for something that waits here; else when it has waited long enough.
        self._hurried = asyncio.Event()
        # Whose appends the last message carried, if they all were of one writer.
        self._said_of: Seat | None = None
        self._full = False
        self._retired = False
        self._finished = False

    @property
    def accepting(self) -> bool:
        """Whether another writer may take a seat."""
        return not (self._retired or self._full)

    @property
    def retired(self) -> bool:
        """Whether writers must go elsewhere, also those who have a seat."""
        return self._retired

    def take_seat(self, start: bytes, on_end: Callable[[ClientError], None]) -> Seat:
        """Give a writer a place and a number."""
        number = self._numbers.next(self._seats)
        seat = self._seats[number] = Seat(number, start, on_end)
        # For good: it ends when all of these have left.
        self._full = self._full or len(self._seats) >= MAX_SEATS
        return seat

    def leave_seat(self, seat: Seat) -> None:
        """A writer is done here. What it has sent may still be carried out."""
        if not seat.left:
            seat.left = True
            self._left.append(seat)
            self._wake.set()
            self._end_if_deserted()

    def append(self, seat: Seat, form: Callable[[], bytes], *, patient: bool = False) -> Append:
        """Send an append as soon as there is room. One whose outcome is cancelled before is not sent."""
        if not patient:
            self._hurried.set()
        append = Append(seat, form, asyncio.get_running_loop().create_future())
        self._waiting.append(append)
        self._wake.set()
        return append

    def hurry(self) -> None:
        """What waits is not patient any more."""
        self._hurried.set()

    def retire(self) -> None:
        """Take nothing new: something is wrong with this call, or its bridge. It ends when nobody waits any more."""
        self._retired = True
        self._end_if_deserted()

    def finish(self) -> bool:
        """End it when all is said, where nobody waits for a receipt; tells whether that is so."""
        self._retired = self._finished = True
        self._wake.set()
        return not self._awaited()

    async def run(self) -> None:
        """Carry the call until it is over, and tell everybody who waits how it ended."""
        self._stream = self._open_stream()
        self._end_if_deserted()
        self.tell_all(await converse(self._stream, self._says, self._hears, ProduceManyResponse))

    def tell_all(self, how: HowItEnded) -> None:
        """Tell everybody who waits how the call ended."""
        self._retired = True
        for append in (*self._outstanding.values(), *self._waiting):
            if append.outcome.done():
                continue
            error = how()
            if isinstance(error, Unavailable):
                error.outcome_unknown = append.sent
            elif isinstance(error, InvalidRequest | LimitExceeded):
                # About the call: no append is to be blamed, nor divided, for it.
                error = BridgeFailure(error.message, code=error.code, reason=error.reason, metadata=error.metadata)
            append.outcome.set_exception(error)
        self._outstanding.clear()
        self._waiting.clear()

    def _awaited(self) -> bool:
        return not all(append.outcome.done() for append in (*self._waiting, *self._outstanding.values()))

    def _end_if_deserted(self) -> None:
        if self._finished or self._stream is None:
            return
        if self._retired and not self._awaited():
            self._stream.cancel()
        elif self._full and len(self._left) == len(self._seats):
            self.finish()

    async def _says(self) -> bytes | None:
        """Wait for the next message."""
        while True:
            while not (self._waiting and self._has_room()) and not self._left:
                if self._finished:
                    return None
                self._wake.clear()
                await self._wake.wait()
            await self._hold_back()
            if message := self._next_message():
                return message

    async def _hold_back(self) -> None:
        if self._waiting and self._waiting[0].seat is self._said_of:
            return
        if (pause := self._said_at + self._linger - self._clock()) > 0:
            await asyncio.sleep(pause)
        if not self._hurried.is_set() and (pause := self._heard_at + self._linger - self._clock()) > 0:
            timer = asyncio.get_running_loop().call_later(pause, self._hurried.set)
            try:
                await self._hurried.wait()
            finally:
                timer.cancel()

    def _has_room(self) -> bool:
        return len(self._outstanding) < MAX_OUTSTANDING and self._outstanding_bytes < MAX_OUTSTANDING_BYTES

    def _next_message(self) -> bytes:
        """Encode what waits, as much of it as may go now; empty if there is nothing."""
        parts: list[bytes] = []
        count = size = 0
        first: Seat | None = None
        mixed = False
        while self._waiting and count < MAX_MESSAGE_APPENDS and self._has_room():
            append = self._waiting[0]
            if append.outcome.done():
                self._waiting.popleft()
                continue
            body = append.form()
            if parts and size + len(body) > MAX_MESSAGE_BYTES:
                break
            self._waiting.popleft()
            if len(body) > LARGEST_APPEND:
                append.outcome.set_exception(
                    LimitExceeded(f"the records have {len(body)} bytes, at most {LARGEST_APPEND} can be sent")
                )
                continue
            count += 1
            size += len(body)
            self._encode(append, body, parts)
            first = first or append.seat
            mixed = mixed or append.seat is not first
        if self._left:
            parts.append(self._stops())
        if parts:
            if not self._waiting:
                self._hurried.clear()
            self._said_at, self._said_of = self._clock(), None if mixed else first
        return b"".join(parts)

    def _encode(self, append: Append, body: bytes, parts: list[bytes]) -> None:
        seat = append.seat
        if not seat.started:
            seat.started = True
            number = WriterStart(writer=seat.number).SerializeToString()
            parts.append(embedded(_STARTS, seat.start + number))
        self._last_append += 1
        address = WriterAppend(writer=seat.number, append_id=self._last_append).SerializeToString()
        parts.append(embedded(_APPENDS, body + address))
        append.sent = True
        self._outstanding[self._last_append] = append
        append.size = len(body)
        self._outstanding_bytes += append.size

    def _stops(self) -> bytes:
        # Looked at after the appends: what a writer has sent is carried out.
        left, self._left = self._left, []
        for seat in left:
            del self._seats[seat.number]
        return ProduceManyRequest(stops=[seat.number for seat in left if seat.started]).SerializeToString()

    def _hears(self, response: ProduceManyResponse) -> None:
        self._heard_at = self._clock()
        for receipt in response.receipts:
            append = self._outstanding.pop(receipt.append_id, None)
            if append is None:
                continue
            self._outstanding_bytes -= append.size
            if not append.outcome.done():
                append.outcome.set_result(receipt)
        for end in response.ends:
            seat = self._seats.get(end.writer)
            if seat is not None and not seat.left:
                seat.on_end(error_from_failure(end.failure))
        if self._waiting:
            # Now there may be room.
            self._wake.set()
        if self._retired:
            self._end_if_deserted()
