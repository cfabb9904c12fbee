"""One subscription: from wherever it starts to the completion, each record once, in order, or an explicit error.

Its cursor is all it remembers. It takes messages from the shared tail where that continues from its cursor, and reads
the log where it does not; only such a read can say that history is gone.
"""

from contextlib import AsyncExitStack

from llmbridge.hub.attached import Attached
from llmbridge.hub.fanout import Fanout
from llmbridge.hub.tail import Tail
from llmbridge.log.reading import LogReader, Tip
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.records import Run
from llmbridge.model.wire import Wire
from llmbridge.subscribe.start import Position, Start


class Reader(Attached):
    """Reads one stream. Made and attached by Subscriptions; used by one task."""

    def __init__(self, log: str, fanout: Fanout, log_reader: LogReader, wire: Wire, heartbeat_seconds: float) -> None:
        super().__init__(heartbeat_seconds)
        self._log = log
        self._fanout = fanout
        self._log_reader = log_reader
        self._wire = wire
        self._cursor: Cursor | None = None
        self._tip: Tip | None = None
        self._following = AsyncExitStack()
        self._tail: Tail | None = None

    @property
    def cursor(self) -> str:
        """The cursor of the last record handed out, as the client gets it; empty before the first."""
        return str(self._cursor) if self._cursor is not None and self._cursor.sequence > 0 else ""

    @property
    def lag(self) -> int:
        """How many records come after the cursor, as far as the tail knows."""
        end = None if self._tail is None else self._tail.cursor
        if end is None:
            return 0
        if self._cursor is None:
            return end.sequence
        # Where the incarnations differ the reader is about to be told that its history is gone.
        return max(0, end.sequence - self._cursor.sequence) if end.incarnation == self._cursor.incarnation else 0

    async def attach(self, start: Start) -> None:
        """Take the place to start from. Raises a HistoryGone or RedisUnavailable."""
        tail = await self._follow()
        if isinstance(start, Cursor):
            self._cursor = start
            self._first_message = await self._read_log()
        elif start is Position.EARLIEST:
            self._cursor = await self._log_reader.earliest(self._log)
        elif start is Position.LATEST:
            self._skip_to_end(await self._log_reader.last(self._log))
        elif tail.cursor is not None:
            self._cursor = Cursor(tail.cursor.incarnation, 0, NO_CHECKSUM)

    async def detach(self) -> None:
        """Let go of the tail."""
        await self._following.aclose()
        self._tail = None

    async def _advance(self) -> bytes | None:
        tail = self._tail
        if tail is None or tail.closed:
            tail = await self._follow()
        end = tail.cursor
        message = self._live(tail)
        if message is None and not self._caught_up(tail):
            message = await self._read_log()
        nothing_new = message is None and not self._ended
        # What changed while the log was read would not wake this reader any more.
        if nothing_new and tail.cursor == end and not tail.closed:
            change = tail.wait()
            try:
                await self._wait(change)
            finally:
                tail.leave(change)
        return message

    def _heartbeat(self) -> bytes:
        return self._wire.heartbeat(self.cursor)

    def _live(self, tail: Tail) -> bytes | None:
        if self._cursor is None:
            if tail.cursor is None:
                return None
            self._cursor = Cursor(tail.cursor.incarnation, 0, NO_CHECKSUM)
        found = tail.message_after(self._cursor)
        if found is None:
            return None
        message, self._cursor, self._ended = found
        return message

    def _caught_up(self, tail: Tail) -> bool:
        if self._cursor is None:
            return True
        # A tail that is behind the reader, or absent, either lags or follows a log that lost records: the log will say.
        if self._cursor != tail.cursor:
            return False
        self._ended = tail.sealed
        return True

    async def _read_log(self) -> bytes | None:
        assert self._cursor is not None
        page = await self._log_reader.after(self._log, self._cursor, self._tip)
        self._tip = page.tip
        run = page.run
        if run is None:
            self._ended = page.tip.sealed and page.tip.cursor == self._cursor
            return None
        fragments = run.fragments
        if page.skip:
            fragments = (self._wire.skip(fragments[0], page.skip), *fragments[1:])
        self._cursor = Cursor.after(run)
        self._ended = run.sealed
        return self._wire.message(fragments, run.first + page.skip, str(self._cursor), run.appended_ms)

    def _skip_to_end(self, last: Run | None) -> None:
        if last is not None:
            self._cursor = Cursor.after(last)
        if last is None or not last.sealed:
            # So that a reader cut off before its first record goes on from here, and not from a later "latest".
            self._first_message = self._wire.heartbeat(self.cursor)
        else:
            completion = self._wire.skip(last.fragments[0], last.last - last.first)
            self._first_message = self._wire.message((completion,), last.last, str(self._cursor), last.appended_ms)
            self._ended = True

    async def _follow(self) -> Tail:
        await self._following.aclose()
        self._tail = None
        self._tail = await self._following.enter_async_context(self._fanout.follow(self._log))
        return self._tail
