"""The directory in which an embedded Redis keeps its data: made, checked, and locked for one server at a time.

It knows which files matter there and nothing of how the server is run.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

from llmbridge.server.redis_binary import EmbeddedRedisError, RedisServerBinary

_MULTI_PART_AOF_VERSION: Final = (7, 0, 0)
_MULTI_PART_AOF: Final = "appendonlydir"
"""Since that version the append-only file is a directory of this name, which older versions overlook in silence."""
_LOCK_POLL_S: Final = 0.02
_LOG_TAIL_BYTES: Final = 8192
_LOG_TAIL_LINES: Final = 20


def prepare_data_directory(directory: Path, binary: RedisServerBinary) -> Path:
    """Make the directory (0700) unless it is there, and return its absolute path.

    Raises EmbeddedRedisError when that cannot be done, or when it holds data that `binary` would overlook.
    """
    data = directory.absolute()
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedRedisError(f"cannot use the data directory {data}: {error.strerror}") from error
    if binary.version < _MULTI_PART_AOF_VERSION and (data / _MULTI_PART_AOF).exists():
        raise EmbeddedRedisError(
            f"the data in {data} was written by Redis 7 or later, {binary} would not see it: "
            "put Redis 7 or later on PATH, or choose another directory"
        )
    return data


@asynccontextmanager
async def locked(data: Path, patience: float) -> AsyncIterator[int]:
    """Lock the directory and yield the lock's file descriptor.

    The lock lasts until the context is left and every process that has inherited the descriptor has ended. When it is
    taken, but the bridge that took it has gone, waits up to `patience` seconds: the Redis of that bridge is about to
    end. Raises EmbeddedRedisError when another bridge holds the lock, or when locking is impossible.
    """
    give_up_at = time.monotonic() + patience
    with _open_lock(data) as file:
        while not _try_lock(file):
            file.seek(0)
            owner = file.read().strip()
            if time.monotonic() >= give_up_at or (owner.isdigit() and _is_alive(int(owner))):
                raise EmbeddedRedisError(
                    f"the data directory {data} is in use by another bridge (pid {owner or 'unknown'})"
                )
            await asyncio.sleep(_LOCK_POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def _open_lock(data: Path) -> IO[str]:
    path = data / "llmbridge.lock"
    try:
        path.touch(mode=0o600)
        return path.open("a+")
    except OSError as error:
        raise EmbeddedRedisError(f"cannot use the data directory {data}: {error.strerror}") from error


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise EmbeddedRedisError(f"cannot lock {file.name}: {error.strerror}") from error
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True, slots=True)
class RedisLog:
    """The file to which redis-server's output is appended, and where in it this run begins."""

    path: Path
    begin: int

    @classmethod
    def beginning_now(cls, data: Path) -> Self:
        """Return the log in a data directory, for a run that is about to begin."""
        path = data / "redis.log"
        path.touch(mode=0o600)
        return cls(path, path.stat().st_size)

    def last_words(self) -> str:
        """Return the last lines that this run has written, ready to follow a message."""
        with self.path.open("rb") as file:
            file.seek(max(self.begin, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join(["; its last lines:", *lines]) if lines else "; it said nothing"
