"""A producer as a process of its own, to be killed for real: `python -m tests.support.producer_process …`.

It writes its words with the synchronous client, says so when they are stored, and is silent until it is ended.
"""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from llmbridge.client.sync import Client


@dataclass
class ProducerProcess:
    """A running producer of the stream with the ids `stream`."""

    address: str
    stream: tuple[str, str, str]
    words: tuple[str, ...]

    def start(self) -> "ProducerProcess":
        """Start it and wait until its words are stored."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.producer_process", self.address, *self.stream, *self.words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "stored\n", f"the producer failed: {line!r}"
        return self

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self._reap()

    def interrupt(self) -> tuple[int, str]:
        """End it as Ctrl-C does; returns the exit code and standard error."""
        self.process.send_signal(signal.SIGINT)
        return self._reap()

    def _reap(self) -> tuple[int, str]:
        try:
            _, errors = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode, errors


def main(address: str, session_id: str, model_id: str, response_id: str, *words: str) -> None:
    """Write, then wait."""
    with Client(address) as client, client.write(session_id, model_id, response_id) as writer:
        for word in words:
            writer.text(word)
        writer.flush()
        print("stored", flush=True)
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
