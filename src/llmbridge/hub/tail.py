"""One stream's recent records in this process, shared by all its live readers.

A cache: it may be dropped at any moment without losing a token, since readers fall back to the log. It does no I/O.

A reader of a tail is *caught up* (waits for the next records), *live* (its next records are in the window) or *catching
up* (they are only in the log).
"""

import asyncio
from collections import deque

from llmbridge.log.reading import Tip
from llmbridge.log.wakeups import Subscription, WakeUp
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.records import Run
from llmbridge.model.wire import Wire

WINDOW_ENTRIES = 256
WINDOW_BYTES = 262_144
"""A reader that falls further behind reads the log, in larger batches, at its own pace."""

MESSAGE_BYTES = 65_536
"""A live reader that is some entries behind gets them joined, up to this size."""


class Chunk:
    """A run in the window: its cursor, the checksum of the entry before it, its message once a reader asked for it."""

    __slots__ = ("cursor", "message", "previous_checksum", "run", "size")

    def __init__(self, run: Run, cursor: Cursor, previous_checksum: str) -> None:
        self.run = run
        self.cursor = cursor
        self.previous_checksum = previous_checksum
        self.size = sum(map(len, run.fragments))
        self.message: bytes | None = None


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
        self.readers = 0
        self.ready = asyncio.Event()
        self.closed = False
        self.failure: Exception | None = None
        self.subscription: Subscription | None = None
        self.poll_delay_seconds = 0.0
        self.poll_at = 0.0
        self._wire = wire
        self._window: deque[Chunk] = deque()
        self._by_first: dict[int, Chunk] = {}
        self._window_bytes = 0
        self._waiting: dict[asyncio.Future[None], None] = {}

    def accept(self, wake_up: WakeUp) -> bool:
        """Take a wake-up's records if they continue exactly where the tail stands; False means: read the log."""
        run, cursor = wake_up.run, self.cursor
        if run is None:
            return False
        if cursor is None:
            if not self.ready.is_set() or wake_up.previous_checksum is not None:
                return False
        elif (
            run.incarnation != cursor.incarnation
            or run.first != cursor.sequence + 1
            or wake_up.previous_checksum != cursor.checksum
        ):
            return False
        self.extend(run)
        return True

    def extend(self, run: Run) -> None:
        """Add the records that come after the cursor, and tell the readers."""
        previous_checksum = NO_CHECKSUM if self.cursor is None else self.cursor.checksum
        self.cursor = Cursor.after(run)
        self.sealed = run.sealed
        self.largest = max(self.largest, *map(len, run.fragments))
        self.most = max(self.most, run.last - run.first + 2 - len(run.fragments))
        if run.last >= run.first:
            chunk = Chunk(run, self.cursor, previous_checksum)
            self._window.append(chunk)
            self._by_first[run.first] = chunk
            self._window_bytes += chunk.size
            while len(self._window) > WINDOW_ENTRIES or (self._window_bytes > WINDOW_BYTES and len(self._window) > 1):
                oldest = self._window.popleft()
                del self._by_first[oldest.run.first]
                self._window_bytes -= oldest.size
        self.tell_readers()

    def jump(self, tip: Tip) -> None:
        """Stand at the log's end without the records before it; readers get those from the log."""
        self._window.clear()
        self._by_first.clear()
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

    def message_after(self, cursor: Cursor) -> tuple[bytes, Cursor, bool] | None:
        """Give a live reader its next message, its new cursor, and whether that is the end; None if it is not live.

        A reader whose last entry is not the one that the window continues from (the log lost its tail and regrew while
        the reader was held up) is not live: the log will tell it.
        """
        chunk = self._by_first.get(cursor.sequence + 1)
        if chunk is None or chunk.run.incarnation != cursor.incarnation or chunk.previous_checksum != cursor.checksum:
            return None
        chunks = self._joinable(chunk)
        last = chunks[-1]
        if last is not chunk:
            return self._encode(chunks), last.cursor, last.run.sealed
        if chunk.message is None:
            chunk.message = self._encode(chunks)
        return chunk.message, chunk.cursor, chunk.run.sealed

    def _joinable(self, chunk: Chunk) -> list[Chunk]:
        chunks, size = [chunk], chunk.size
        while (following := self._by_first.get(chunks[-1].run.last + 1)) is not None:
            size += following.size
            if size > MESSAGE_BYTES:
                break
            chunks.append(following)
        return chunks

    def _encode(self, chunks: list[Chunk]) -> bytes:
        fragments = [fragment for chunk in chunks for fragment in chunk.run.fragments]
        last = chunks[-1]
        return self._wire.message(fragments, chunks[0].run.first, str(last.cursor), last.run.appended_ms)

    def wait(self) -> asyncio.Future[None]:
        """Give a future that is done when something changed. Whoever takes one must `leave` in the end."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        return future

    def leave(self, future: asyncio.Future[None]) -> None:
        """Wait no longer. Readers that come and go on an idle stream, or beat, must not pile up here."""
        self._waiting.pop(future, None)

    def tell_readers(self) -> None:
        """Wake all readers that wait."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)
