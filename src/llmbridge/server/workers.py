"""One worker as its supervisor sees it: a process that is started, heard, ended, and started again when it dies.

Knows nothing of what workers serve.
"""

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from llmbridge.server.assignment import Assignment, Said, State
from llmbridge.server.starting import CannotStart

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 30.0
"""A worker that has run for so long starts over with the shortest pause when it dies."""

END_MARGIN_SECONDS = 5.0
"""How much longer than its drain a worker that was asked to end may take before it is killed."""

logger = logging.getLogger(__name__)


class Worker:
    """A worker of an instance. `keep` must be running.

    `changed` is called whenever `is_ready` or `is_serving` may have changed.
    """

    def __init__(self, command: Sequence[str], assignment: Assignment, changed: Callable[[], None]) -> None:
        self.number = assignment.place.worker
        self.is_ready = asyncio.Event()
        """Whether it serves calls, in good health or not."""
        self.is_serving = False
        """Whether its health is SERVING."""
        self._command = command
        self._assignment = assignment
        self._changed = changed
        self._why = ""
        self._ever_ready = False
        self._can_drain = False
        """Whether the process that runs has served. Before, it has nothing to drain and may not know the signal."""
        self._process: asyncio.subprocess.Process | None = None
        self._asked = False
        """Whether the process that runs was asked to end."""
        self._deadline: asyncio.TimerHandle | None = None
        """When it is killed then."""
        self._stop = asyncio.Event()
        self._drain_seconds = assignment.settings.drain_timeout_ms / 1000 + END_MARGIN_SECONDS

    async def keep(self) -> None:
        """Have it run, again and again, until `stop`.

        Raises CannotStart where it can't start the very first time; afterwards that is logged, and tried again.
        """
        clock = asyncio.get_running_loop().time
        failures = 0
        while not self._stop.is_set():
            began = clock()
            how = await self._live()
            if self._stop.is_set():
                return
            if self._asked:
                logger.info("worker %d %s as it was asked to: starting it anew", self.number, how)
                failures = 0
                continue
            if not self._ever_ready:
                raise CannotStart(self._why or f"worker {self.number} {how} at its start; the log may tell why")
            failures = 1 if clock() - began >= STEADY_SECONDS else failures + 1
            pause = pause_seconds(failures)
            logger.error(
                "worker %d %s%s: starting it anew in %.1f s",
                self.number,
                how,
                f" ({self._why})" if self._why else "",
                pause,
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()

    def stop(self) -> None:
        """Have it drain and end for good."""
        self._stop.set()
        self._ask_to_end()

    async def renew(self) -> None:
        """Have it drain, end and start again; returns when the new one serves."""
        self._ask_to_end()
        self.is_ready.clear()
        await self.is_ready.wait()

    async def _live(self) -> str:
        """Run the process to its end, and say how it ended."""
        self._why, self._asked, self._can_drain = "", False, False
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # A Ctrl-C in the terminal is for the supervisor, which passes it on.
                start_new_session=True,
            )
        except OSError as error:
            return f"could not be run ({error})"
        self._process = process
        try:
            if self._stop.is_set():
                self._signal(signal.SIGKILL)
            return _how_it_ended(await self._hear(process))
        finally:
            if process.returncode is None:
                self._signal(signal.SIGKILL)
                await process.wait()
            if self._deadline is not None:
                self._deadline.cancel()
            self._process = self._deadline = None
            self.is_ready.clear()
            self.is_serving = False
            self._changed()

    async def _hear(self, process: asyncio.subprocess.Process) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        # One that has ended already says so by its exit code; to uvloop its pipe is a RuntimeError. It stays open:
        # its end tells the worker of ours.
        with suppress(ConnectionError, RuntimeError):
            process.stdin.write(self._assignment.encode())
            await process.stdin.drain()
        async for line in process.stdout:
            self._take(Said.decode(line))
        return await process.wait()

    def _take(self, said: Said) -> None:
        match said.state:
            case State.READY:
                self._ever_ready = self._can_drain = True
                self.is_ready.set()
            case State.SERVING | State.NOT_SERVING:
                self.is_serving = said.state is State.SERVING
            case None:
                self._why = said.why
        self._changed()

    def _ask_to_end(self) -> None:
        if self._process is None or self._asked:
            return
        self._asked = True
        self._signal(signal.SIGTERM if self._can_drain else signal.SIGKILL)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._drain_seconds, self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Not the process object's own methods: they look first whether it has ended, and when it just has they take its
        # exit code away from the event loop.
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


def pause_seconds(failures: int) -> float:
    """Say how long to wait before a start after so many failures in a row, with jitter: many must not come in step."""
    longest: float = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 20))
    return longest * random.uniform(0.5, 1.0)


def _how_it_ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
