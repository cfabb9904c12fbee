"""One Redis with an append-only file, two bridges, and a proxy on every way between them and to them."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.bridges import Bridges, link_faults, resident
from tests.chaos.clock import Clock, compiler
from tests.chaos.redis_faults import RedisFaults
from tests.chaos.topology import Fault
from tests.support.proxy import Proxy
from tests.support.redis_process import RedisProcess, binaries

SETTINGS: Mapping[str, str] = {
    "LLMBRIDGE_REDIS_TIMEOUT_MS": "1000",
    "LLMBRIDGE_HEARTBEAT_MS": "5000",
    "LLMBRIDGE_LOG_LEVEL": "WARNING",
    # Streams must go away again in a long run, and stay for longer than any fault.
    "REDIS_STREAM_RETENTION_MS": "120000",
    "LLMBRIDGE_PRODUCER_LOST_MS": "30000",
}
BRIDGES = 2


class Standalone:
    """The topology of most installations. `directory` gets the logs; `settings` are the bridges', over SETTINGS."""

    name = "standalone"

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        found = binaries()
        binary = found.get("system") or found["wheel"]
        found_compiler = compiler()
        clock = Clock.make(directory, found_compiler) if found_compiler is not None else None
        if clock is not None:
            binary = clock.wrap(binary)
        self.redis = RedisFaults(RedisProcess(binary, {"appendfsync": "always"}), clock)
        self._redis_proxies = [Proxy(("127.0.0.1", self.redis.server.port)) for _ in range(BRIDGES)]
        self._settings = dict(SETTINGS) | settings
        self._bridges: Bridges | None = None

    async def start(self) -> None:
        self.redis.server.start()
        for proxy in self._redis_proxies:
            await proxy.start()
        environments = [
            self._settings | {"REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"} for proxy in self._redis_proxies
        ]
        self._bridges = Bridges(environments, self.directory)
        await self._bridges.start()

    async def stop(self) -> None:
        if self._bridges is not None:
            await self._bridges.stop()
        for proxy in self._redis_proxies:
            await proxy.stop()
        log = self.redis.server.directory / "redis.log"
        if log.exists():
            shutil.copy(log, self.directory)
        self.redis.server.close()

    @property
    def bridges(self) -> Bridges:
        assert self._bridges is not None, "not started"
        return self._bridges

    @property
    def addresses(self) -> Sequence[str]:
        return self.bridges.addresses

    @property
    def losses(self) -> int:
        return self.redis.losses

    def faults(self) -> Sequence[Fault]:
        return [
            *self.bridges.faults(),
            *self.redis.faults(),
            *link_faults("bridges and Redis", self._redis_proxies),
        ]

    def missing(self) -> Mapping[str, str]:
        return self.redis.missing()

    def problems(self) -> Sequence[str]:
        return self.bridges.problems()

    def memory(self) -> dict[str, int]:
        return {"bridges": self.bridges.memory(), "redis": resident(self.redis.pid)}
