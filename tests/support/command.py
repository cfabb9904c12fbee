"""`llmbridge …` as a process of its own, as a script would run it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

SECONDS = 30.0
"""Within this every command of a test ends, also on a busy machine."""

LLMBRIDGE = (sys.executable, "-m", "llmbridge.cli.app")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """Tab-separated output."""
        return [line.split("\t") for line in self.out.splitlines()]

    @property
    def objects(self) -> list[Any]:
        """JSON output, an object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Running:
    """A command that runs; what it has printed so far is in `out` and `err`."""

    process: asyncio.subprocess.Process
    out: bytes = b""
    err: bytes = b""
    _open: int = 2
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def feed(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        await self.process.stdin.drain()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def prints(self, text: str) -> None:
        """Wait until it has printed this on standard output."""
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: text.encode() in self.out)

    async def says(self, text: str) -> None:
        """Wait until it has printed this on standard error."""
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: text.encode() in self.err)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def done(self) -> Done:
        """Wait for its end and the rest of its output."""
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: self._open == 0)
            code = await self.process.wait()
        return Done(code, self.out.decode(), self.err.decode())

    async def _follow(self, name: str) -> None:
        stream = getattr(self.process, {"out": "stdout", "err": "stderr"}[name])
        while data := await stream.read(65536):
            async with self._changed:
                setattr(self, name, getattr(self, name) + data)
                self._changed.notify_all()
        async with self._changed:
            self._open -= 1
            self._changed.notify_all()


@asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncIterator[Running]:
    """Run a command; one that is left behind, as when the test fails, is killed."""
    process = await asyncio.create_subprocess_exec(
        *LLMBRIDGE,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment() | environment,
    )
    command = Running(process)
    followers = [asyncio.create_task(command._follow(name)) for name in ("out", "err")]
    try:
        yield command
    finally:
        if process.returncode is None:
            process.kill()
        command.end_input()
        await process.wait()
        await asyncio.gather(*followers)


async def run(*arguments: str, data: bytes = b"", **environment: str) -> Done:
    """Run a command to its end, with `data` as its standard input."""
    async with running(*arguments, **environment) as command:
        if data:
            await command.feed(data)
        command.end_input()
        return await command.done()


def clean_environment() -> dict[str, str]:
    """This process's, without settings of the bridge, the model endpoint or the terminal."""
    foreign = ("LLMBRIDGE_", "REDIS_", "OPENAI_", "OTEL_", "FORCE_COLOR", "NO_COLOR")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
