"""The producer rules: what an append does to a log, as a pure function.

This is the specification of lua/append.lua: both are tested against the same cases and against the same random
histories. It decides only; it stores nothing and knows no Redis.

"Last" is the last record's sequence.

    stream               request                                        decision
    absent               first 0 or 1                                   APPEND (and create)
    absent               first > 1                                      GAP, expected 1
    open, no producer    first 0 or 1                                   APPEND, by whomever
    open                 epoch lower, or equal with another id          FENCED
    open                 same producer, all of it at or below last      DUPLICATE; CONFLICT if the content differs
    open                 same producer, starts at or below last         OVERLAP: slice, then append the rest
    open                 same producer or higher epoch; 0 or last + 1   APPEND
    open                 anything else                                  GAP, expected last + 1
    sealed               repeats what the same producer stored          DUPLICATE
    sealed               anything else                                  COMPLETED

"The content differs" is seen where a request covers exactly one entry whose checksum is another, and where a request
puts its completion on a number that holds a token: a duplicate would acknowledge an end that is not stored.
"""

from dataclasses import dataclass
from enum import StrEnum

from llmbridge.model.records import Append, FinishReason, Producer, Sealer, checksum_of


class Decision(StrEnum):
    """What becomes of an append. The values are those that lua/append.lua answers."""

    APPEND = "appended"
    DUPLICATE = "duplicate"
    OVERLAP = "overlap"
    GAP = "gap"
    FENCED = "fenced"
    CONFLICT = "conflict"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Span:
    """An entry as the rules see it: its first and last sequence and its checksum."""

    first: int
    last: int
    checksum: str


@dataclass(frozen=True, slots=True)
class LogState:
    """A stream that exists, as the rules see it. `producer` is None before the first token."""

    last: int = 0
    producer: Producer | None = None
    sealer: Sealer | None = None
    finish_reason: FinishReason | None = None
    entries: tuple[Span, ...] = ()


def decide(state: LogState | None, request: Append) -> Decision:
    """Say what `request` does to the stream; `state` is None when it is absent."""
    if state is None:
        return Decision.APPEND if request.first <= 1 else Decision.GAP
    if state.sealer is not None:
        return Decision.DUPLICATE if _repeats_sealed(state, request) else Decision.COMPLETED
    if state.producer is None:
        return Decision.APPEND if request.first <= 1 else Decision.GAP
    same = request.producer == state.producer
    if not same and request.producer.epoch <= state.producer.epoch:
        return Decision.FENCED
    if request.first in (0, state.last + 1):
        return Decision.APPEND
    if not same or request.first > state.last:
        return Decision.GAP
    if request.first + request.records - 1 > state.last:
        return Decision.OVERLAP
    return Decision.CONFLICT if _differs(state, request) else Decision.DUPLICATE


def _differs(state: LogState, request: Append) -> bool:
    if request.finish_reason is not None:
        return True
    span = Span(request.first, request.first + request.records - 1, checksum_of(request.fragment))
    return any(
        (entry.first, entry.last) == (span.first, span.last) and entry.checksum != span.checksum
        for entry in state.entries
    )


def _repeats_sealed(state: LogState, request: Append) -> bool:
    if request.first == 0 or request.producer != state.producer:
        return False
    if request.first + request.tokens > state.last:
        return False
    if request.finish_reason is None:
        return True
    return (
        request.first + request.tokens == state.last
        and state.sealer is Sealer.PRODUCER
        and request.finish_reason == state.finish_reason
    )
