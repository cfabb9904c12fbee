"""What the topologies whose Redis has replicas share: bridges that find the primaries themselves, and what may be lost.

A subclass says how its servers are started, and which faults they offer.
"""

import asyncio
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Generic, TypeVar

from redis.exceptions import RedisError

from tests.chaos.instances import resident
from tests.chaos.service import Service, missing
from tests.chaos.standalone import BRIDGES, SETTINGS
from tests.chaos.topology import Fault
from tests.support.redis_process import RedisProcess

# Sentinels turn a primary that was frozen into a replica only some ten seconds after it is back, and where every
# replica must have a write, producers wait that long: they must not be taken for lost meanwhile.
REPLICATED_SETTINGS: Mapping[str, str] = {
    "LLMBRIDGE_PRODUCER_LOST_MS": "90000",
    "LLMBRIDGE_REPLICA_ACK_TIMEOUT_MS": "500",
}
_PATIENCE_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 0.05

Servers = TypeVar("Servers")


class Replicated(ABC, Generic[Servers]):
    """A topology on Redis servers some of which are replicas; `running` starts them and yields what holds them.

    `replica_acks`: how many replicas have what is acknowledged. With 0, what was acknowledged may be lost whenever a
    replica is promoted, and `losses` says so; otherwise nothing may be. `directory` gets the logs.
    """

    name: str

    def __init__(
        self, directory: Path, replica_acks: int, running: Callable[[], AbstractContextManager[Servers]]
    ) -> None:
        self.directory = directory
        self.losses = 0
        self.replica_acks = replica_acks
        self._running = running
        self._stack = ExitStack()
        self._servers: Servers | None = None
        self._service: Service | None = None

    @property
    def servers(self) -> Servers:
        assert self._servers is not None, "not started"
        return self._servers

    @property
    def service(self) -> Service:
        assert self._service is not None, "not started"
        return self._service

    @property
    def addresses(self) -> Sequence[str]:
        return self.service.addresses

    @property
    def http_urls(self) -> Sequence[str]:
        return self.service.http_urls

    @property
    @abstractmethod
    def url(self) -> str:
        """How bridges find the primaries."""

    @property
    @abstractmethod
    def processes(self) -> Mapping[str, RedisProcess]:
        """Everything that runs besides the bridges, by a name for its log."""

    @abstractmethod
    def server_faults(self) -> Sequence[Fault]:
        """What can be done to the servers."""

    def faults(self) -> Sequence[Fault]:
        return [*self.service.faults(), *self.server_faults()]

    def missing(self) -> Mapping[str, str]:
        return missing()

    def problems(self) -> Sequence[str]:
        ended = [f"{name} has ended by itself" for name, server in self.processes.items() if not server.alive]
        return [*self.service.problems(), *ended]

    def memory(self) -> dict[str, int]:
        pids = [server.process.pid for server in self.processes.values() if server.process is not None]
        return {**self.service.memory(), "redis": sum(map(resident, pids))}

    async def start(self) -> None:
        self._servers = await asyncio.to_thread(self._stack.enter_context, self._running())
        environment = {
            **SETTINGS,
            **REPLICATED_SETTINGS,
            "REDIS_URL": self.url,
            "LLMBRIDGE_REPLICA_ACKS": str(self.replica_acks),
        }
        self._service = Service([environment] * BRIDGES, self.directory)
        await self._service.start()

    async def stop(self) -> None:
        if self._service is not None:
            await self._service.stop()
        if self._servers is not None:
            for name, server in self.processes.items():
                if server.alive:
                    # When asked to end, one that is frozen does not hear, and a primary waits for replicas that lag.
                    await asyncio.to_thread(server.kill)
                shutil.copy(server.directory / "redis.log", self.directory / f"{name}.log")
        await asyncio.to_thread(self._stack.close)

    @asynccontextmanager
    async def promoting(self) -> AsyncIterator[None]:
        """Within this a replica may be promoted: streams that live at its beginning, or begin in it, may lose data."""
        self._note_loss()
        try:
            yield
        finally:
            self._note_loss()

    def _note_loss(self) -> None:
        if not self.replica_acks:
            self.losses += 1


async def eventually(what: str, condition: Callable[[], object], seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until it holds; a server that can't be asked says no. Raises AssertionError, which names it."""

    def holds() -> bool:
        try:
            return bool(condition())
        except RedisError:
            return False

    try:
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(holds):
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:.0f} s: {what}") from None
