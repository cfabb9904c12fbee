"""A bridge as a process of its own, to be killed for real."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

PATIENCE = {"LLMBRIDGE_REDIS_TIMEOUT_MS": "10000"}
"""On a busy machine a Redis that is well may be silent for some seconds."""


@dataclass
class BridgeProcess:
    """`llmbridge serve` on a free loopback port; `environment` are its settings, over PATIENCE.

    Another `command` may start another implementation; its first line of output must end with "listening on HOST:PORT".
    With `http`, which the settings must ask for as well, its second line must end with "at URL".
    """

    environment: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = (sys.executable, "-m", "llmbridge.cli.app", "serve", "--port", "0")
    http: bool = False
    http_url: str = ""

    def start(self) -> "BridgeProcess":
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "LLMBRIDGE_", "OTEL_"))
        }
        self.process = subprocess.Popen(
            self.command,
            env=environment | PATIENCE | self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " listening on " not in line:
            raise AssertionError(f"the bridge did not start: {line!r}, exit code {self.process.wait(10)}")
        self.address = line.rsplit(" ", 1)[1].strip()
        if self.http:
            line = self.process.stdout.readline()
            if " at http" not in line:
                raise AssertionError(f"the bridge does not serve HTTP: {line!r}, exit code {self.process.wait(10)}")
            self.http_url = line.rsplit(" ", 1)[1].strip()
        return self

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
            self.terminate()
        assert self.process.stdout is not None
        self.process.stdout.close()
