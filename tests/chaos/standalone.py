"""One Redis with an append-only file, two bridges with gateways, and a proxy on every way between them and to them."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.clock import Clock, compiler
from tests.chaos.instances import resident
from tests.chaos.links import link_faults
from tests.chaos.redis_faults import RedisFaults
from tests.chaos.service import Service, missing
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
    """The topology of most installations. `directory` gets the logs; `settings` are the bridges', over SETTINGS.

    Without `http` there are neither gateways nor readers in browsers.
    """

    name = "standalone"

    def __init__(self, directory: Path, *, http: bool = True, **settings: str) -> None:
        self.directory = directory
        self._http = http
        found = binaries()
        binary = found.get("system") or found["wheel"]
        found_compiler = compiler()
        clock = Clock.make(directory, found_compiler) if found_compiler is not None else None
        if clock is not None:
            binary = clock.wrap(binary)
        self.redis = RedisFaults(RedisProcess(binary, {"appendfsync": "always"}), clock)
        self._redis_proxies = [Proxy(("127.0.0.1", self.redis.server.port)) for _ in range(BRIDGES)]
        self._settings = dict(SETTINGS) | settings
        self._service: Service | None = None

    async def start(self) -> None:
        self.redis.server.start()
        for proxy in self._redis_proxies:
            await proxy.start()
        environments = [
            self._settings | {"REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"} for proxy in self._redis_proxies
        ]
        self._service = Service(environments, self.directory, http=self._http)
        await self._service.start()

    async def stop(self) -> None:
        if self._service is not None:
            await self._service.stop()
        for proxy in self._redis_proxies:
            await proxy.stop()
        log = self.redis.server.directory / "redis.log"
        if log.exists():
            shutil.copy(log, self.directory)
        self.redis.server.close()

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
    def losses(self) -> int:
        return self.redis.losses

    def faults(self) -> Sequence[Fault]:
        return [
            *self.service.faults(),
            *self.redis.faults(),
            *link_faults("bridges and Redis", self._redis_proxies),
        ]

    def missing(self) -> Mapping[str, str]:
        return {**self.redis.missing(), **missing()}

    def problems(self) -> Sequence[str]:
        return self.service.problems()

    def memory(self) -> dict[str, int]:
        return {**self.service.memory(), "redis": resident(self.redis.pid)}
