"""The way out: reads of many readers share round trips, and no read holds more than a page.

Every read starts at the reader's own last record, inclusive, so that it also proves that the log still holds what the
reader saw: history that is gone is found by the read itself, whoever makes it and whenever.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmbridge.errors import Expired, HistoryGone, Lost, Restarted, Rewritten, Trimmed
from llmbridge.log.commands import Commands
from llmbridge.log.exchange import Reply
from llmbridge.log.scripts import load_script
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.records import Run

PAGE_BYTES = 262_144
"""What one read fetches at most, unless a single entry is larger. It bounds a reader's memory and its messages."""

PAGE_ENTRIES = 1_000
"""Twice as many buy 5 % of a replay's CPU, half as many cost 15 %."""

FEW_ENTRIES = 32
"""Where fewer surely fit, because of one large entry, a script counts bytes: Redis then needs 3 µs an entry more, but
thousands of small entries beside a large one do not take a round trip each."""


@dataclass(frozen=True, slots=True)
class Tip:
    """A log's last record; the size in bytes of its largest fragment, and the most records of an entry, up to there."""

    cursor: Cursor
    largest: int
    most: int
    sealed: bool

    def page_entries(self) -> int:
        """How many entries surely fit into a page, plus the one that the reader has already."""
        return max(1, min(PAGE_ENTRIES, PAGE_BYTES // max(self.largest, 1))) + 1


@dataclass(frozen=True, slots=True)
class Page:
    """What a read found: `run` is None when there is nothing new. `skip` records of it lie at or before the cursor."""

    run: Run | None
    skip: int
    tip: Tip


class LogReader:
    """Reads streams."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._page_script = load_script("page")

    async def tip(self, log: str) -> Tip | None:
        """Tell where a stream ends; None when it is absent."""
        reply = await self._last(log)
        if not reply:
            return None
        run = decode_run(reply)
        _, _, largest, most, _ = reply[0][1][5].split(b" ", 4)
        return Tip(Cursor.after(run), int(largest), int(most), run.sealed)

    async def last(self, log: str) -> Run | None:
        """Read a stream's last entry; None when it is absent."""
        reply = await self._last(log)
        return decode_run(reply) if reply else None

    async def _last(self, log: str) -> list[Reply]:
        reply: list[Reply] = await self._commands.read("XREVRANGE", log, "+", "-", "COUNT", 1)
        return reply

    async def earliest(self, log: str) -> Cursor | None:
        """Give the cursor before the earliest record that is left; None when the stream is absent."""
        reply = await self._commands.read("XRANGE", log, "-", "+", "COUNT", 1)
        return _before(decode_run(reply)) if reply else None

    async def after(self, log: str, cursor: Cursor, tip: Tip | None) -> Page:
        """Read the page after `cursor`. `tip` may be an older one; it is fetched when it holds nothing new.

        Raises a HistoryGone when the log no longer continues from the cursor without a hole, else RedisUnavailable.
        """
        if tip is None or tip.cursor.sequence <= cursor.sequence:
            tip = await self.tip(log)
        if tip is None:
            raise Expired
        if tip.cursor.incarnation != cursor.incarnation:
            raise await self._gone(Restarted, log)
        if tip.cursor.sequence < cursor.sequence:
            raise await self._gone(Lost, log)
        if tip.cursor == cursor:
            return Page(None, 0, tip)
        reply = await self._entries(log, cursor, tip)
        if not reply:
            # Gone, or shorter, since the tip was read: look again.
            return await self.after(log, cursor, None)
        return await self._page(log, cursor, reply, tip)

    async def _entries(self, log: str, cursor: Cursor, tip: Tip) -> list[Reply]:
        first_id, last_id = f"{cursor.incarnation}-{cursor.sequence}", f"{cursor.incarnation}-{tip.cursor.sequence}"
        reply: list[Reply]
        entries = tip.page_entries()
        if entries >= FEW_ENTRIES:
            reply = await self._commands.read("XRANGE", log, first_id, last_id, "COUNT", entries)
        else:
            reply = await self._commands.ask(self._page_script, (log,), (first_id, last_id, PAGE_ENTRIES, PAGE_BYTES))
        return reply

    async def _page(self, log: str, cursor: Cursor, reply: list[Reply], tip: Tip) -> Page:
        first = decode_run(reply[:1])
        if first.first > cursor.sequence + 1:
            raise await self._gone(Trimmed, log)
        if first.first <= cursor.sequence or first.last == cursor.sequence:
            if first.checksum != cursor.checksum:
                raise await self._gone(Rewritten, log)
            if first.last == cursor.sequence:
                reply = reply[1:]
        if not reply:
            return Page(None, 0, tip)
        run = decode_run(_fitting(reply))
        return Page(run, max(0, cursor.sequence - run.first + 1), tip)

    async def _gone(self, kind: type[HistoryGone], log: str) -> HistoryGone:
        earliest = await self.earliest(log)
        return Expired() if earliest is None else kind(str(earliest))


def decode_run(entries: Sequence[Reply]) -> Run:
    """Decode entries as XRANGE answers them, which must be consecutive. The scripts write n, b, i first, in this order.

    Raises ValueError, IndexError or RuntimeError where they are not what the scripts write.
    """
    first_id, first_fields = entries[0]
    last_id, last_fields = entries[-1]
    incarnation, _, first_last = first_id.partition(b"-")
    last = sequence_of(last_id)
    first = int(first_last) - int(first_fields[1]) + 1
    # Entries have at least one record, so that as many entries as records can't leave a hole.
    if len(entries) != last - first + 1 and sum(int(fields[1]) for _, fields in entries) != last - first + 1:
        raise RuntimeError(f"the entries from {first_id!r} to {last_id!r} have a hole")
    appended_ms, checksum, _ = last_fields[5].split(b" ", 2)
    return Run(
        incarnation=int(incarnation),
        first=first,
        last=last,
        checksum=checksum.decode(),
        appended_ms=int(appended_ms),
        sealed=b"s" in last_fields[6::2],
        fragments=tuple([fields[3] for _, fields in entries]),
    )


def sequence_of(entry_id: bytes) -> int:
    """Give the sequence of an entry's last record."""
    return int(entry_id.partition(b"-")[2])


def records_of(fields: Sequence[bytes]) -> int:
    """Give the number of an entry's records; 1 where it is not what the scripts write."""
    return int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else 1


def _fitting(entries: list[Reply]) -> list[Reply]:
    """Leave out what makes a page too large: what was read may hold one entry more than fits."""
    # The hot path of a replay: mostly all of it fits.
    if sum([len(fields[3]) for _, fields in entries]) <= PAGE_BYTES:
        return entries
    size = 0
    for i, (_, fields) in enumerate(entries):
        size += len(fields[3])
        if size > PAGE_BYTES and i > 0:
            return entries[:i]
    return entries


def _before(run: Run) -> Cursor:
    return Cursor(run.incarnation, run.first - 1, NO_CHECKSUM)
