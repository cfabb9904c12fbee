"""Makes messages of the entries of a stream that a member is given. Does no I/O.

What only ends the stream is nobody's share: each member gets the completion with its last message.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmbridge.groups.outstanding import Batch
from llmbridge.groups.places import AckId
from llmbridge.log.exchange import Reply
from llmbridge.log.groups import Delivery, GroupPlace, Receipt
from llmbridge.log.reading import decode_run
from llmbridge.model.cursor import Cursor
from llmbridge.model.records import Run
from llmbridge.model.wire import Wire


@dataclass(slots=True)
class Given:
    """What is to be done with the entries that a member was given."""

    batches: list[Batch] = field(default_factory=list)
    nobodys: list[bytes] = field(default_factory=list)
    undecodable: list[Receipt] = field(default_factory=list)


class BatchMaker:
    """Makes the messages of one member."""

    def __init__(self, place: GroupPlace, wire: Wire, explicit: bool) -> None:
        self._place = place
        self._wire = wire
        self._explicit = explicit

    def new(self, entries: Sequence[Reply]) -> Given:
        """Sort entries that are delivered for the first time; consecutive, as XREADGROUP answers them."""
        given = Given()
        if not entries:
            return given
        try:
            self._add(given, decode_run(entries), entries, 1)
        except (ValueError, IndexError, RuntimeError):
            # One of them is nothing that the bridge wrote.
            self._sort(given, [(entry, 1) for entry in entries])
        return given

    def again(self, deliveries: Sequence[Delivery]) -> Given:
        """Sort entries that are delivered again."""
        given = Given()
        self._sort(given, [((delivery.id, delivery.fields), delivery.attempt) for delivery in deliveries])
        return given

    def _sort(self, given: Given, entries: Sequence[tuple[Reply, int]]) -> None:
        """Put consecutive entries with the same attempt into one message."""
        row: list[Reply] = []
        row_attempt = row_end = 0
        for entry, attempt in entries:
            try:
                one = decode_run([entry])
            except (ValueError, IndexError, RuntimeError):
                given.undecodable.append(Receipt(entry[0], attempt))
                continue
            if row and (attempt != row_attempt or one.first != row_end + 1):
                self._add(given, decode_run(row), row, row_attempt)
                row = []
            row.append(entry)
            row_attempt, row_end = attempt, one.last
        if row:
            self._add(given, decode_run(row), row, row_attempt)

    def _add(self, given: Given, run: Run, entries: Sequence[Reply], attempt: int) -> None:
        fragments = run.fragments
        if run.sealed:
            records = int(entries[-1][1][1])
            if records == 1:
                given.nobodys.append(entries[-1][0])
                entries, fragments = entries[:-1], fragments[:-1]
            else:
                fragments = (*fragments[:-1], self._wire.take(fragments[-1], records - 1))
        if not entries:
            return
        ids = tuple([entry_id for entry_id, _ in entries])
        ack_ids: Sequence[str] = ()
        weights: tuple[tuple[int, int], ...] = ()
        if self._explicit:
            ack_ids = AckId.texts(ids, attempt)
            weights = tuple([(int(fields[1]), len(fields[3])) for _, fields in entries])
        cursor = str(Cursor.after(run))
        message = self._wire.message(fragments, run.first, cursor, run.appended_ms, ack_ids, attempt)
        given.batches.append(Batch(message, self._place, ids, attempt, weights))
