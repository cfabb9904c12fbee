"""Starts a child process, hears what it says and ends it.

For the demo's own processes, a bridge and a model server: both run on a leash (see leash.py) and say in a line of
output where they listen. Knows nothing else of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NoReturn

__all__ = ["Child", "ChildError", "running_child"]

# Enough to see why a process failed, and more than any of them prints before it says that it is ready.
_LINES_KEPT = 200
_PIECE_BYTES = 65536
# A child that was asked to end may take so long (a bridge drains); then it is killed.
_STOP_SECONDS = 10.0
# After the child's end its output is read to the end; but a process that it started itself may hold it open.
_OUTPUT_SECONDS = 1.0


class ChildError(Exception):
    """A child process ended by itself or did not get ready. The message is one line for people."""


class Child:
    """A process that runs. `lines` are the last it has printed, on either output, oldest first."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._process = process
        self._heard = asyncio.Condition()
        self._silent = False

    @property
    def pid(self) -> int:
        """The process id, also after its end."""
        return self._process.pid

    async def says(self, pattern: re.Pattern[str], timeout_seconds: float) -> re.Match[str]:
        """Waits for a line that has `pattern`, among those already printed too.

        Raises ChildError when the process ends first or does not say it in time.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._says(pattern)
        except TimeoutError:
            raise ChildError(f"{self.name} was not ready after {timeout_seconds:.0f} s{self._last_words()}") from None

    async def _says(self, pattern: re.Pattern[str]) -> re.Match[str]:
        async with self._heard:
            while True:
                for line in self.lines:
                    if found := pattern.search(line):
                        return found
                if self._silent:
                    await self.ended()
                await self._heard.wait()

    async def ended(self) -> NoReturn:
        """Waits for the process's end, which nobody asked for, and raises ChildError."""
        code = await self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise ChildError(f"{self.name} {how}{self._last_words()}")

    def _last_words(self) -> str:
        return f"; its last line: {self.lines[-1]}" if self.lines else "; it printed nothing"

    async def _listen(self) -> None:
        output = self._process.stdout
        if output is None:
            raise ValueError("the child's output is not a pipe")
        rest = b""
        # Not readline: it raises when a line is long, and what a child prints is not in our hands.
        while piece := await output.read(_PIECE_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[-_PIECE_BYTES:]
            async with self._heard:
                self.lines.extend(text for line in lines if (text := line.decode(errors="replace").rstrip()))
                self._heard.notify_all()
        async with self._heard:
            if rest.strip():
                self.lines.append(rest.decode(errors="replace").rstrip())
            self._silent = True
            self._heard.notify_all()

    async def _stop(self) -> None:
        if self._process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # Not the process object's own methods: they look first whether it has ended, and when it just has they take its
        # exit code away from the event loop, which then reports a wrong one.
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)


@asynccontextmanager
async def running_child(
    name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """Runs `command` until the block is left; then asks it to end and, when it does not, kills it.

    `name` is what messages call it. `environment` replaces this process's own. The child is in a session of its own, so
    that a Ctrl-C in the terminal reaches it only through its parent.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(os.environ if environment is None else environment),
        start_new_session=True,
    )
    child = Child(name, process)
    listener = asyncio.create_task(child._listen(), name=f"output of {name}")
    try:
        yield child
    finally:
        try:
            await child._stop()
        finally:
            with suppress(TimeoutError):
                await asyncio.wait_for(listener, _OUTPUT_SECONDS)
