"""The bridges that the cases are run against: started by the suite, or running somewhere else.

Knows nothing of transports and cases.
"""

import shlex
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import redis

from tests.support.bridge_process import BridgeProcess
from tests.support.redis_process import RedisProcess, usable_binary

OWN_COMMAND = shlex.join([sys.executable, "-m", "llmbridge.cli.app", "serve", "--port", "0"])

USUAL = {
    "LLMBRIDGE_HEARTBEAT_MS": "300",
    "CONSUMER_POLL_TIMEOUT": "100",
    # On a busy machine a Redis that is well may be silent for some seconds.
    "LLMBRIDGE_REDIS_TIMEOUT_MS": "10000",
}
"""What the suite's own bridges are set to, where nothing else is said."""

HASTY = {
    **USUAL,
    "LLMBRIDGE_HEARTBEAT_MS": "200",
    "LLMBRIDGE_PRODUCER_LOST_MS": "2000",
    "REDIS_STREAM_RETENTION_MS": "2400",
    "CONNECTION_CLEANUP_INTERVAL": "1000",
    # All sessions in one part of the feed, which forgets old events when new ones come.
    "LLMBRIDGE_PARTITIONS": "1",
}
"""A bridge that loses patience soon, for the cases that are about time."""

NERVOUS = {**USUAL, "LLMBRIDGE_REDIS_TIMEOUT_MS": "2000"}
"""A bridge that loses its Redis."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One bridge that serves."""

    address: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """What is known of its settings, by their documented names."""
    redis_url: str | None = None
    process: BridgeProcess | None = None
    """Of one that the suite started, and may hurt if it is the case's own."""
    http_url: str | None = None
    """Where it serves HTTP, if it does."""

    def setting(self, name: str) -> int:
        """Tell a setting that is a number; skips the case where it is not known."""
        if name not in self.settings:
            pytest.skip(f"{name} of the target is not known: give it by --target-setting {name}=…")
        return int(self.settings[name])


class Starter:
    """Starts what a run or a case needs of its own, and ends all of it in `close`."""

    def __init__(self, command: str, *, http: bool) -> None:
        """`http`: what the command starts serves HTTP, and its second line of output says where."""
        self._command = shlex.split(command)
        self._http = http
        self._bridges: list[BridgeProcess] = []
        self._redises: list[RedisProcess] = []

    def redis(self) -> RedisProcess:
        """Start a Redis that forgets nothing that it has acknowledged, even if it is killed."""
        server = RedisProcess(usable_binary(), {"appendfsync": "always"})
        self._redises.append(server)
        return server.start()

    def bridge(self, redis_url: str, key_prefix: str, settings: Mapping[str, str]) -> Instance:
        """Start a bridge of the implementation that is tested."""
        environment = {
            "LLMBRIDGE_HOST": "127.0.0.1",
            "LLMBRIDGE_PORT": "0",
            "REDIS_URL": redis_url,
            "LLMBRIDGE_KEY_PREFIX": key_prefix,
            "LLMBRIDGE_LOG_LEVEL": "ERROR",
            **({"LLMBRIDGE_HTTP_PORT": "0"} if self._http else {}),
            **settings,
        }
        process = BridgeProcess(environment, command=tuple(self._command), http=self._http).start()
        self._bridges.append(process)
        return Instance(process.address, environment, redis_url, process, process.http_url or None)

    def bridges(self, count: int, redis_url: str, key_prefix: str, settings: Mapping[str, str]) -> list[Instance]:
        """Start several at once, which share everything."""
        with ThreadPoolExecutor(count) as threads:
            started = [threads.submit(self.bridge, redis_url, key_prefix, settings) for _ in range(count)]
        return [each.result() for each in started]

    def close(self) -> None:
        for process in self._bridges:
            process.close()
        for server in self._redises:
            server.close()


@dataclass(frozen=True)
class Snapshot:
    """What Redis has of one session, to be put back: what was written since is lost then, as in a failover.

    It holds for every implementation that has a session's id in the names of its keys.
    """

    client: "redis.Redis"
    session_id: str
    kept: dict[bytes, tuple[bytes, int]]

    @classmethod
    def take(cls, client: "redis.Redis", session_id: str) -> "Snapshot":
        kept = {}
        for key in cls._keys(client, session_id):
            value, left = client.dump(key), client.pttl(key)
            assert isinstance(value, bytes)
            assert isinstance(left, int)
            kept[key] = (value, max(left, 0))
        assert kept, "Redis has no key that names the session"
        return cls(client, session_id, kept)

    @classmethod
    def lose(cls, client: "redis.Redis", session_id: str) -> None:
        """Have Redis lose all that it has of a session."""
        keys = cls._keys(client, session_id)
        assert keys, "Redis has no key that names the session"
        client.delete(*keys)

    def restore(self) -> None:
        """Go back, in one step for whoever reads."""
        with self.client.pipeline(transaction=True) as step:
            for key in self._keys(self.client, self.session_id):
                if key not in self.kept:
                    step.delete(key)
            for key, (value, left) in self.kept.items():
                step.restore(key, left, value, replace=True)
            step.execute()

    @staticmethod
    def _keys(client: "redis.Redis", session_id: str) -> list[bytes]:
        return [bytes(key) for key in client.scan_iter(f"*{session_id}*", count=1_000)]
