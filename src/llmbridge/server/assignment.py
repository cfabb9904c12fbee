"""What a supervisor and its workers say to each other: one line down, when a worker starts, and then lines up.

The line down has all settings, secrets too: it goes through a pipe, where nobody else can read it, and not through the
environment or the arguments. Knows nothing of processes.
"""

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr

from llmbridge.settings import Settings

SOCKET_NAME = "worker-{}.sock"
"""Of the private socket of the worker with this number."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which of how many workers a bridge process is. They are numbered from 1; one that is alone is number 0 of 1."""

    worker: int
    workers: int
    instance_id: str
    """Theirs in common, and nobody else's."""
    directory: str
    """Where their private sockets are; only this user can enter it."""

    @property
    def socket(self) -> str:
        """The private address of this worker, in grpc's syntax."""
        return self._socket_of(self.worker)

    @property
    def siblings(self) -> dict[int, str]:
        """The private addresses of the other workers, by number."""
        return {number: self._socket_of(number) for number in range(1, self.workers + 1) if number != self.worker}

    def _socket_of(self, worker: int) -> str:
        return f"unix:{Path(self.directory) / SOCKET_NAME.format(worker)}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is to do."""

    place: Place
    settings: Settings

    def encode(self) -> bytes:
        """Write it as a line."""
        settings = {name: _plain(value) for name, value in self.settings.model_dump().items()}
        place = self.place
        told = [place.worker, place.workers, place.instance_id, place.directory, settings]
        return json.dumps(told).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """Read what `encode` has written, by a process with the same environment."""
        worker, workers, instance_id, directory, settings = json.loads(line)
        return cls(Place(worker, workers, instance_id, directory), Settings.load(**settings))


class State(Enum):
    """What a worker says of itself, one word a line."""

    READY = "ready"
    """Calls are served, at all its addresses; said once."""
    SERVING = "serving"
    """Its health is SERVING."""
    NOT_SERVING = "not serving"
    """Its health is NOT_SERVING: Redis is away, or it drains."""


@dataclass(frozen=True, slots=True)
class Said:
    """A line of a worker. Without a state it says why the worker can't start."""

    state: State | None
    why: str = ""

    def encode(self) -> bytes:
        """Write it as a line."""
        return json.dumps([self.state and self.state.value, self.why]).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """Read what `encode` has written."""
        state, why = json.loads(line)
        return cls(State(state) if state else None, why)


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
