"""A consumer group as it should be, on one log: what tests compare Redis with; and what may happen to it.

Knows nothing of Redis. Time does not run here: `age` lets ms pass for one delivery. Overdue is what has aged by the
deadline since its delivery, or since the last extension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from llmbridge.log.groups import History, Receipt, Room, Verb
from llmbridge.model.cursor import NO_CHECKSUM


@dataclass(frozen=True, slots=True)
class Grow:
    """Append an entry."""

    records: int
    size: int


@dataclass(frozen=True, slots=True)
class Read:
    """Read up to a number, with acknowledgements of deliveries that the member has in hand."""

    member: str
    at_most: int
    settled: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Read, or recover, what has room."""

    member: str
    room: Room
    recover: bool


@dataclass(frozen=True, slots=True)
class Settle:
    """Do something with deliveries, counted back from the latest; a stray makes the receipt one of another attempt."""

    verb: Verb
    picks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Pass:
    """Time passes for a delivery, or for all."""

    ms: int
    pick: int | None


@dataclass(frozen=True, slots=True)
class Go:
    """A member leaves: gives back what it has, or crashes and only later somebody cleans up."""

    member: str
    clean: bool


@dataclass(frozen=True, slots=True)
class Join:
    history: History


@dataclass(frozen=True, slots=True)
class Trim:
    keep: int


NOTE_GAP = "note a gap"
# A receipt for an entry of the log that may never have been delivered.
FOREIGN = 9


class Fate(StrEnum):
    """What has become of an entry; each has exactly one."""

    NEVER_DELIVERED = "never delivered"
    PENDING = "pending"
    SETTLED = "settled"
    DEAD = "dead letter"
    LOST = "trimmed before delivery"


@dataclass(frozen=True, slots=True)
class ModelLetter:
    """A dead letter. The ages tell how long ago its deliveries were: the test's clock plus the time that really passed.

    An age is None where deliveries were taken back: the first may have been such a one, and of the last one before it
    nobody knows.
    """

    id: bytes
    checksum: str
    consumer: str
    attempts: int
    reason: str
    first_age_ms: int | None
    last_age_ms: int | None


@dataclass(slots=True)
class ModelEntry:
    """An entry of the log and what the group has done with it."""

    id: bytes
    sequence: int
    records: int
    size: int
    checksum: str
    in_log: bool = True
    fate: Fate = Fate.NEVER_DELIVERED
    consumer: str = ""
    attempts: int = 0
    idle_ms: int = 0
    first_age_ms: int | None = 0
    last_age_ms: int | None = 0


@dataclass(frozen=True, slots=True)
class Given:
    """What a read gave, and how the group stood before."""

    ids: list[bytes]
    delivered: int
    pending: int
    gap: bool


