"""The Redis servers of one bridge: a single one (by address or by way of sentinels) or the nodes of a cluster."""

from dataclasses import dataclass

from llmbridge.errors import RedisUnavailable
from llmbridge.log.cluster import Cluster, WrongRedis
from llmbridge.log.connections import Connector
from llmbridge.log.exchange import ConnectionBroken, Exchange
from llmbridge.log.scripts import Wake
from llmbridge.redis_url import Topology


@dataclass(frozen=True, slots=True)
class ReplicaAcks:
    """How many replicas must have a write before it counts as stored, and for how long to wait for them."""

    replicas: int = 0
    timeout_ms: int = 0


NO_REPLICA_ACKS = ReplicaAcks()


class Servers:
    """What everything that talks to Redis has in common. Raises ValueError or TypeError for a bad URL."""

    def __init__(self, url: str, timeout_seconds: float, acks: ReplicaAcks = NO_REPLICA_ACKS) -> None:
        self.connector = Connector(url, timeout_seconds)
        self.acks = acks
        is_cluster = self.connector.url.topology is Topology.CLUSTER
        self.cluster = Cluster(self.connector) if is_cluster else None
        self.wake = Wake.SPUBLISH if is_cluster else Wake.PUBLISH
        """How scripts wake readers that store nothing which a replica must have first."""

    async def prepare(self) -> None:
        """Find out what must be known before the first command. Raises RedisUnavailable or WrongRedis."""
        if self.cluster is not None:
            await self.cluster.load()
        elif await self._is_part_of_a_cluster():
            raise WrongRedis("it is a node of a Redis Cluster: use redis+cluster:// or rediss+cluster://")

    async def _is_part_of_a_cluster(self) -> bool:
        exchange = Exchange(self.connector, "check")
        try:
            [info] = await exchange.send([("INFO", "cluster")])
        except ConnectionBroken as error:
            raise RedisUnavailable(str(error)) from error
        finally:
            await exchange.close()
        # A user that may not ask is taken at its word.
        return isinstance(info, bytes) and b"cluster_enabled:1" in info

    async def run(self) -> None:
        """Keep it up to date until cancelled, where there is anything to keep."""
        if self.cluster is not None:
            await self.cluster.run()
