"""Starts a server process, waits until it is ready, and ends it with its children. Knows nothing of what it serves."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.05
# Settings of the person's own deployment must not change what is measured.
_FOREIGN_SETTINGS = ("REDIS_", "LLMBRIDGE_", "OTEL_", "MAX_CONSUMERS_", "CONSUMER_", "CONNECTION_", "GRPC_")

Condition = Callable[[], Awaitable[bool]]


class ServerError(Exception):
    """A server process could not be started."""


class Server:
    """A server process, with its output in a file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log
        self.pid = process.pid

    async def wait_until(self, condition: Condition) -> None:
        """Waits for a sign of readiness. Raises ServerError, with the end of the output, if it does not come."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while self._process.returncode is None:
                    if await condition():
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            pass
        except psutil.NoSuchProcess:
            await self._process.wait()
        output = self._log.read_text(errors="replace").strip()[-2000:]
        raise ServerError(f"{self._name} did not start (exit code {self._process.returncode}): {output}")

    async def stop(self) -> None:
        """Asks it to end, and ends it if it does not."""
        if self._process.returncode is not None:
            return
        children = psutil.Process(self.pid).children(recursive=True)
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        for child in children:
            if child.is_running():
                child.kill()


@asynccontextmanager
async def running_process(
    name: str, command: Sequence[str], directory: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """Runs a command with these environment variables, and a log in the directory, while the context lasts."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN_SETTINGS)}
    log = directory / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            cwd=ROOT,
            env=environment | dict(settings or {}),
        )
    server = Server(name, process, log)
    try:
        yield server
    finally:
        await server.stop()
