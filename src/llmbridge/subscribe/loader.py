"""What a call of many subscriptions has to wait for: finding their places, and reading the log where tails don't do.

So many at once that they share round trips, so few that what was read and not taken stays small. Each is a task for as
long as it lasts.
"""

import asyncio
import random
from collections.abc import Coroutine
from functools import partial
from typing import Any, Protocol

from llmbridge.errors import RedisUnavailable
from llmbridge.hub.attached import LONGEST_PAUSE_SECONDS
from llmbridge.model.cursor import Cursor
from llmbridge.subscribe.cohort import Cohort
from llmbridge.subscribe.start import Start
from llmbridge.subscribe.turnstile import Turnstile

ATTACHING_AT_ONCE = 64
"""Each waits for round trips, which these share."""

PAGES_AT_ONCE = 8
"""Pages of the log (of 256 KiB) that a call has read, or is reading, ahead of what its client takes."""


class Loaded(Protocol):
    """Whom to tell. The cohort has members, and is not busy any more."""

    def attached(self, cohort: Cohort) -> None:
        """It stands where it was told to."""

    def looked(self, cohort: Cohort) -> None:
        """The log was asked what comes next; `found` is the answer, if there is one."""

    def failed(self, cohort: Cohort, error: Exception) -> None:
        """It can't go on."""

    def broke(self, defect: Exception) -> None:
        """The call can't go on."""


class Loader:
    """Works for one call."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._loop = asyncio.get_running_loop()
        self._starts: dict[Cohort, Start] = {}
        self._attaching = Turnstile(ATTACHING_AT_ONCE, self._begin_attaching)
        self._reading = Turnstile(PAGES_AT_ONCE, self._begin_reading)
        self._tasks: set[asyncio.Task[bool]] = set()

    def attach(self, cohort: Cohort, start: Start) -> None:
        """Have a cohort find its place."""
        cohort.busy = True
        self._starts[cohort] = start
        self._attaching.enter(cohort)

    def read(self, cohort: Cohort) -> None:
        """Have the log asked what comes next. While Redis is unreachable it is asked again and again."""
        cohort.busy = True
        self._reading.enter(cohort)

    def taken(self, cohort: Cohort) -> None:
        """Note that what was read is not held any more."""
        cohort.from_log = False
        self._reading.leave()

    def forget(self, cohort: Cohort) -> None:
        """Let go of what is kept for a cohort without members."""
        if cohort.from_log:
            self.taken(cohort)
        if cohort.retry is not None:
            cohort.retry.cancel()
            cohort.busy = False

    async def close(self) -> None:
        """Wait for everything to end. No cohort has members any more."""
        # Also those that are begun by others as they end.
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    async def _attach(self, cohort: Cohort, start: Start) -> bool:
        try:
            if cohort.members:
                cohort.found = await cohort.place.attach(start, cohort.changed)
        except Exception as error:
            self._loaded.failed(cohort, error)
        if not cohort.members:
            return False
        if isinstance(start, Cursor):
            # Attached is who is known to continue from there.
            self._reading.enter(cohort)
        else:
            cohort.busy = False
            self._loaded.attached(cohort)
        return False

    async def _read(self, cohort: Cohort) -> bool:
        """Tells whether a page was read, which is held until it is taken."""
        found = None
        try:
            if cohort.members:
                found = await cohort.place.advance()
        except RedisUnavailable:
            if cohort.members:
                pause = random.uniform(0.1, 1) * LONGEST_PAUSE_SECONDS
                cohort.retry = self._loop.call_later(pause, self._read_again, cohort)
            return False
        except Exception as error:
            self._loaded.failed(cohort, error)
        if not cohort.members:
            return False
        cohort.found, cohort.from_log = found, found is not None
        cohort.busy = False
        if not cohort.attached:
            self._loaded.attached(cohort)
        self._loaded.looked(cohort)
        return found is not None

    def _read_again(self, cohort: Cohort) -> None:
        cohort.retry = None
        self._reading.enter(cohort)

    def _begin_attaching(self, cohort: Cohort) -> None:
        self._run(self._attach(cohort, self._starts.pop(cohort)), cohort, self._attaching)

    def _begin_reading(self, cohort: Cohort) -> None:
        self._run(self._read(cohort), cohort, self._reading)

    def _run(self, work: Coroutine[Any, Any, bool], cohort: Cohort, turnstile: Turnstile) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ran, cohort, turnstile))

    def _ran(self, cohort: Cohort, turnstile: Turnstile, task: asyncio.Task[bool]) -> None:
        """Tidy up; here, since a task that is cancelled before it begins does nothing at all."""
        self._tasks.discard(task)
        defect = None if task.cancelled() else task.exception()
        if defect is not None or task.cancelled() or not task.result():
            turnstile.leave()
        if not cohort.members:
            cohort.place.detach()
        if isinstance(defect, Exception):
            self._loaded.broke(defect)
