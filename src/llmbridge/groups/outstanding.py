"""What a member has been given and has not settled, and how much more it can take. Does no I/O."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from llmbridge.log.groups import GroupPlace, Receipt, Room


@dataclass(frozen=True, slots=True)
class Batch:
    """A message for the client, and the deliveries in it: entries of one group, each for the same time.

    `weights` are each entry's records (tokens, events) and bytes; empty where nobody counts them.
    """

    message: bytes
    place: GroupPlace
    ids: tuple[bytes, ...]
    attempt: int
    weights: tuple[tuple[int, int], ...]

    @property
    def receipts(self) -> list[Receipt]:
        """Name the deliveries."""
        return [Receipt(entry_id, self.attempt) for entry_id in self.ids]


@dataclass(frozen=True, slots=True)
class _Held:
    place: GroupPlace
    attempt: int
    records: int
    size: int


class Outstanding:
    """Counts what is held against a member's limits: records and bytes."""

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._held: dict[str, dict[bytes, _Held]] = {}
        self._count = 0
        self._records = 0
        self._bytes = 0

    def __len__(self) -> int:
        """How many deliveries are held."""
        return self._count

    @property
    def full(self) -> bool:
        """Whether nothing more can be taken until something is settled."""
        return self._count > 0 and (self._records >= self._max_records or self._bytes >= self._max_bytes)

    def add(self, batch: Batch) -> None:
        """Hold a batch's deliveries; each takes the place of an earlier one of the same entry."""
        log = batch.place.log
        self.drop(log, batch.ids)
        of_log = self._held.setdefault(log, {})
        for entry_id, (records, size) in zip(batch.ids, batch.weights, strict=True):
            of_log[entry_id] = _Held(batch.place, batch.attempt, records, size)
            self._records += records
            self._bytes += size
        self._count += len(batch.ids)

    def drop(self, log: str, ids: Iterable[bytes]) -> int:
        """Hold these entries of a log no more; tells how many of them were held."""
        dropped = 0
        of_log = self._held.get(log, {})
        for entry_id in ids:
            held = of_log.pop(entry_id, None)
            if held is not None:
                self._records -= held.records
                self._bytes -= held.size
                dropped += 1
        self._count -= dropped
        return dropped

    def keep(self, log: str, ids: Collection[bytes]) -> None:
        """Of what is held of a log, hold only these entries."""
        self.drop(log, [entry_id for entry_id in self._held.get(log, ()) if entry_id not in ids])

    def ids(self, log: str) -> set[bytes]:
        """Name the entries of a log that are held."""
        return set(self._held.get(log, ()))

    def receipts(self) -> dict[GroupPlace, list[Receipt]]:
        """Name all that is held, by group."""
        receipts: dict[GroupPlace, list[Receipt]] = {}
        for of_log in self._held.values():
            for entry_id, held in of_log.items():
                receipts.setdefault(held.place, []).append(Receipt(entry_id, held.attempt))
        return receipts

    def room(self, entries: int, size: int) -> Room:
        """Say what can be taken now, at most so many entries and bytes at once."""
        return Room(
            entries=entries,
            records=max(0, self._max_records - self._records),
            size=max(0, min(size, self._max_bytes - self._bytes)),
            at_least_one=self._count == 0,
        )
