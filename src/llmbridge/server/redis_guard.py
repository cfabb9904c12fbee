"""The guard process of the embedded Redis: ends redis-server and removes its directory once the bridge has gone.

Run by path, as `python -I -S redis_guard.py <bridge pid> <stop timeout, s> <run directory> <redis-server> <config>`.
It is the parent of redis-server, so the pid it signals can never be somebody else's. It knows nothing of Redis except
that SIGTERM ends it cleanly, and imports nothing of llmbridge: it must start fast and stay small.

Standard input is the lifeline, one end of a socket pair whose other end only the bridge has. On it the guard reports
the pid of redis-server and later its return code (as in `subprocess`); reading the end of file from it means
that the bridge wants redis-server stopped, or is no more. Standard error is the log of redis-server.
"""

import ctypes
import math
import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from typing import Any, Final, NoReturn

REPORT_BYTES: Final = 8
"""The size of what the guard reports: a decimal number, padded with spaces."""

_LIFELINE: Final = 0
_LOG: Final = 2
_PARENT_CHECK_S: Final = 1.0
"""A child that the bridge forked without exec shares the lifeline and keeps it open; losing the parent tells then."""
_PR_SET_PDEATHSIG: Final = 1
_EXEC_FAILED: Final = 127


class _Watch:
    """Waits for what the guard acts on: the end of the bridge, a signal, the end of redis-server."""

    def __init__(self, bridge_pid: int) -> None:
        self.bridge_gone = False
        self.signalled = False
        self._bridge_pid = bridge_pid
        self._wakeups, wakeups_in = os.pipe()
        os.set_blocking(wakeups_in, False)
        signal.set_wakeup_fd(wakeups_in)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        # A mask inherited from the bridge would hide these signals here and in redis-server.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def wait(self, timeout: float) -> None:
        """Return after `timeout` seconds, or earlier when something has happened."""
        watched = [self._wakeups] if self.bridge_gone else [self._wakeups, _LIFELINE]
        readable, _, _ = select.select(watched, (), (), min(timeout, _PARENT_CHECK_S))
        if self._wakeups in readable:
            self.signalled |= any(number != signal.SIGCHLD for number in os.read(self._wakeups, 64))
        if _LIFELINE in readable:
            try:
                self.bridge_gone = not os.read(_LIFELINE, 64)
            except ConnectionResetError:
                self.bridge_gone = True
        self.bridge_gone |= os.getppid() != self._bridge_pid


def _die_with_guard(libc: Any, guard_pid: int) -> None:
    # Only Linux can do this. It covers a kill -9 of both the bridge and the guard, as by `pkill -9 python`.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != guard_pid:
        os._exit(_EXEC_FAILED)


def _exec(command: list[str], libc: Any, guard_pid: int) -> NoReturn:
    try:
        # A group of its own, so that a child forked to rewrite the file can be ended together with it.
        os.setpgid(0, 0)
        if libc is not None:
            _die_with_guard(libc, guard_pid)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(_LOG, 1)
        # Redis 8 refuses to start when the environment names a locale that this machine does not have.
        os.execve(  # noqa: S606 - no shell is wanted
            command[0], command, {**os.environ, "LC_ALL": "C"}
        )
    except OSError as error:
        os.write(_LOG, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(_EXEC_FAILED)


def _spawn(command: list[str]) -> int:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    guard_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _exec(command, libc, guard_pid)
    return pid


def _reap(pid: int) -> int | None:
    reaped, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if reaped else None


def _report(number: int) -> None:
    # When the bridge has gone there is nobody left to tell, and the work goes on.
    with suppress(BrokenPipeError, ConnectionResetError):
        os.write(_LIFELINE, b"%*d" % (REPORT_BYTES, number))


def _wait_for_end(pid: int, watch: _Watch, stop_timeout: float) -> int:
    """Wait until redis-server has ended, ending it as soon as it is not wanted any more; return its return code."""
    stopping = False
    kill_at = math.inf
    while (returncode := _reap(pid)) is None:
        if not stopping and (watch.bridge_gone or watch.signalled):
            stopping = True
            kill_at = time.monotonic() + stop_timeout
            os.kill(pid, signal.SIGTERM)
        elif time.monotonic() >= kill_at:
            kill_at = math.inf
            os.kill(pid, signal.SIGKILL)
        watch.wait(max(0.0, kill_at - time.monotonic()))
    return returncode


def main() -> None:
    """Start redis-server, wait for its end or the bridge's, then clean up."""
    bridge_pid, stop_timeout, run_directory, *command = sys.argv[1:]
    os.umask(0o077)
    watch = _Watch(int(bridge_pid))
    pid = _spawn(command)
    _report(pid)
    returncode = _wait_for_end(pid, watch, float(stop_timeout))
    # A killed redis-server leaves the child that rewrites its file behind, which would go on writing.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _report(returncode)
    # The bridge may still want to read the log, which can be in this directory.
    while not watch.bridge_gone:
        watch.wait(math.inf)
    shutil.rmtree(run_directory)


if __name__ == "__main__":
    main()
