"""Records and the entries that store them. The bytes of tokens are opaque here: see `wire`."""

import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

MAX_SEQUENCE = 2**53 - 1
"""The largest sequence, incarnation and epoch: Lua's numbers are exact up to here."""


class FinishReason(StrEnum):
    """Why a stream ended, as stored in Redis."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    CANCELLED = "cancelled"
    ERROR = "error"


class Sealer(StrEnum):
    """Who stored the completion, as stored in Redis."""

    PRODUCER = "producer"
    CANCEL = "cancel"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Producer:
    """Who appends. The epoch fences; the id tells two producers with the same epoch apart."""

    epoch: int
    id: str


def checksum_of(fragment: bytes) -> str:
    """CRC-32 of a fragment in 8 hex digits. It finds accidents (a lost and rewritten tail), not attacks."""
    return f"{zlib.crc32(fragment):08x}"


class Append(NamedTuple):
    """Records to store as one entry: `tokens` tokens, then a completion if `finish_reason` is given.

    `first` is the sequence of the first record, 0 to have it assigned. `fragment` is their encoding (see `wire`),
    `completion` that of the completion alone, which the lifecycle feed keeps; empty without one.

    A tuple, because there is one for each token: a frozen dataclass takes four times as long to make.
    """

    first: int
    tokens: int
    finish_reason: FinishReason | None
    producer: Producer
    fragment: bytes
    completion: bytes = b""

    @property
    def records(self) -> int:
        """How many sequence numbers it takes."""
        return self.tokens + (self.finish_reason is not None)


class Run(NamedTuple):
    """Consecutive records as read from the log: one or more whole entries.

    `checksum` (of the log up to there), `appended_ms` and `sealed` are the last entry's. `first` > `last` where it
    holds no record (the header). A tuple, because there is one for each token.
    """

    incarnation: int
    first: int
    last: int
    checksum: str
    appended_ms: int
    sealed: bool
    fragments: tuple[bytes, ...]
