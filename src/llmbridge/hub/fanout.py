"""Keeps the tails of this process fresh: by wake-ups, by reading where those do not suffice, and by a safety poll."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmbridge.errors import HistoryGone, RedisUnavailable
from llmbridge.hub.tail import Listener, Tail
from llmbridge.log.reading import LogReader
from llmbridge.log.wakeup import WakeUp
from llmbridge.log.wakeups import Channels
from llmbridge.model.wire import Wire

LONGEST_POLL_SECONDS = 5.0
"""How late a token can be when its wake-up was lost and the stream had been idle."""

LONGEST_BUSY_POLL_SECONDS = 1.0
"""The same where something had been heard of the stream just before."""

logger = logging.getLogger(__name__)


class Fanout:
    """Owns the tails. `run` must be running."""

    def __init__(
        self, reader: LogReader, wake_ups: Channels, wire: Wire, poll_delay_ms: int, attach_timeout_ms: int
    ) -> None:
        self._reader = reader
        self._wake_ups = wake_ups
        self._wire = wire
        self._shortest_poll_seconds = poll_delay_ms / 1000
        self._attach_timeout_seconds = attach_timeout_ms / 1000
        self._tails: dict[str, Tail] = {}
        self._stale: dict[Tail, None] = {}
        self._stale_filled = asyncio.Event()
        # Those that are being read, and whether they must be again: something was heard meanwhile.
        self._looking: dict[Tail, bool] = {}

    async def join(self, log: str, listener: Listener) -> Tail:
        """Share a stream's tail, fresh from here on, and be told of its changes, until `leave`.

        It stands where the log stood after this was called or later, never at an earlier stream of the same name, and
        what is appended from then on will show up in it. Raises RedisUnavailable when Redis does not answer within the
        attach timeout, and whatever keeps the log from being read.
        """
        while True:
            tail = self._tails.get(log)
            shared = tail is not None
            if tail is None:
                tail = self._tails[log] = Tail(log, self._wire)
                self._subscribe(tail)
            tail.listeners[listener] = None
            try:
                async with asyncio.timeout(self._attach_timeout_seconds):
                    await tail.ready.wait()
                if shared and not tail.closed:
                    # Its wake-up of a deletion may be late or lost: no new reader may see what is deleted.
                    await self._read(tail)
            except BaseException as error:
                self.leave(tail, listener)
                if isinstance(error, TimeoutError):
                    raise RedisUnavailable("it does not answer") from None
                raise
            if not tail.closed:
                return tail
            self.leave(tail, listener)
            if tail.failure is not None:
                raise tail.failure

    def leave(self, tail: Tail, listener: Listener) -> None:
        """Let go of a tail."""
        del tail.listeners[listener]
        if not tail.listeners:
            self._forget(tail)

    @asynccontextmanager
    async def follow(self, log: str, listener: Listener) -> AsyncIterator[Tail]:
        """Join a stream's tail for as long as the context lasts."""
        tail = await self.join(log, listener)
        try:
            yield tail
        finally:
            self.leave(tail, listener)

    @property
    def tails(self) -> int:
        """How many streams are followed here."""
        return len(self._tails)

    def look(self, tail: Tail) -> None:
        """Have a tail read from the log as soon as possible."""
        if tail in self._looking:
            self._looking[tail] = True
        elif not tail.closed:
            self._stale[tail] = None
            self._stale_filled.set()

    async def run(self) -> None:
        """Refresh and poll until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._refresh_stale(), name="hub, refresh")
            tasks.create_task(self._poll(), name="hub, poll")

    def _subscribe(self, tail: Tail) -> None:
        def listener(message: bytes | None) -> None:
            try:
                wake_up = WakeUp.parse(message) if message else None
            except ValueError:
                # Anybody may publish, a bridge of another version too; the log is what counts.
                wake_up = None
            if wake_up is not None and tail.accept(wake_up):
                tail.heard = True
            else:
                self.look(tail)

        tail.subscription = self._wake_ups.subscribe(tail.log, listener)

    def _forget(self, tail: Tail) -> None:
        if self._tails.get(tail.log) is tail:
            del self._tails[tail.log]
        self._stale.pop(tail, None)
        if tail in self._looking:
            self._looking[tail] = False
        if tail.subscription is not None:
            self._wake_ups.unsubscribe(tail.subscription)

    async def _refresh_stale(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._stale_filled.wait()
                self._stale_filled.clear()
                stale, self._stale = self._stale, {}
                for tail in stale:
                    # None waits for another: that may be at a server that does not answer.
                    self._looking[tail] = False
                    tasks.create_task(self._refresh(tail), name=f"hub, refresh {tail.log}")

    async def _refresh(self, tail: Tail) -> None:
        try:
            await self._read(tail)
        except RedisUnavailable as error:
            # The reader's attach timeout and the safety poll bound how long this can last.
            logger.debug("%s can't be read now: %s", tail.log, error)
        if self._looking.pop(tail):
            self.look(tail)

    async def _read(self, tail: Tail) -> None:
        """Bring a tail to where its log stands, or close it. Raises RedisUnavailable."""
        before = tail.cursor
        try:
            if before is None:
                await self._begin(tail)
            else:
                page = await self._reader.after(tail.log, before, None)
                # Wake-ups may have moved the tail on meanwhile; then the page proves all that this look was for.
                if page.run is not None and tail.cursor == before:
                    if page.run.last == page.tip.cursor.sequence:
                        tail.extend(page.run)
                    else:
                        tail.jump(page.tip)
            # Whichever look comes after the confirmation: one by the safety poll may have come before it.
            if tail.subscription is not None and tail.subscription.confirmed.is_set():
                tail.ready.set()
            if tail.cursor != before:
                tail.heard = True
                if tail.polled:
                    # No wake-up had told of this: others may be lost, too.
                    tail.poll_delay_seconds = self._shortest_poll_seconds
            tail.polled = False
        except HistoryGone:
            self._forget(tail)
            tail.close()
        except RedisUnavailable:
            raise
        except Exception as error:
            # Whatever it is, it concerns this stream alone.
            logger.exception("%s can't be followed", tail.log)
            self._forget(tail)
            tail.close(error)

    async def _begin(self, tail: Tail) -> None:
        tip = await self._reader.tip(tail.log)
        if tip is not None and tail.cursor is None:
            tail.jump(tip)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._shortest_poll_seconds)
            now = loop.time()
            for tail in self._tails.values():
                if tail.heard:
                    # One whose tokens are further apart than the shortest delay must not be read after each of them.
                    tail.heard = False
                    tail.poll_delay_seconds = min(tail.poll_delay_seconds, LONGEST_BUSY_POLL_SECONDS)
                    tail.poll_at = now + tail.poll_delay_seconds
                elif tail.poll_at <= now:
                    tail.polled = True
                    self.look(tail)
                    tail.poll_delay_seconds = min(
                        max(2 * tail.poll_delay_seconds, self._shortest_poll_seconds), LONGEST_POLL_SECONDS
                    )
                    tail.poll_at = now + tail.poll_delay_seconds
