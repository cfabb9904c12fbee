"""A primary, replicas and sentinels as real processes, and what makes a failover."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis

from tests.support.redis_process import Binary, RedisProcess

SERVICE = "tokens"
DOWN_AFTER_MS = 1_500
"""Sentinels ping every second, and a new primary for the first time after one: with less they take it for dead."""
START_SECONDS = 20.0


def wait_until(condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
    """Wait for servers to agree; they tell nobody when they do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the servers did not agree in time"
        time.sleep(0.02)


@dataclass
class Watched:
    """One primary, its replicas and their sentinels."""

    servers: list[RedisProcess]
    sentinels: list[RedisProcess] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{it.port}' for it in self.sentinels)}/{SERVICE}"

    @property
    def primary(self) -> RedisProcess:
        """The one that the sentinels say."""
        with self.sentinels[0].client() as client:
            port = int(client.sentinel_master(SERVICE)["port"])
        return next(server for server in self.servers if server.port == port)

    @property
    def replicas(self) -> list[RedisProcess]:
        primary = self.primary
        return [server for server in self.servers if server is not primary]

    def wait_until_replicated(self) -> None:
        """Wait until every replica that lives follows the primary."""
        alive = sum(server.alive for server in self.servers)

        def all_follow() -> bool:
            with self.primary.client() as client:
                found = client.info("replication")
            return found["connected_slaves"] == alive - 1 and all(
                found[f"slave{i}"]["state"] == "online" for i in range(alive - 1)
            )

        wait_until(all_follow)

    def wait_until_watched(self) -> None:
        """Wait until every sentinel knows the replicas and the other sentinels, so that a failover can be agreed on."""

        def all_known() -> bool:
            for sentinel in self.sentinels:
                with sentinel.client() as client:
                    state = client.sentinel_master(SERVICE)
                if state["num-other-sentinels"] != 2 or state["num-slaves"] != len(self.servers) - 1:
                    return False
            return True

        wait_until(all_known)

    def wait_until_in_step(self) -> None:
        """Wait until every replica has what the primary has."""
        with self.primary.client() as client:
            count = len(self.replicas)
            client.set("in step", "1", px=1000)
            wait_until(lambda: client.wait(count, 1000) == count)

    def lock_replicas_out(self) -> None:
        """Cut the replicas off: what the primary takes from now on is nowhere else. Other connections stay."""
        with self.primary.client() as client:
            client.config_set("requirepass", "changed")
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def kill_primary(self) -> RedisProcess:
        killed = self.primary
        killed.kill()
        return killed

    def ask_for_failover(self) -> None:
        """Have a replica promoted though the primary is well, as soon as the sentinel finds one good enough."""

        def begun() -> bool:
            with self.sentinels[0].client() as client:
                try:
                    client.execute_command("SENTINEL", "FAILOVER", SERVICE)
                except redis.ResponseError as error:
                    if "NOGOODSLAVE" not in str(error):
                        raise
                    return False
            return True

        wait_until(begun)

    def wait_for_failover(self, old: RedisProcess) -> None:
        """Wait until another server is the primary and takes writes."""

        def done() -> bool:
            new = self.primary
            if new is old:
                return False
            with new.client() as client:
                return bool(client.role()[0] == b"master")

        wait_until(done, 30)


@contextmanager
def watched(binary: Binary, replicas: int = 2) -> Iterator[Watched]:
    """Run them while the context lasts."""
    primary = RedisProcess(binary, {"repl-diskless-sync-delay": "0"}).start()
    found = Watched([primary])
    try:
        for _ in range(replicas):
            config = {"replicaof": f"127.0.0.1 {primary.port}", "repl-diskless-sync-delay": "0"}
            found.servers.append(RedisProcess(binary, config).start())
        for _ in range(3):
            sentinel = RedisProcess(binary)
            found.sentinels.append(sentinel)
            sentinel.start_sentinel(
                f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
                f"sentinel failover-timeout {SERVICE} 10000",
                f"sentinel parallel-syncs {SERVICE} 2",
            )
        wait_until(lambda: found.primary is primary)
        found.wait_until_watched()
        found.wait_until_replicated()
        yield found
    finally:
        for server in (*found.sentinels, *found.servers):
            server.close()
