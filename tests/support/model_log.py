"""A stream as it should be, kept by folding what the rules decide: what tests compare Redis with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmbridge.model.cursor import NO_CHECKSUM
from llmbridge.model.records import Append, FinishReason, Producer, Sealer, checksum_of
from llmbridge.rpc.wire import ProtoWire
from llmbridge.sequencing import Decision, LogState, Span, decide

WIRE = ProtoWire()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an append, and what is told with it.

    APPEND, DUPLICATE: the request's last sequence; OVERLAP: last; GAP: expected; FENCED: epoch; CONFLICT: sequence;
    COMPLETED: finish reason and sealer. `checksum` is that of the cursor answered, which only a real log has.
    """

    decision: Decision
    answer: tuple[int | str, ...]
    checksum: str = field(default="", compare=False)

    def vouched_by(self, stored: "Sequence[StoredEntry]") -> bool:
        """Whether the cursor answered, if one was, is that of the entry that holds the request's last record."""
        if self.decision not in (Decision.APPEND, Decision.DUPLICATE):
            return True
        holder = [entry for entry in stored if entry.first <= int(self.answer[0]) <= entry.last]
        return self.checksum == (holder[0].cursor_checksum if holder else NO_CHECKSUM)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry of a log; the header has no records."""

    last: int
    records: int
    fragment: bytes
    producer: Producer | None
    sealer: Sealer | None = None
    finish_reason: FinishReason | None = None
    cursor_checksum: str = field(default="", compare=False)
    """What cursors into it carry; only a real log has it."""

    @property
    def first(self) -> int:
        return self.last - self.records + 1

    @property
    def checksum(self) -> str:
        return checksum_of(self.fragment)


@dataclass(frozen=True, slots=True)
class Create:
    """CreateStream."""


@dataclass(frozen=True, slots=True)
class Seal:
    """A seal made by the bridge."""

    sealer: Sealer
    finish_reason: FinishReason

    @property
    def fragment(self) -> bytes:
        return WIRE.completion(self.finish_reason, "why")


Step = Create | Append | Seal


@dataclass
class ModelLog:
    """One stream; without entries it is absent."""

    entries: list[StoredEntry] = field(default_factory=list)

    @property
    def state(self) -> LogState | None:
        if not self.entries:
            return None
        last = self.entries[-1]
        spans = tuple(Span(entry.first, entry.last, entry.checksum) for entry in self.entries if entry.records)
        return LogState(last.last, last.producer, last.sealer, last.finish_reason, spans)

    @property
    def last(self) -> int:
        return self.entries[-1].last if self.entries else 0

    @property
    def sealed(self) -> bool:
        return bool(self.entries) and self.entries[-1].sealer is not None

    def store(self, step: Step) -> None:
        """Store something without asking the rules."""
        producer = self.entries[-1].producer if self.entries else None
        match step:
            case Create():
                entry = StoredEntry(0, 0, b"", None)
            case Seal(sealer, finish_reason):
                entry = StoredEntry(self.last + 1, 1, step.fragment, producer, sealer, finish_reason)
            case Append():
                last, by_producer = self.last + step.records, Sealer.PRODUCER if step.finish_reason else None
                entry = StoredEntry(last, step.records, step.fragment, step.producer, by_producer, step.finish_reason)
        self.entries.append(entry)

    def append(self, request: Append) -> Outcome:
        """Do what the rules say, as one call of the script does."""
        decision = decide(self.state, request)
        state = self.state or LogState()
        match decision:
            case Decision.APPEND:
                self.store(request)
                return Outcome(decision, (self.last,))
            case Decision.DUPLICATE:
                return Outcome(decision, (request.first + request.records - 1,))
            case Decision.OVERLAP:
                return Outcome(decision, (self.last,))
            case Decision.GAP:
                return Outcome(decision, (self.last + 1,))
            case Decision.FENCED:
                assert state.producer is not None
                return Outcome(decision, (state.producer.epoch,))
            case Decision.CONFLICT:
                # The number at which request and log disagree: the completion's where there is one.
                completes = request.finish_reason is not None
                return Outcome(decision, (request.first + request.tokens if completes else request.first,))
            case Decision.COMPLETED:
                assert state.finish_reason is not None
                assert state.sealer is not None
                return Outcome(decision, (state.finish_reason, state.sealer))

    def produce(self, request: Append) -> Outcome:
        """Do what Produce does: slice a request of which the first part is stored already."""
        outcome = self.append(request)
        if outcome.decision is not Decision.OVERLAP:
            return outcome
        return self.append(_rest(request, self.last))

    def seal(self, seal: Seal) -> tuple[bool, int, FinishReason, Sealer]:
        """Seal unless sealed. Tells whether it was now, the completion's number, and how."""
        now = not self.sealed
        if now:
            self.store(seal)
        last = self.entries[-1]
        assert last.finish_reason is not None
        assert last.sealer is not None
        return now, last.last, last.finish_reason, last.sealer


def produce_group(logs: Sequence[ModelLog], asked: Sequence[tuple[int, Append]]) -> list[Outcome]:
    """Do what ProduceMany does with a group: each request names its log by number.

    What overlaps is sliced and appended again, and with it what the same producer sent behind it and found a gap.
    """
    requests = [request for _, request in asked]
    outcomes: dict[int, Outcome] = {}
    sliced: set[int] = set()
    again = list(range(len(asked)))
    while again:
        for place in again:
            outcomes[place] = logs[asked[place][0]].append(requests[place])
        waiting, again, behind = again, [], set()
        for place in waiting:
            stream, request = asked[place][0], requests[place]
            if outcomes[place].decision is Decision.OVERLAP:
                behind.add((stream, request.producer))
                sliced.add(place)
                requests[place] = _rest(request, int(outcomes[place].answer[0]))
                again.append(place)
            elif outcomes[place].decision is Decision.GAP and (stream, request.producer) in behind:
                again.append(place)
    for place in sliced:
        if outcomes[place].decision is Decision.DUPLICATE:
            outcomes[place] = Outcome(Decision.APPEND, outcomes[place].answer)
    return [outcomes[place] for place in range(len(asked))]


def _rest(request: Append, last: int) -> Append:
    stored = last - request.first + 1
    fragment = WIRE.skip(request.fragment, stored)
    return Append(last + 1, request.tokens - stored, request.finish_reason, request.producer, fragment)
