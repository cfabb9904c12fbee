"""Makes directories for Unix sockets: private, temporary, and with a path that such a socket can have."""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = ["make_run_directory", "socket_directory"]

_PREFIX: Final = "llmbridge-"
_LOCKED_PREFIX: Final = "llmbridge-s-"
"""Of directories with nothing but sockets, locked by whoever uses them. mkdtemp's own part of a name has no hyphen."""
_RANDOM_BYTES_OF_MKDTEMP: Final = 8
_MAX_SOCKET_PATH_BYTES: Final = 100
"""macOS allows 103 bytes, Linux 107."""


def make_run_directory(longest_name: str, prefix: str = _PREFIX) -> Path:
    """Make a directory that only this user can enter (mkdtemp makes it 0700), for sockets with names up to that one."""
    parent = tempfile.gettempdir()
    below = len(f"/{prefix}/{longest_name}") + _RANDOM_BYTES_OF_MKDTEMP
    if len(os.fsencode(parent)) + below > _MAX_SOCKET_PATH_BYTES:
        parent = "/tmp"  # noqa: S108 - only as the parent of a directory that mkdtemp makes
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


@contextmanager
def socket_directory(longest_name: str) -> Iterator[Path]:
    """Make such a directory for sockets and nothing else, and remove it at the end.

    A process that is killed leaves its directory; whichever is next here removes it. The kernel tells which are in use:
    a lock ends with its process, however that ends. (systemd-tmpfiles, too, leaves what is locked alone.)
    """
    directory, lock = _make_locked(longest_name)
    try:
        for other in directory.parent.glob(f"{_LOCKED_PREFIX}*"):
            _remove_if_left(other)
        yield directory
    finally:
        _remove(directory)
        os.close(lock)


def _make_locked(longest_name: str) -> tuple[Path, int]:
    while True:
        directory = make_run_directory(longest_name, _LOCKED_PREFIX)
        # Another process may find it before it is locked, and take it for one that was left.
        with suppress(FileNotFoundError):
            lock = _open(directory)
            # Where a file system has no locks, nothing is ever found to be left.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(directory, lock):
                return directory, lock
            os.close(lock)


def _remove_if_left(directory: Path) -> None:
    try:
        lock = _open(directory)
    except OSError:
        # It is gone by now, somebody else's, or no directory.
        return
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(directory, lock):
            _remove(directory)
    except OSError:
        # It is in use.
        return
    finally:
        os.close(lock)


def _open(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _is_at(directory: Path, lock: int) -> bool:
    """Tell whether what is locked is still what has this path."""
    try:
        return os.path.samestat(os.fstat(lock), directory.lstat())
    except FileNotFoundError:
        return False


def _remove(directory: Path) -> None:
    """Remove it with its sockets. One with anything else in it is not ours to remove, and stays."""
    with suppress(OSError):
        for entry in directory.iterdir():
            if stat.S_ISSOCK(entry.lstat().st_mode):
                entry.unlink(missing_ok=True)
        directory.rmdir()
