"""A Redis Cluster of real processes, and what befalls one: slots that move, nodes that die."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.redis_process import Binary, RedisProcess, binaries
from tests.support.sentinels import wait_until

SLOTS = 16_384
NODE_TIMEOUT_MS = 1_000


def cluster_binary() -> Binary:
    """A redis-server with sharded Pub/Sub; where there is none, the test is skipped."""
    found = binaries().get("system")
    if found is None or found.version < (7, 0):
        pytest.skip("no redis-server 7.0 or later on PATH, which a cluster takes")
    return found


@dataclass
class Cluster:
    """Nodes, the first of them with slots, the rest replicas of these in turn."""

    nodes: list[RedisProcess]
    primaries: int

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"

    def node_of(self, slot: int) -> RedisProcess:
        """Who has a slot, as the nodes that live say."""
        alive = next(node for node in self.nodes if node.alive)
        with alive.client() as client:
            for first, last, (_, port, *_), *_ in client.execute_command("CLUSTER SLOTS", _raw=True):
                if first <= slot <= last:
                    return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def id_of(self, node: RedisProcess) -> str:
        with node.client() as client:
            return text(client.execute_command("CLUSTER", "MYID"))

    def wait_until_agreed(self) -> None:
        """Wait until every living node finds all slots served by living nodes."""

        def agreed() -> bool:
            for node in self.nodes:
                if node.alive:
                    with node.client() as client:
                        info = text(client.execute_command("CLUSTER", "INFO"))
                        nodes = text(client.execute_command("CLUSTER", "NODES"))
                    if "cluster_state:ok" not in info or f"cluster_known_nodes:{len(self.nodes)}" not in info:
                        return False
                    if "handshake" in nodes or "noaddr" in nodes:
                        return False
            return True

        wait_until(agreed)

    def begin_moving(self, slot: int, to: RedisProcess) -> RedisProcess:
        """Have a slot's keys looked for at both nodes; returns the one that has it."""
        source = self.node_of(slot)
        with source.client() as giving, to.client() as taking:
            taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
            giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        return source

    def move_keys(self, slot: int, source: RedisProcess, to: RedisProcess, at_most: int = 10_000) -> int:
        """Move some of a slot's keys, one by one; tells how many."""
        moved = 0
        with source.client() as client:
            while moved < at_most:
                keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, min(10, at_most - moved))
                if not keys:
                    break
                for key in keys:
                    client.execute_command("MIGRATE", "127.0.0.1", to.port, key, 0, 5000)
                moved += len(keys)
        return moved

    def end_moving(self, slot: int, source: RedisProcess, to: RedisProcess) -> None:
        """Give the slot to its new node."""
        for node in (to, source, *self.nodes):
            if node.alive:
                with node.client() as client:
                    if client.role()[0] == b"master":
                        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))

    def move(self, slot: int, to: RedisProcess) -> None:
        """Move a slot with all its keys, while it is used."""
        source = self.begin_moving(slot, to)
        self.move_keys(slot, source, to)
        self.end_moving(slot, source, to)

    def keys(self) -> dict[bytes, RedisProcess]:
        """Every key, with the node that has it."""
        found: dict[bytes, RedisProcess] = {}
        for node in self.nodes[: self.primaries]:
            with node.client() as client:
                found |= dict.fromkeys(client.scan_iter(), node)
        return found


def text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


@contextmanager
def running_cluster(primaries: int = 3, replicas: int = 0, node_timeout_ms: int = NODE_TIMEOUT_MS) -> Iterator[Cluster]:
    """Run one while the context lasts. Nodes that live go on where others do not.

    A node that stands still for longer than the timeout is taken for dead, and so does not serve for a while.
    """
    binary = cluster_binary()
    config = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": str(node_timeout_ms),
        "cluster-require-full-coverage": "no",
        "cluster-allow-replica-migration": "no",
        "cluster-replica-validity-factor": "0",
        "repl-diskless-sync-delay": "0",
    }
    cluster = Cluster([], primaries)
    try:
        cluster.nodes += [RedisProcess(binary, config).start() for _ in range(primaries + replicas)]
        _join(cluster)
        yield cluster
    finally:
        for node in cluster.nodes:
            node.close()


def _join(cluster: Cluster) -> None:
    for i, node in enumerate(cluster.nodes):
        with node.client() as client:
            # So that they need not find out who is right.
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            if i < cluster.primaries:
                first, end = (SLOTS * n // cluster.primaries for n in (i, i + 1))
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            for other in cluster.nodes[:i]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
    cluster.wait_until_agreed()
    for i, node in enumerate(cluster.nodes[cluster.primaries :]):
        primary = cluster.id_of(cluster.nodes[i % cluster.primaries])
        with node.client() as client:
            client.execute_command("CLUSTER", "REPLICATE", primary)
    if cluster.primaries < len(cluster.nodes):
        _wait_for_replicas(cluster)


def _wait_for_replicas(cluster: Cluster) -> None:
    def all_follow() -> bool:
        for node in cluster.nodes[cluster.primaries :]:
            with node.client() as client:
                if client.info("replication")["master_link_status"] != "up":
                    return False
        return True

    wait_until(all_follow)
