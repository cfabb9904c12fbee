"""What clients and browsers reach: bridges that serve gRPC and HTTP, and gateways to them as processes of their own.

Knows nothing of what the bridges' Redis is: a topology tells each its settings.
"""

import asyncio
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.chaos.instances import Instances
from tests.chaos.links import link_faults
from tests.chaos.topology import Fault
from tests.support.http_process import HttpProcess

GATEWAYS = 2

_GATEWAY_SETTINGS: Mapping[str, str] = {"LLMBRIDGE_LOG_LEVEL": "WARNING"}
_HTTP_PACKAGES = ("httptools", "httpx", "starlette", "uvicorn", "websockets")


def missing() -> Mapping[str, str]:
    """What can't be there on this machine, and why."""
    lacking = [name for name in _HTTP_PACKAGES if find_spec(name) is None]
    return {"gateways and their readers": f"not installed: {', '.join(lacking)}"} if lacking else {}


class Service:
    """As many bridges as there are `environments`, and, where what HTTP needs is installed and wanted, gateways."""

    def __init__(self, environments: Sequence[Mapping[str, str]], directory: Path, *, http: bool = True) -> None:
        self._directory = directory
        self._has_http = http and not missing()
        with_http = ("--http-port", "0") if self._has_http else ()
        self.bridges = Instances(
            "bridge",
            [
                HttpProcess(
                    ("serve", "--port", "0", *with_http),
                    dict(environment),
                    log=directory / f"bridge-{i}.log",
                    http=self._has_http,
                )
                for i, environment in enumerate(environments)
            ],
        )
        self.gateways = Instances("gateway", [])

    async def start(self) -> None:
        await self.bridges.listen()
        if self._has_http:
            self.gateways = Instances("gateway", [self._gateway(i) for i in range(GATEWAYS)])
            await self.gateways.listen()
        async with asyncio.TaskGroup() as group:
            for instances in (self.bridges, self.gateways):
                group.create_task(instances.start())

    async def stop(self) -> None:
        await self.gateways.stop()
        await self.bridges.stop()

    def _gateway(self, i: int) -> HttpProcess:
        target = self.addresses[i % len(self.addresses)]
        arguments = ("gateway", "--http-port", "0", "--target", target)
        return HttpProcess(arguments, dict(_GATEWAY_SETTINGS), log=self._directory / f"gateway-{i}.log")

    @property
    def addresses(self) -> Sequence[str]:
        ports = [proxy.port for proxy in self.bridges.grpc]
        return [",".join(f"127.0.0.1:{port}" for port in ports[i:] + ports[:i]) for i in range(len(ports))]

    @property
    def http_urls(self) -> Sequence[str]:
        return [proxy.url for proxy in (*self.bridges.http, *self.gateways.http)] if self._has_http else []

    def faults(self) -> list[Fault]:
        kinds = [
            *self.bridges.faults(),
            *self.gateways.faults(),
            *link_faults("clients and bridges", self.bridges.grpc),
        ]
        if self._has_http:
            kinds += link_faults("browsers and gateways", [*self.bridges.http, *self.gateways.http])
        return kinds

    def problems(self) -> list[str]:
        return [*self.bridges.problems(), *self.gateways.problems()]

    def memory(self) -> dict[str, int]:
        return {"bridges": self.bridges.memory(), "gateways": self.gateways.memory()}
