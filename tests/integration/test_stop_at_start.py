"""SIGTERM or Ctrl-C while a bridge starts: it waits for nothing any more, leaves nothing behind, and has not failed."""

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.command import Running, running
from tests.support.processes import ended
from tests.support.tcp_server import tcp_server

# Servers take some seconds to start, and many on a busy machine.
pytestmark = pytest.mark.timeout(150)

SERVE = ("serve", "--port", "0")
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


async def stopped(command: Running, number: signal.Signals) -> None:
    """Send the signal, and see that the command ends well."""
    command.signal(number)
    done = await command.done()
    assert (done.code, done.out) == (0, ""), done.err
    assert "Traceback" not in done.err


@SIGNALS
async def test_no_redis_is_waited_for(number: signal.Signals) -> None:
    async with running(*SERVE, REDIS_URL="redis://127.0.0.1:1") as command:
        await command.says("waiting for Redis")
        await stopped(command, number)


async def test_no_answer_of_redis_is_waited_for() -> None:
    asked = asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        await reader.read()

    async with tcp_server(never_answer) as port:
        environment = {"REDIS_URL": f"redis://127.0.0.1:{port}", "LLMBRIDGE_REDIS_TIMEOUT_MS": "60000"}
        async with running(*SERVE, **environment) as command:
            await asked.wait()
            await stopped(command, signal.SIGTERM)


@pytest.fixture
def lazy_redis(tmp_path: Path) -> tuple[str, Path]:
    """A PATH with a redis-server that never listens, and the file in which it says who it is once it runs."""
    tells = tmp_path / "pid"
    script = tmp_path / "redis-server"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "Redis server v=7.0.15 sha=0"; exit; fi\n'
        f"echo $$ > {tells}.new; mv {tells}.new {tells}; exec sleep 1000\n"
    )
    script.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}", tells


@SIGNALS
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_no_embedded_redis_is_waited_for(
    lazy_redis: tuple[str, Path], short_path: Path, number: signal.Signals, workers: str
) -> None:
    path, tells = lazy_redis
    async with running(*SERVE, "--workers", workers, PATH=path, TMPDIR=str(short_path)) as command:
        async with asyncio.timeout(100):
            while not tells.exists():
                await asyncio.sleep(0.02)
        redis = int(tells.read_text())
        assert psutil.Process(redis).is_running()
        await stopped(command, number)
    assert await ended([redis])
    async with asyncio.timeout(30):
        while list(short_path.iterdir()):
            await asyncio.sleep(0.02)