@dataclass
class ModelGroup:
    """One group; `told` collects what its members are told on their channel."""

    deadline_ms: int
    max_deliveries: int
    entries: list[ModelEntry] = field(default_factory=list)
    delivered: int = 0
    gap: bool = False
    consumers: set[str] = field(default_factory=set)
    letters: list[ModelLetter] = field(default_factory=list)
    told: list[bytes] = field(default_factory=list)

    def of(self, fate: Fate) -> list[ModelEntry]:
        """List the entries of one fate, in the log's order."""
        return [entry for entry in self.entries if entry.fate is fate]

    @property
    def pending(self) -> list[ModelEntry]:
        return self.of(Fate.PENDING)

    @property
    def last(self) -> int:
        return self.entries[-1].sequence if self.entries else 0

    @property
    def before_earliest(self) -> int:
        return next((entry.sequence - entry.records for entry in self.entries if entry.in_log), 0)

    def overdue(self, entry: ModelEntry) -> bool:
        return entry.idle_ms >= self.deadline_ms

    def append(self, entry_id: bytes, records: int, size: int, checksum: str) -> None:
        """Store an entry."""
        self.entries.append(ModelEntry(entry_id, self.last + records, records, size, checksum))

    def trim(self, keep: int) -> None:
        """Drop entries that end before the last `keep` records; the last entry stays."""
        floor = min(self.last - keep + 1, self.last)
        for entry in self.entries:
            if entry.sequence < floor:
                entry.in_log = False
                if entry.fate is Fate.NEVER_DELIVERED:
                    entry.fate = Fate.LOST

    def age(self, entry: ModelEntry, ms: int) -> None:
        """Let time pass for a pending entry."""
        entry.idle_ms += ms
        if entry.first_age_ms is not None:
            entry.first_age_ms += ms
        if entry.last_age_ms is not None:
            entry.last_age_ms += ms

    def join(self, history: History) -> int | None:
        """Join for the first time, or again; None if that is done, else the record up to which history is lost.

        Forgets consumers that have nothing pending.
        """
        if history is not History.IGNORE:
            if self.gap or self.before_earliest > self.delivered:
                if history is History.REFUSE:
                    return self.before_earliest
                self.gap = False
            self.delivered = max(self.delivered, self.before_earliest)
        self.consumers = {entry.consumer for entry in self.pending}
        return None

    def note_gap(self) -> None:
        """Have joining refuse until somebody accepts."""
        self.gap = True

    def read(self, consumer: str, at_most: int, settled: Sequence[bytes]) -> Given:
        """Acknowledge, then give the next entries."""
        for entry in self.pending:
            if entry.id in settled:
                entry.fate = Fate.SETTLED
        return self._share(consumer, self.of(Fate.NEVER_DELIVERED)[:at_most])

    def read_fitting(self, consumer: str, room: Room) -> Given:
        """Give the next entries that have room."""
        return self._share(consumer, _fitting(self.of(Fate.NEVER_DELIVERED), room))

    def recover(self, consumer: str, room: Room) -> list[tuple[bytes, int]]:
        """Give overdue entries that have room, bury the hopeless ones; names what was given, with attempts."""
        overdue = [entry for entry in self.pending if self.overdue(entry)]
        hopeless = [entry for entry in overdue if not entry.in_log or entry.attempts >= self.max_deliveries]
        for entry in hopeless:
            self._bury(entry, "max_deliveries" if entry.in_log else "trimmed")
        self._tell("settled", hopeless)
        given = _fitting([entry for entry in overdue if entry.fate is Fate.PENDING], room)
        for entry in given:
            self._give(entry, consumer)
        return [(entry.id, entry.attempts) for entry in given]

    def settle(self, verb: Verb, receipts: Sequence[Receipt], reason: str) -> list[bool]:
        """Do something with deliveries; tells for each whether it was done."""
        by_id = {entry.id: entry for entry in self.entries}
        done, gone, back = [], [], []
        for receipt in receipts:
            entry = by_id.get(receipt.id)
            if entry is None or entry.fate is not Fate.PENDING:
                done.append(False)
            elif verb is Verb.ACKNOWLEDGE:
                entry.fate = Fate.SETTLED
                gone.append(entry)
                done.append(True)
            elif entry.attempts != receipt.attempt:
                done.append(False)
            elif verb is Verb.BURY or not entry.in_log:
                self._bury(entry, reason if verb is Verb.BURY else "trimmed")
                gone.append(entry)
                done.append(verb is Verb.BURY)
            else:
                self._put_back(entry, verb)
                if verb is not Verb.EXTEND:
                    back.append(entry)
                done.append(True)
        self._tell("settled", gone)
        self._tell("requeued", back)
        return done

    def leave(self, consumer: str) -> None:
        """Forget a consumer, unless it has something pending."""
        if all(entry.consumer != consumer for entry in self.pending):
            self.consumers.discard(consumer)

    def check(self) -> None:
        """What holds whatever happens."""
        for entry in self.entries:
            match entry.fate:
                case Fate.NEVER_DELIVERED:
                    assert entry.in_log
                    assert entry.sequence > self.delivered
                case Fate.LOST:
                    assert not entry.in_log
                case Fate.PENDING:
                    assert entry.consumer in self.consumers
                    assert entry.attempts <= self.max_deliveries
        assert sorted(letter.id for letter in self.letters) == sorted(entry.id for entry in self.of(Fate.DEAD))

    def _share(self, consumer: str, entries: list[ModelEntry]) -> Given:
        given = Given([entry.id for entry in entries], self.delivered, len(self.pending), self.gap)
        for entry in entries:
            self._give(entry, consumer)
            self.delivered = entry.sequence
        return given

    def _give(self, entry: ModelEntry, consumer: str) -> None:
        entry.fate, entry.consumer = Fate.PENDING, consumer
        entry.attempts += 1
        entry.idle_ms = entry.last_age_ms = 0
        self.consumers.add(consumer)

    def _put_back(self, entry: ModelEntry, verb: Verb) -> None:
        entry.idle_ms = 0 if verb is Verb.EXTEND else self.deadline_ms
        if verb is Verb.UNDELIVER:
            entry.attempts -= 1
            entry.last_age_ms = None
            if entry.attempts == 0:
                entry.first_age_ms = None

    def _bury(self, entry: ModelEntry, reason: str) -> None:
        entry.fate = Fate.DEAD
        checksum = entry.checksum if entry.in_log else NO_CHECKSUM
        self.letters.append(
            ModelLetter(
                entry.id, checksum, entry.consumer, entry.attempts, reason, entry.first_age_ms, entry.last_age_ms
            )
        )

    def _tell(self, what: str, entries: Sequence[ModelEntry]) -> None:
        if entries:
            self.told.append(b" ".join([what.encode(), *(entry.id for entry in entries)]))


def _fitting(entries: Sequence[ModelEntry], room: Room) -> list[ModelEntry]:
    fitting: list[ModelEntry] = []
    for entry in entries[: room.entries]:
        together = [*fitting, entry]
        fits = sum(one.records for one in together) <= room.records and sum(one.size for one in together) <= room.size
        if not fits and not (room.at_least_one and not fitting):
            break
        fitting = together
    return fitting
