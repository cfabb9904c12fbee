"""Wake-ups on Redis Cluster: sharded Pub/Sub, with one connection to each node that has a channel's slot.

A subscription goes along when its slot moves. As ever, messages may be lost meanwhile: each listener is told to look
as soon as its subscription is confirmed again.
"""

import asyncio

from redis.exceptions import MovedError

from llmbridge.log.cluster import Cluster, slot_of
from llmbridge.log.connections import Connector
from llmbridge.log.servers import Servers
from llmbridge.log.wakeups import Channels, Dialect, Listener, Subscription, WakeUps
from llmbridge.redis_url import Address

SHARDED = Dialect(b"SSUBSCRIBE", b"SUNSUBSCRIBE", b"ssubscribe", b"sunsubscribe", b"smessage")


def channels_of(servers: Servers) -> Channels:
    """Make what listens to these servers."""
    if servers.cluster is None:
        return WakeUps(servers.connector)
    return ClusterWakeUps(servers.connector, servers.cluster)


class ClusterWakeUps:
    """Subscribes at the nodes of a cluster. `run` must be running."""

    def __init__(self, connector: Connector, cluster: Cluster) -> None:
        self._connector = connector
        self._cluster = cluster
        self._places: dict[Subscription, Address | None] = {}
        self._nodes: dict[Address, WakeUps] = {}
        self._tasks: dict[Address, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        cluster.watch(self._rearrange)

    def subscribe(self, channel: str, listener: Listener) -> Subscription:
        """Listen to a channel, at most once each. Wait for `confirmed` before reading the log."""
        subscription = Subscription(channel.encode(), listener)
        self._place(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening."""
        address = self._places.pop(subscription, None)
        if address is not None and address in self._nodes:
            self._nodes[address].unsubscribe(subscription)

    async def run(self) -> None:
        """Keep the connections and dispatch their messages until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for address in self._nodes:
                    self._start(self._group, address)
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None

    def _place(self, subscription: Subscription) -> None:
        address = self._cluster.owner(slot_of(subscription.channel))
        self._places[subscription] = address
        if address is None:
            self._cluster.trouble()
            return
        if address not in self._nodes:
            self._nodes[address] = WakeUps(self._connector, SHARDED, address, self._hear_of_trouble)
            if self._group is not None:
                self._start(self._group, address)
        self._nodes[address].add(subscription)

    def _rearrange(self) -> None:
        for subscription, address in list(self._places.items()):
            if self._cluster.owner(slot_of(subscription.channel)) != address:
                if address is not None and address in self._nodes:
                    self._nodes[address].forget(subscription)
                subscription.confirmed.clear()
                self._place(subscription)
        for address in set(self._nodes) - self._cluster.addresses:
            del self._nodes[address]
            task = self._tasks.pop(address, None)
            if task is not None:
                task.cancel()

    def _hear_of_trouble(self, error: Exception) -> None:
        if isinstance(error, MovedError) and error.host:
            self._cluster.moved(error.slot_id, Address(error.host, error.port))
        self._cluster.trouble()

    def _start(self, group: asyncio.TaskGroup, address: Address) -> None:
        self._tasks[address] = group.create_task(self._nodes[address].run(), name=f"wake-ups of {address}")
