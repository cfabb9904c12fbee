"""One stream's recent records in this process, shared by all its live readers.

A cache: it may be dropped at any moment without losing a token, since readers fall back to the log. It does no I/O.

A reader of a tail is *caught up* (waits for the next records), *live* (its next records are in the window) or *catching
up* (they are only in the log).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from llmbridge.log.reading import Tip
from llmbridge.log.wakeup import WakeUp
from llmbridge.log.wakeups import Subscription
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.records import Run
from llmbridge.model.wire import Wire

WINDOW_ENTRIES = 256
WINDOW_BYTES = 262_144
"""A reader that falls further behind reads the log, in larger batches, at its own pace."""

MESSAGE_BYTES = 65_536
"""A live reader that is some entries behind gets them joined, up to this size."""


Listener = Callable[[], None]
"""Told that something changed. It may not come or go from within."""


class Found:
    """What comes next for a reader: a message, where it stands then, and whether that is the stream's end.

    The place is None where the reader has not begun. Shared by readers: nobody changes it.
    """

    __slots__ = ("cursor", "ended", "message")

    def __init__(self, message: bytes, cursor: Cursor | None, ended: bool) -> None:
        self.message = message
        self.cursor = cursor
        self.ended = ended


class Chunk(Found):
    """A run in the window, as what comes next for those who stand `before` it. Encoded once a reader asked for it.

    One object for all of it: thousands of windows are more than the garbage collector should look through.
    """

    __slots__ = ("appended_ms", "before", "fragments", "size")

    cursor: Cursor

    def __init__(
        self, before: Cursor, cursor: Cursor, sealed: bool, appended_ms: int, fragments: tuple[bytes, ...], size: int
    ) -> None:
        self.message = b""
        self.cursor = cursor
        self.ended = sealed
        self.before = before
        self.appended_ms = appended_ms
        self.fragments = fragments
        self.size = size


class Tail:
    """What this process knows of the end of one stream. `cursor` is None while the stream is absent.

    `largest` and `most` bound the bytes and the records of each entry up to the cursor.
    """

    def __init__(self, log: str, wire: Wire) -> None:
        self.log = log
        self.cursor: Cursor | None = None
        self.largest = 0
        self.most = 0
        self.sealed = False
        self.listeners: dict[Listener, None] = {}
        self.ready = asyncio.Event()
        self.closed = False
        self.failure: Exception | None = None
        self.subscription: Subscription | None = None
        self.heard = False
        """Something came by itself since the safety poll last looked here."""
        self.polled = False
        """The safety poll has asked for the next look."""
        self.poll_delay_seconds = 0.0
        self.poll_at = 0.0
        self.newest: Chunk | None = None
        """What comes next for those who had everything before the last change."""
        self._wire = wire
        self._window: deque[Chunk] = deque()
        self._window_bytes = 0

    def accept(self, wake_up: WakeUp) -> bool:
        """Take a wake-up's records if they continue exactly where the tail stands; False means: read the log."""
        incarnation, first, last, checksum, previous_checksum, appended_ms, sealed, fragment = wake_up
        before = self.cursor
        if before is None:
            if not self.ready.is_set() or previous_checksum is not None:
                return False
            before = Cursor(incarnation, first - 1, NO_CHECKSUM)
        elif first != before.sequence + 1 or previous_checksum != before.checksum or incarnation != before.incarnation:
            return False
        size = len(fragment)
        # Not by the class's own constructor: that takes twice as long, and there is one for each token.
        cursor = tuple.__new__(Cursor, (incarnation, last, checksum))
        self._add(before, cursor, sealed, appended_ms, (fragment,), size, size)
        return True

    def extend(self, run: Run) -> None:
        """Add the records that come after the cursor, and tell the readers."""
        before = self.cursor
        if before is None:
            before = Cursor(run.incarnation, run.first - 1, NO_CHECKSUM)
        sizes = [len(fragment) for fragment in run.fragments]
        self._add(before, Cursor.after(run), run.sealed, run.appended_ms, run.fragments, sum(sizes), max(sizes))

    def _add(
        self,
        before: Cursor,
        cursor: Cursor,
        sealed: bool,
        appended_ms: int,
        fragments: tuple[bytes, ...],
        size: int,
        largest: int,
    ) -> None:
        """Move on to the cursor, by entries of which the largest has so many bytes."""
        records = cursor.sequence - before.sequence
        most = records + 1 - len(fragments)
        if most > self.most:
            self.most = most
        if largest > self.largest:
            self.largest = largest
        self.cursor = cursor
        self.sealed = sealed
        if records:
            chunk = self.newest = Chunk(before, cursor, sealed, appended_ms, fragments, size)
            window = self._window
            window.append(chunk)
            self._window_bytes += size
            while len(window) > WINDOW_ENTRIES or (self._window_bytes > WINDOW_BYTES and len(window) > 1):
                self._window_bytes -= window.popleft().size
        for listener in self.listeners:
            listener()

    def jump(self, tip: Tip) -> None:
        """Stand at the log's end without the records before it; readers get those from the log."""
        self.newest = None
        self._window.clear()
        self._window_bytes = 0
        self.cursor = tip.cursor
        self.largest = tip.largest
        self.most = tip.most
        self.sealed = tip.sealed
        self.tell_readers()

    def close(self, failure: Exception | None = None) -> None:
        """Be of no more use: the stream is not what it was, or can't be read because of `failure`.

        Readers find out from the log what that means for them.
        """
        self.closed = True
        self.failure = failure
        self.ready.set()
        self.tell_readers()

    def message_after(self, cursor: Cursor) -> Found | None:
        """Give a live reader what comes next for it; None if it is not live.

        A reader whose last entry is not the one that the window continues from (the log lost its tail and regrew while
        the reader was held up) is not live: the log will tell it.
        """
        chunk = self.newest
        if chunk is None:
            return None
        if chunk.cursor is cursor:
            return None
        if chunk.before is not cursor and chunk.before != cursor:
            chunks = self._chunks_after(cursor)
            if len(chunks) != 1:
                return self._joined(chunks) if chunks else None
            [chunk] = chunks
        if not chunk.message:
            chunk.message = self._wire.message(
                chunk.fragments, chunk.before.sequence + 1, str(chunk.cursor), chunk.appended_ms
            )
        return chunk

    def _chunks_after(self, cursor: Cursor) -> list[Chunk]:
        """Give what comes next for one that is some entries behind, as much as goes into a message; nothing if it is
        not live.
        """
        behind: list[Chunk] = []
        # From the newest on: most are but a few entries behind.
        for chunk in reversed(self._window):
            behind.append(chunk)
            if chunk.before.sequence <= cursor.sequence:
                break
        behind.reverse()
        if not behind or behind[0].before != cursor:
            return []
        size = 0
        for place, chunk in enumerate(behind):
            size += chunk.size
            if size > MESSAGE_BYTES and place:
                return behind[:place]
        return behind

    def _joined(self, chunks: Sequence[Chunk]) -> Found:
        fragments = [fragment for chunk in chunks for fragment in chunk.fragments]
        last = chunks[-1]
        message = self._wire.message(fragments, chunks[0].before.sequence + 1, str(last.cursor), last.appended_ms)
        return Found(message, last.cursor, last.ended)

    def tell_readers(self) -> None:
        """Tell all who listen."""
        for listener in self.listeners:
            listener()
