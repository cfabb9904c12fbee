"""Where a reader stands in one stream, and what comes next for it: the reading rules, the same for every kind of call.

A cursor is all it remembers. Messages come from the shared tail where that continues from the cursor, and from the log
where it does not; only such a read can say that history is gone. It neither waits for news nor decides when to look.
"""

from llmbridge.hub.fanout import Fanout
from llmbridge.hub.tail import Found, Listener, Tail
from llmbridge.log.reading import LogReader, Tip
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.records import Run
from llmbridge.model.wire import Wire
from llmbridge.subscribe.start import Position, Start


class Place:
    """One place in one stream. `ended` is set where nothing more can come.

    What `live` and `advance` give is to be handed out by `take`, which moves the place. `listener` is told when there
    may be something new.
    """

    __slots__ = ("_fanout", "_listener", "_log", "_log_reader", "_seen", "_tail", "_tip", "_wire", "cursor", "ended")

    def __init__(self, log: str, fanout: Fanout, log_reader: LogReader, wire: Wire) -> None:
        self.cursor: Cursor | None = None
        self.ended = False
        self._log = log
        self._fanout = fanout
        self._log_reader = log_reader
        self._wire = wire
        self._tip: Tip | None = None
        self._tail: Tail | None = None
        self._listener: Listener | None = None
        self._seen: Cursor | None = None

    @property
    def log(self) -> str:
        """Which stream."""
        return self._log

    @property
    def cursor_text(self) -> str:
        """The cursor of the last record taken, as the client gets it; empty before the first."""
        return text_of(self.cursor)

    @property
    def lag(self) -> int:
        """How many records come after the cursor, as far as the tail knows."""
        end = None if self._tail is None else self._tail.cursor
        if end is None:
            return 0
        if self.cursor is None:
            return end.sequence
        # Where the incarnations differ the reader is about to be told that its history is gone.
        return max(0, end.sequence - self.cursor.sequence) if end.incarnation == self.cursor.incarnation else 0

    @property
    def at_end(self) -> bool:
        """Whether it surely has all that the tail has, and the tail is of use."""
        tail = self._tail
        return tail is not None and tail.cursor is self.cursor and not tail.closed

    @property
    def unchanged(self) -> bool:
        """Whether the tail is as it was before the last `advance`, so that there is nothing to do but to wait."""
        tail = self._tail
        return tail is not None and not tail.closed and tail.cursor == self._seen

    def stands_with(self, other: "Place") -> bool:
        """Whether the same comes next for both, whatever it is."""
        return self._tail is other._tail and self.cursor == other.cursor

    async def attach(self, start: Start, listener: Listener) -> Found | None:
        """Take the place to start from, and give what comes first where that was found on the way.

        A cursor is proven only by the first `advance`. Raises RedisUnavailable, and whatever keeps the log from being
        read.
        """
        self._listener = listener
        if isinstance(start, Cursor):
            self.cursor = start
        tail = await self._follow()
        if start is Position.EARLIEST:
            self.cursor = await self._log_reader.earliest(self._log)
        elif start is Position.LATEST:
            return self._end_of_log(await self._log_reader.last(self._log))
        elif start is Position.BEGINNING and tail.cursor is not None:
            self.cursor = Cursor(tail.cursor.incarnation, 0, NO_CHECKSUM)
        return None

    def fork(self) -> "Place":
        """Give the same place to another reader, who must `listen` at once."""
        fork = Place(self._log, self._fanout, self._log_reader, self._wire)
        fork.cursor, fork.ended, fork._tip, fork._tail = self.cursor, self.ended, self._tip, self._tail
        return fork

    def listen(self, listener: Listener) -> None:
        """Follow the tail that the origin of this fork follows."""
        assert self._tail is not None, "a fork has the tail of its origin"
        self._listener = listener
        self._tail.listeners[listener] = None

    def detach(self) -> None:
        """Let go of the tail. Does nothing where there is none."""
        tail, listener, self._tail = self._tail, self._listener, None
        if tail is not None and listener is not None:
            self._fanout.leave(tail, listener)

    def live(self) -> Found | None:
        """Give what the tail says comes next, if it can."""
        tail = self._tail
        if tail is None or tail.closed:
            return None
        if self.cursor is None:
            if tail.cursor is None:
                return None
            self.cursor = Cursor(tail.cursor.incarnation, 0, NO_CHECKSUM)
        return tail.message_after(self.cursor)

    def caught_up(self) -> bool:
        """Tell whether there is nothing more, as far as the tail knows; else `advance` must look."""
        tail = self._tail
        if tail is None or tail.closed:
            return False
        if self.cursor is None:
            return True
        # A tail that is behind the reader, or absent, either lags or follows a log that lost records: the log will say.
        if self.cursor != tail.cursor:
            return False
        self.ended = tail.sealed
        return True

    async def advance(self) -> Found | None:
        """Ask the log what comes next. Raises a HistoryGone or RedisUnavailable."""
        if self._tail is None or self._tail.closed:
            await self._follow()
            found = self.live()
            if found is not None or self.caught_up():
                return found
        return await self._read_log()

    def take(self, found: Found) -> None:
        """Move on: it is handed out."""
        self.cursor = found.cursor
        self.ended = found.ended

    async def _read_log(self) -> Found | None:
        assert self.cursor is not None, "who has no cursor is caught up"
        self._seen = None if self._tail is None else self._tail.cursor
        page = await self._log_reader.after(self._log, self.cursor, self._tip)
        self._tip = page.tip
        run = page.run
        if run is None:
            self.ended = page.tip.sealed and page.tip.cursor == self.cursor
            return None
        fragments = run.fragments
        if page.skip:
            fragments = (self._wire.skip(fragments[0], page.skip), *fragments[1:])
        cursor = Cursor.after(run)
        message = self._wire.message(fragments, run.first + page.skip, str(cursor), run.appended_ms)
        return Found(message, cursor, run.sealed)

    def _end_of_log(self, last: Run | None) -> Found:
        cursor = None if last is None else Cursor.after(last)
        if last is None or not last.sealed:
            # So that a reader cut off before its first record goes on from here, and not from a later "latest".
            return Found(self._wire.heartbeat(text_of(cursor)), cursor, False)
        completion = self._wire.skip(last.fragments[0], last.last - last.first)
        return Found(self._wire.message((completion,), last.last, str(cursor), last.appended_ms), cursor, True)

    async def _follow(self) -> Tail:
        assert self._listener is not None, "who follows has been attached"
        self.detach()
        self._tail = await self._fanout.join(self._log, self._listener)
        self._seen = self._tail.cursor
        return self._tail


def text_of(cursor: Cursor | None) -> str:
    """Write a cursor as clients get it: empty before the first record."""
    return str(cursor) if cursor is not None and cursor.sequence > 0 else ""
