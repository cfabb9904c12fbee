"""A writer's records on their way: waiting, formed into an append, stored and kept. Pure: no clock, no network.

A batch is formed when it can go, of all that waits then. It is the bytes of one append with its numbers, and never
changes: sending it again is an exact retry, and a log that has lost its tail is filled again with the same entries, so
that cursors stay what they were. The one exception is a batch that was refused as a whole: none of it was stored, so
that it may be divided.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llmbridge.client.framing import embedded
from llmbridge.v1.bridge_service_pb2 import WriterAppend
from llmbridge.v1.token_pb2 import Completion, Token

_TOKENS = WriterAppend.TOKENS_FIELD_NUMBER
_COMPLETION = WriterAppend.COMPLETION_FIELD_NUMBER

# The bridge's default limits of an append. A bridge with lower ones refuses larger batches, which are then divided.
MAX_BATCH_RECORDS = 1_024
MAX_BATCH_BYTES = 262_144 - 32
"""The rest is for the writer's number and the append's id, which are added when it is sent."""

# What a kept batch takes in memory beside its bytes.
_BATCH_OVERHEAD = 256


@dataclass(frozen=True, slots=True)
class Batch:
    """One append, ready to be sent."""

    first_sequence: int
    last_sequence: int
    body: bytes
    """An encoded WriterAppend without its writer and its id."""
    completes: bool
    """Its last record is the completion."""

    @property
    def size(self) -> int:
        """The memory that it takes, in bytes."""
        return len(self.body) + _BATCH_OVERHEAD


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """The bounds of an outbox.

    `unsent_tokens` and `unsent_bytes` bound what waits for its batch, `kept_bytes` what is kept of the stored.
    """

    unsent_tokens: int
    unsent_bytes: int
    kept_bytes: int

    def __post_init__(self) -> None:
        if min(self.unsent_tokens, self.unsent_bytes) < 1 or self.kept_bytes < 0:
            raise ValueError("a writer's bounds must be positive")


def encoded(record: Token | str | Completion, now_ms: int) -> bytes:
    """Encode a record as a part of an append; appends are put together by joining parts. A string is a text token."""
    if isinstance(record, str):
        record = Token(text=record, timestamp_ms=now_ms)
    if isinstance(record, Token):
        return embedded(_TOKENS, record.SerializeToString())
    if isinstance(record, Completion):
        return embedded(_COMPLETION, record.SerializeToString())
    raise TypeError(f"a record is a Token, a string or a Completion, not {type(record).__name__}")


class Outbox:
    """All records of one producer that are not known to be stored, in order, and the last of those that are."""

    def __init__(self, first_sequence: int, limits: OutboxLimits) -> None:
        self._limits = limits
        self._stored: deque[Batch] = deque()
        self._stored_bytes = 0
        # Formed and not acknowledged, or lost since: to be sent (again), the first one next.
        self._formed: deque[Batch] = deque()
        # What the newest batch was formed of, until it is stored for the first time.
        self._newest: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._max_records = MAX_BATCH_RECORDS
        self._next_sequence = first_sequence
        self._anything_stored = False
        self.completing = False
        """The completion was accepted: nothing may follow."""

    @property
    def anything_stored(self) -> bool:
        """Whether the bridge ever acknowledged a record of this producer."""
        return self._anything_stored

    @property
    def accepted_through(self) -> int:
        """The sequence of the last record accepted."""
        return self._next_sequence - 1 + len(self._waiting)

    @property
    def stored_through(self) -> int:
        """All records up to this sequence are stored, as far as is known; goes back when the log has lost its tail."""
        return (self._formed[0].first_sequence if self._formed else self._next_sequence) - 1

    @property
    def has_more(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._formed or self._waiting)

    @property
    def has_full_batch(self) -> bool:
        """Whether waiting for more records would not make the next batch any larger."""
        full = len(self._waiting) >= self._max_records or self._waiting_bytes >= MAX_BATCH_BYTES
        return bool(self._formed) or full or (self.completing and bool(self._waiting))

    def has_room_for(self, count: int, size: int) -> bool:
        """Whether so many records of `size` bytes may be accepted; what is too large by itself, only when none wait."""
        if not self._waiting:
            return True
        return (
            len(self._waiting) + count <= self._limits.unsent_tokens
            and self._waiting_bytes + size <= self._limits.unsent_bytes
        )

    def accept(self, records: Sequence[bytes], *, completing: bool) -> None:
        """Take records over, in order; `completing`: the last is the completion."""
        if self.completing:
            raise RuntimeError("nothing can follow a completion")
        self._waiting.extend(records)
        self._waiting_bytes += sum(map(len, records))
        self.completing = completing

    def next_batch(self) -> Batch:
        """Return the batch to send next, the same one until it is stored, refused or preceded by a lost one."""
        if not self._formed:
            self._form()
        return self._formed[0]

    def _form(self) -> None:
        header = WriterAppend(first_sequence=self._next_sequence).SerializeToString()
        records, size = [self._waiting.popleft()], len(header)
        size += len(records[0])
        while self._waiting and len(records) < self._max_records and size + len(self._waiting[0]) <= MAX_BATCH_BYTES:
            records.append(self._waiting.popleft())
            size += len(records[-1])
        self._waiting_bytes -= size - len(header)
        first, self._next_sequence = self._next_sequence, self._next_sequence + len(records)
        completes = self.completing and not self._waiting
        self._formed.append(Batch(first, self._next_sequence - 1, b"".join((*records, header)), completes))
        self._newest = records

    def note_stored(self) -> None:
        """The next batch is stored: keep it, and let go of the oldest kept ones that there is no room for."""
        batch = self._formed.popleft()
        if not self._formed:
            self._newest = []
        self._anything_stored = True
        self._stored.append(batch)
        self._stored_bytes += batch.size
        while self._stored_bytes > self._limits.kept_bytes:
            self._stored_bytes -= self._stored.popleft().size

    def go_back(self, sequence: int) -> bool:
        """Have all batches from the one with this stored record sent again. False if that one is not kept any more."""
        if not self._stored or not self._stored[0].first_sequence <= sequence <= self._stored[-1].last_sequence:
            return False
        while self._stored and self._stored[-1].last_sequence >= sequence:
            batch = self._stored.pop()
            self._stored_bytes -= batch.size
            self._formed.appendleft(batch)
        return True

    def divide(self) -> bool:
        """The next batch was refused: have its records sent in smaller ones. False if it is a single record."""
        if len(self._formed) != 1 or len(self._newest) < 2:
            return False
        batch = self._formed.popleft()
        self._waiting.extendleft(reversed(self._newest))
        self._waiting_bytes += sum(map(len, self._newest))
        self._next_sequence = batch.first_sequence
        # For good: if it is for their number, later batches would be refused, too; else there will be no later ones.
        self._max_records = len(self._newest) // 2
        self._newest = []
        return True

    def abandon(self, sequence: int, completion: bytes) -> None:
        """Drop all that is not stored, and all that is kept, for a completion with this sequence."""
        for batches in (self._stored, self._formed, self._waiting):
            batches.clear()
        self._stored_bytes = self._waiting_bytes = 0
        self._newest = []
        self._next_sequence = sequence
        self._waiting.append(completion)
        self._waiting_bytes = len(completion)
        self.completing = True
