"""Tests that are written for one Redis, once more on a cluster: every RPC, and most of what each promises."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import redis

from tests.integration.test_group_service import *  # noqa: F403
from tests.integration.test_produce_many import *  # noqa: F403
from tests.integration.test_produce_many_ends import *  # noqa: F403
from tests.integration.test_stop import *  # noqa: F403
from tests.integration.test_streams_admin import *  # noqa: F403
from tests.integration.test_subscribe import *  # noqa: F403
from tests.integration.test_watch_streams import *  # noqa: F403
from tests.support.cluster import Cluster
from tests.support.running_bridge import RunningBridge, running_bridge

# These look into Redis with a client of their own, which knows no cluster.
del test_a_session_is_listed_newest_first  # noqa: F821
del test_what_is_settled_at_another_bridge_makes_room_though_its_bell_is_lost  # noqa: F821


@dataclass(frozen=True)
class ClusterAsRedis:
    """What the tests know of the Redis that they share."""

    cluster: Cluster

    @property
    def url(self) -> str:
        return self.cluster.url

    def client(self) -> "redis.RedisCluster":
        return redis.RedisCluster(host="127.0.0.1", port=self.cluster.nodes[0].port, socket_timeout=5)


@pytest.fixture
def shared_redis(shared_cluster: Cluster) -> ClusterAsRedis:
    return ClusterAsRedis(shared_cluster)


@pytest.fixture
async def bridge(shared_cluster: Cluster, key_prefix: str) -> AsyncIterator[RunningBridge]:
    async with running_bridge(shared_cluster.url, key_prefix=key_prefix) as running:
        yield running
