"""A process that serves HTTP: `llmbridge serve --http-port`, or `llmbridge gateway`."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.bridge_process import PATIENCE

_HTTP = "llmbridge serves HTTP at "
_GRPC = "llmbridge is listening on "


@dataclass
class HttpProcess:
    """A command with HTTP on a free loopback port; `environment` are its settings, over PATIENCE.

    Its log is appended to the file `log`, if there is one. Without `http` it only has gRPC.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    log: Path | None = None
    http: bool = True
    address: str = ""
    """Where its gRPC is, if it has one."""
    url: str = ""

    def start(self) -> "HttpProcess":
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "LLMBRIDGE_", "OTEL_"))
        }
        # From a start before this one.
        self.address = self.url = ""
        with ExitStack() as opened:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llmbridge.cli.app", *self.arguments],
                env=environment | PATIENCE | self.environment,
                stdout=subprocess.PIPE,
                stderr=None if self.log is None else opened.enter_context(self.log.open("a")),
                text=True,
            )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(_GRPC):
                self.address = line.removeprefix(_GRPC).strip()
            elif line.startswith(_HTTP):
                self.url = line.removeprefix(_HTTP).strip()
            if self.url if self.http else self.address:
                return self
        raise AssertionError(f"it did not start, exit code {self.process.wait(10)}")

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> int:
        """End it by SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
