"""A process that serves HTTP: `llmbridge serve --http-port`, or `llmbridge gateway`."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

from tests.support.bridge_process import PATIENCE

_HTTP = "llmbridge serves HTTP at "
_GRPC = "llmbridge is listening on "


@dataclass
class HttpProcess:
    """A command with HTTP on a free loopback port; `environment` are its settings, over PATIENCE."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    address: str = ""
    """Where its gRPC is, if it has one."""
    url: str = ""

    def start(self) -> "HttpProcess":
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "LLMBRIDGE_", "OTEL_"))
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmbridge.cli.app", *self.arguments],
            env=environment | PATIENCE | self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(_GRPC):
                self.address = line.removeprefix(_GRPC).strip()
            elif line.startswith(_HTTP):
                self.url = line.removeprefix(_HTTP).strip()
                return self
        raise AssertionError(f"it did not start, exit code {self.process.wait(10)}")

    def terminate(self) -> int:
        """End it by SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
