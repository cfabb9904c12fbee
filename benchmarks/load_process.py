"""The benchmark's side of a load process: starts it, hands it rounds, collects results. Knows no round's meaning."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.rounds import Round, RoundResult, round_to_json
from benchmarks.servers import Speech

RESULT_LIMIT = 256 * 1024 * 1024
PREPARE_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 10.0
GRACE_S = 10.0
"""A round's own deadline comes first; this only bounds a load process that hangs."""


class LoadError(Exception):
    """A load failed: a wrong token, a refused call, a missed deadline."""


class LoadProcess:
    """A running load process. One round at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._input = process.stdin
        self._output = process.stdout
        self._deadline_s = 0.0
        self.pid = process.pid

    async def prepare(self, spec: Round) -> None:
        """Hands over a round and waits until the process is ready for it. Raises LoadError."""
        self._deadline_s = spec.deadline_s
        await self.send(json.dumps(round_to_json(spec)))
        await self._answer("ready", PREPARE_TIMEOUT_S)

    async def start(self) -> None:
        """Starts the prepared round."""
        await self.send("go")

    async def result(self) -> RoundResult:
        """Waits for the round's end. Raises LoadError."""
        fields = await self._answer("result", self._deadline_s + GRACE_S)
        fields["latencies_us"] = tuple(fields["latencies_us"])
        return RoundResult(**fields)

    async def run(self, spec: Round) -> RoundResult:
        """Prepares, starts and ends a round. Raises LoadError."""
        await self.prepare(spec)
        await self.start()
        return await self.result()

    async def stop(self) -> None:
        """Ends the process."""
        self._input.close()
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def send(self, line: str) -> None:
        """Writes a line to it. Raises LoadError if it has died."""
        self._input.write(f"{line}\n".encode())
        try:
            await self._input.drain()
        except ConnectionError as error:
            raise LoadError("a load process has died") from error

    async def _answer(self, key: str, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._output.readline()
        except TimeoutError as error:
            raise LoadError(f"a load process did not say {key!r} within {timeout_s:.0f} s") from error
        if not line:
            raise LoadError(f"a load process died before it said {key!r}")
        message = json.loads(line)
        if key not in message:
            raise LoadError(str(message.get("error", message)))
        return message[key]


@asynccontextmanager
async def load_process(speech: Speech, target: str, channels: int = 1) -> AsyncIterator[LoadProcess]:
    """Runs a load process connected to a service, over so many connections where they are shared."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.loadgen",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        limit=RESULT_LIMIT,
    )
    load = LoadProcess(process)
    try:
        await load.send(json.dumps({"speech": speech, "target": target, "channels": channels}))
        yield load
    finally:
        await load.stop()
