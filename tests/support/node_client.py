"""Programs of tests/clients/node, which run npm's packages. Tests that need them are skipped where node is missing."""

import asyncio
import fcntl
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "clients" / "node"
PATIENCE_SECONDS = 120.0
_INSTALL_SECONDS = 240.0

Line = dict[str, Any]


def installed_packages() -> Path:
    """Installs what the lock file names, once for all test processes; skips the test where that can't be."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    lock, mark = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".installed"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not mark.exists() or mark.read_text() != lock.read_text():
            command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(
                command, cwd=FOLDER, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
            )
            if done.returncode != 0:
                pytest.skip(f"npm ci failed: {done.stderr.strip()[-400:]}")
            mark.write_text(lock.read_text())
    return FOLDER


@dataclass
class NodeProgram:
    """One that runs, and all that it has said."""

    process: asyncio.subprocess.Process
    lines: list[Line] = field(default_factory=list)

    async def next(self) -> Line | None:
        """The next line; None when it has ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            raw = await self.process.stdout.readline()
        if not raw:
            return None
        line: Line = json.loads(raw)
        self.lines.append(line)
        return line

    async def until(self, condition: Callable[[Line], bool]) -> Line:
        """The first line to come that meets the condition."""
        try:
            while (line := await self.next()) is not None:
                if condition(line):
                    return line
        except TimeoutError:
            raise AssertionError(f"it did not come; the last lines were {self.lines[-5:]}") from None
        raise AssertionError(f"the program ended: {await self._complaint()}\n{self.lines[-5:]}")

    async def all(self) -> list[Line]:
        """All that it says to its end."""
        while await self.next() is not None:
            pass
        if not self.lines:
            raise AssertionError(f"the program said nothing: {await self._complaint()}")
        return self.lines

    async def tell(self, **command: Any) -> None:
        """Give it a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        await self.process.stdin.drain()

    async def _complaint(self) -> str:
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            return (await self.process.stderr.read()).decode()


def node(program: str, *arguments: str) -> AbstractAsyncContextManager[NodeProgram]:
    """Runs a program; at the end it is gone."""
    return _running(str(FOLDER / program), *arguments)


def node_script(code: str) -> AbstractAsyncContextManager[NodeProgram]:
    """Runs a module that is in no file, with the packages of the programs; at the end it is gone."""
    return _running("--input-type=module", "--eval", code)


@asynccontextmanager
async def _running(*command: str) -> AsyncIterator[NodeProgram]:
    pipe = subprocess.PIPE
    # A message with a whole answer is one line.
    process = await asyncio.create_subprocess_exec(
        "node", *command, stdin=pipe, stdout=pipe, stderr=pipe, limit=2**24, cwd=FOLDER
    )
    try:
        yield NodeProgram(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
