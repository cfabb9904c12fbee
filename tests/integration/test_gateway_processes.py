"""HTTP as real processes: beside the bridge and in front of it; how they start, drain and refuse to start."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.http_process import HttpProcess
from tests.support.redis_process import RedisProcess, free_port
from tests.support.running_bridge import RunningBridge

PATIENCE = 20.0
STREAM = "/v1/sessions/s/models/m/responses/r"

Start = Callable[..., HttpProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes and sees that none is left."""
    started: list[HttpProcess] = []

    def start(*arguments: str, **environment: str) -> HttpProcess:
        process = HttpProcess(arguments, environment)
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.close()


@pytest.fixture(params=["beside", "in front"])
async def served(
    request: pytest.FixtureRequest, start: Start, bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> HttpProcess:
    """HTTP in the bridge's process, and in a process of its own."""
    if request.param == "in front":
        return await asyncio.to_thread(start, "gateway", "--target", bridge.address, "--http-port", "0")
    return await asyncio.to_thread(
        start,
        "serve",
        "--port",
        "0",
        "--http-port",
        "0",
        REDIS_URL=shared_redis.url,
        LLMBRIDGE_KEY_PREFIX=key_prefix,
    )


@pytest.fixture
async def http(served: HttpProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE, trust_env=False) as client:
        yield client


async def exit_code(process: HttpProcess) -> int:
    return await asyncio.to_thread(process.process.wait, PATIENCE)


async def test_what_is_produced_over_http_is_there(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    answer = await http.post(f"{STREAM}:produce", json={"tokens": [{"text": "hi"}], "firstSequence": 1})
    assert answer.status_code == 200
    info = (await http.get(STREAM)).json()["info"]
    assert (info["lastSequence"], info["cursor"]) == ("1", answer.json()["cursor"])


async def test_it_stops_when_told_though_pages_read_and_connections_idle(
    served: HttpProcess, http: httpx.AsyncClient
) -> None:
    await http.post(f"{STREAM}:produce", json={"tokens": [{"text": "hi"}]})
    async with http.stream("GET", f"{STREAM}/events") as events:
        assert events.status_code == 200
        lines = events.aiter_lines()
        while '"hi"' not in (line := await anext(lines)):
            assert "error" not in line
        served.process.send_signal(signal.SIGTERM)
        # The body ends, cleanly and soon: the browser then comes back by itself.
        rest = [line async for line in lines]
        assert not any(line.startswith("event: error") for line in rest)
    assert await exit_code(served) == 0
    with pytest.raises(httpx.ConnectError):
        await http.get(STREAM)


async def test_a_request_under_way_is_finished(start: Start, own_redis: RedisProcess, key_prefix: str) -> None:
    served = await asyncio.to_thread(
        start,
        "serve",
        "--port",
        "0",
        "--http-port",
        "0",
        REDIS_URL=own_redis.url,
        LLMBRIDGE_KEY_PREFIX=key_prefix,
        LLMBRIDGE_REDIS_TIMEOUT_MS="8000",
    )
    assert own_redis.process is not None
    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE, trust_env=False) as http:
        assert (await http.post(f"{STREAM}:produce", json={"tokens": [{"text": "a"}]})).status_code == 200
        own_redis.process.send_signal(signal.SIGSTOP)
        try:
            under_way = asyncio.create_task(http.post(f"{STREAM}:produce", json={"tokens": [{"text": "b"}]}))
            # By the time that another request is answered, the one sent before it waits for Redis.
            async with httpx.AsyncClient(base_url=served.url, trust_env=False) as other:
                assert (await other.get("/openapi.json")).status_code == 200
            served.process.send_signal(signal.SIGTERM)
            refused = False
            async with asyncio.timeout(PATIENCE):
                while not refused:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
                        writer.close()
                        await asyncio.sleep(0.02)
                    except ConnectionRefusedError:
                        refused = True
        finally:
            own_redis.process.send_signal(signal.SIGCONT)
        answer = await under_way
        assert (answer.status_code, answer.json()["lastSequence"]) == (200, "2")
    assert await exit_code(served) == 0


async def test_a_gateway_without_its_bridge_says_so_and_recovers_by_itself(
    start: Start, shared_redis: RedisProcess, key_prefix: str
) -> None:
    port = free_port()
    served = await asyncio.to_thread(start, "gateway", "--target", f"127.0.0.1:{port}", "--http-port", "0")
    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE, trust_env=False) as http:
        answer = await http.get(STREAM)
        assert (answer.status_code, answer.json()["code"]) == (503, 14)
        health = await http.get("/streams/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        assert health.json()["summary"] == {"total": 3, "healthy": 1, "degraded": 0, "unhealthy": 2}
        bridge = HttpProcess(
            ("serve", "--port", str(port), "--http-port", "0"),
            {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix},
        )
        await asyncio.to_thread(bridge.start)
        try:
            async with asyncio.timeout(PATIENCE):
                while (await http.get(STREAM)).status_code != 404:
                    await asyncio.sleep(0.05)
        finally:
            bridge.close()


def _refused(*arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "llmbridge.cli.app", *arguments],
        env={"PATH": "", **environment, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


async def test_what_a_killed_one_leaves_the_next_removes(
    start: Start, shared_redis: RedisProcess, key_prefix: str
) -> None:
    # A short one: the path of a socket is limited, and for long ones it is made in /tmp.
    with tempfile.TemporaryDirectory() as directory:
        told = {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix, "TMPDIR": directory}
        arguments = ("serve", "--port", "0", "--http-port", "0")
        killed = await asyncio.to_thread(start, *arguments, **told)
        runs = await asyncio.to_thread(start, *arguments, **told)
        both = set(Path(directory).iterdir())
        assert len(both) == 2
        killed.process.send_signal(signal.SIGKILL)
        assert await exit_code(killed) == -signal.SIGKILL
        assert set(Path(directory).iterdir()) == both
        after = await asyncio.to_thread(start, *arguments, **told)
        left = both & set(Path(directory).iterdir())
        # That of the one that runs stayed, and serves.
        assert (len(left), len(list(Path(directory).iterdir()))) == (1, 2)
        async with httpx.AsyncClient(base_url=runs.url, timeout=PATIENCE, trust_env=False) as http:
            assert (await http.get("/streams/health")).status_code == 200
        assert await asyncio.to_thread(runs.terminate) == 0
        assert await asyncio.to_thread(after.terminate) == 0
        assert list(Path(directory).iterdir()) == []


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, said = _refused("gateway", "--http-port", port)
    assert (code, "LLMBRIDGE_HTTP_PORT" in said, port in said) == (3, True, True)


async def test_a_bridge_whose_http_port_is_taken_does_not_start(shared_redis: RedisProcess, key_prefix: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix, "LLMBRIDGE_HTTP_PORT": port}
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "llmbridge.cli.app", "serve", "--port", "0"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 3
    assert "LLMBRIDGE_HTTP_PORT" in done.stderr
    assert port in done.stderr


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_an_open_listener_must_be_asked_for(command: str) -> None:
    code, said = _refused(command, "--http-port", "0", LLMBRIDGE_HTTP_HOST="0.0.0.0")
    assert code == 2
    assert "LLMBRIDGE_HTTP_HOST (0.0.0.0)" in said
    assert "LLMBRIDGE_ALLOW_INSECURE" in said


@pytest.mark.parametrize("target", ["", "http://127.0.0.1:50051", "a:1,b:2"])
def test_a_target_that_is_none_is_told(target: str) -> None:
    code, said = _refused("gateway", "--http-port", "0", "--target", target)
    assert code == 2
    # What must be given instead; lines are broken to fit a terminal.
    assert "--target" in said
    assert "host:port" in said or "ip:port" in said


def test_a_missing_package_is_told() -> None:
    code = (
        "import sys; sys.modules['starlette'] = None; "
        "sys.argv = ['llmbridge', 'gateway', '--http-port', '0']; "
        "from llmbridge.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert "pip install 'llmbridge[gateway]'" in done.stderr


async def test_the_gateways_document_is_the_one_of_the_version(http: httpx.AsyncClient) -> None:
    assert json.loads((await http.get("/openapi.json")).text)["openapi"] == "3.1.0"
