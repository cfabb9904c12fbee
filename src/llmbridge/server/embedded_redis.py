"""The embedded Redis: a redis-server of this bridge's own, for when no Redis is configured.

It manages a process and nothing else: it must not know what the bridge stores, and speaks just enough of the protocol
to send PING. Redis is started and ended by a guard process (`redis_guard`), which outlives the bridge by as long as it
takes to end Redis and to remove what is temporary, so nothing is left behind even after a `kill -9` of the bridge.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from llmbridge.server import redis_guard
from llmbridge.server.redis_binary import EmbeddedRedisError, RedisServerBinary, Version, find_redis_server
from llmbridge.server.redis_data import RedisLog, locked, prepare_data_directory
from llmbridge.server.run_directory import make_run_directory

__all__ = ["EmbeddedRedis", "EmbeddedRedisError", "RedisServerBinary", "embedded_redis", "find_redis_server"]

_SOCKET_NAME: Final = "redis.sock"
_POLL_S: Final = 0.02
_LOCK_WAIT_MARGIN_S: Final = 5.0
_GUARD_START_S: Final = 30.0
_GUARD_MARGIN_S: Final = 10.0
"""How long the guard may take beyond the stop timeout: killing Redis and removing a large directory."""


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """A running redis-server that answers; made by `embedded_redis`."""

    socket_path: Path
    pid: int
    """Of redis-server itself, not of its guard."""
    binary: RedisServerBinary
    data_dir: Path
    log_path: Path
    _ended: asyncio.Task[int] = field(repr=False, compare=False)

    @property
    def url(self) -> str:
        """The address for a Redis client, `unix:///…`."""
        return f"unix://{quote(str(self.socket_path))}"

    @property
    def version(self) -> Version:
        """The version of the running server."""
        return self.binary.version

    async def wait(self) -> int:
        """Wait until redis-server has ended, for whatever reason.

        Any number of tasks may wait, and be cancelled. Returns its return code as in `subprocess`: negative for the
        signal that ended it. When its guard was killed, Redis is ended too, since nothing would end it later.
        """
        return await asyncio.shield(self._ended)


@asynccontextmanager
async def embedded_redis(
    binary: RedisServerBinary | None = None,
    *,
    data_dir: Path | None = None,
    extra_config: Mapping[str, str] = MappingProxyType({}),
    start_timeout: float = 30.0,
    stop_timeout: float = 5.0,
) -> AsyncIterator[EmbeddedRedis]:
    """Run a redis-server for as long as the context lasts, reachable by a private Unix socket only.

    - `binary`: what to start; by default what `find_redis_server` finds.
    - `data_dir`: where the append-only file and redis.log are kept; made when missing, used by one bridge at a time.
      Without it the data is in a temporary directory and removed at the end.
    - `extra_config`: further lines of redis.conf, name and value as they would be written there; these win.
    - `start_timeout`: seconds until Redis must answer, including the time it takes to load its data.
    - `stop_timeout`: seconds Redis has to end after SIGTERM before it is killed.

    When the context is entered, Redis answers. When it is left, or this process ends in any way, Redis and everything
    temporary is gone soon after; what Redis has acknowledged is in `data_dir` (written at once, synced every second).
    Redis has a session of its own, so Ctrl-C in a terminal does not reach it. Nothing watches over it here: see
    `EmbeddedRedis.wait`.

    Raises EmbeddedRedisError when there is no binary, when `data_dir` is in use or cannot be used, or when Redis
    does not start, with its last words.
    """
    server = await asyncio.to_thread(find_redis_server) if binary is None else binary
    run_directory = make_run_directory(_SOCKET_NAME)
    try:
        data = prepare_data_directory(data_dir or run_directory / "data", server)
        socket_path = run_directory / _SOCKET_NAME
        config_path = run_directory / "redis.conf"
        config_path.write_bytes(os.fsencode(_config(socket_path, data, extra_config)))
        async with locked(data, stop_timeout + _LOCK_WAIT_MARGIN_S) as lock:
            log = RedisLog.beginning_now(data)
            guard = _start_guard([str(server.path), str(config_path)], run_directory, log, lock, stop_timeout)
        async with _guarded(guard, log, stop_timeout) as (pid, ended):
            await _wait_until_ready(server, socket_path, ended, log, start_timeout)
            yield EmbeddedRedis(socket_path, pid, server, data, log.path, ended)
    finally:
        # The guard has done this, unless it never ran or was killed; should it still be at it, the two get along.
        await asyncio.to_thread(shutil.rmtree, run_directory, ignore_errors=True)


def _config(socket_path: Path, data: Path, extra_config: Mapping[str, str]) -> str:
    lines = {
        "port": "0",
        "unixsocket": _quoted(socket_path),
        "unixsocketperm": "700",
        "dir": _quoted(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
    }
    return "".join(f"{name} {value}\n" for name, value in (lines | dict(extra_config)).items())


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass(frozen=True, slots=True)
class _Guard:
    process: subprocess.Popen[bytes]
    lifeline: socket.socket

    async def report(self) -> int | None:
        """Return the next number that the guard reports, None when the guard is no more."""
        report = await asyncio.get_running_loop().sock_recv(self.lifeline, redis_guard.REPORT_BYTES)
        return int(report) if report else None

    async def first_report(self) -> int | None:
        """Return the pid of redis-server, None when the guard does not come up."""
        try:
            # Not wait_for: before Python 3.12 that loses a cancellation that comes together with the result.
            async with asyncio.timeout(_GUARD_START_S):
                return await self.report()
        except TimeoutError:
            return None


def _start_guard(command: list[str], run_directory: Path, log: RedisLog, lock: int, stop_timeout: float) -> _Guard:
    # By path and isolated: nothing of this package, or beside this file, may slow the guard's start or shadow a module.
    python = [sys.executable, "-I", "-S", redis_guard.__file__]
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    # The guard and redis-server inherit the lock, so it is held as long as either lives, longer than this process may.
    try:
        with theirs, log.path.open("ab") as log_file:
            process = subprocess.Popen(  # noqa: S603 - our own helper, arguments made here
                [*python, str(os.getpid()), str(stop_timeout), str(run_directory), *command],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log_file,
                pass_fds=[lock],
                start_new_session=True,
            )
    except OSError as error:
        ours.close()
        raise EmbeddedRedisError(f"cannot start the guard process of redis-server: {error}") from error
    return _Guard(process, ours)


@asynccontextmanager
async def _guarded(guard: _Guard, log: RedisLog, stop_timeout: float) -> AsyncIterator[tuple[int, asyncio.Task[int]]]:
    """Yield the pid of redis-server and a task that ends with its return code; at the end, stop it and the guard."""
    ended = None
    with guard.lifeline:
        try:
            pid = await guard.first_report()
            if pid is None:
                raise EmbeddedRedisError(f"the guard process of redis-server did not start{log.last_words()}")
            ended = asyncio.create_task(_return_code(guard, pid))
            yield pid, ended
        finally:
            # Already shut when the guard was killed, which macOS reports as an error.
            with suppress(OSError):
                guard.lifeline.shutdown(socket.SHUT_WR)
            try:
                await asyncio.to_thread(guard.process.wait, stop_timeout + _GUARD_MARGIN_S)
                if ended is not None:
                    await ended
            except subprocess.TimeoutExpired as error:
                raise EmbeddedRedisError("redis-server and its guard did not end in time") from error
            finally:
                if ended is not None:
                    ended.cancel()


async def _return_code(guard: _Guard, pid: int) -> int:
    returncode = await guard.report()
    if returncode is not None:
        return returncode
    # The guard was killed: nobody would end Redis after this process. What Redis has answered is with the kernel.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return -signal.SIGKILL


async def _wait_until_ready(
    server: RedisServerBinary, socket_path: Path, ended: asyncio.Task[int], log: RedisLog, patience: float
) -> None:
    try:
        async with asyncio.timeout(patience):
            while not await _answers_ping(socket_path):
                done, _ = await asyncio.wait({ended}, timeout=_POLL_S)
                if done:
                    raise EmbeddedRedisError(f"{server} {_how_it_ended(ended.result())} at its start{log.last_words()}")
    except TimeoutError as error:
        raise EmbeddedRedisError(f"{server} did not answer within {patience:g} s{log.last_words()}") from error


async def _answers_ping(socket_path: Path) -> bool:
    """Tell whether Redis is ready; it is not while it does not listen yet or is loading its data."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path)
        try:
            writer.write(b"*1\r\n$4\r\nPING\r\n")
            answer = await reader.readline()
        finally:
            writer.close()
            await writer.wait_closed()
    except OSError:
        # Not listening yet, or just ended; the caller watches for the latter.
        return False
    if answer and not answer.startswith((b"+PONG", b"-LOADING")):
        raise EmbeddedRedisError(f"redis-server answered PING with {answer.decode(errors='replace').strip()!r}")
    return answer.startswith(b"+PONG")


def _how_it_ended(returncode: int) -> str:
    return f"exited with status {returncode}" if returncode >= 0 else f"was ended by {signal.Signals(-returncode).name}"
