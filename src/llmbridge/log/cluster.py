"""Which node of a Redis Cluster has which slot, as far as this process knows, and finding out anew.

The map may be behind at any time without harm: a node that does not have a slot says who has (MOVED) and does nothing.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ClusterDownError, RedisError, ResponseError

from llmbridge.errors import RedisUnavailable
from llmbridge.log.connections import Connector, pause_seconds
from llmbridge.log.exchange import ConnectionBroken, Exchange, Reply
from llmbridge.log.scripts import checked
from llmbridge.redis_url import Address

OLDEST_VERSION = (7, 0)
"""Sharded Pub/Sub came with it."""

CALM_SECONDS = 5.0
"""After so long without trouble the next is taken for a new one, and looked into at once."""

logger = logging.getLogger(__name__)


class WrongRedis(Exception):
    """The servers answer, and are not what REDIS_URL says, or too old for it."""


def slot_of(key: str | bytes) -> int:
    """Give the slot of a key or of a channel of sharded Pub/Sub."""
    return int(key_slot(key.encode() if isinstance(key, str) else key))


class Cluster:
    """The map. `load` it first; `run` must be running to keep it fresh."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._trouble = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._ask_first: Address | None = None
        self.addresses: frozenset[Address] = frozenset()
        """The nodes that have slots."""

    def owner(self, slot: int) -> Address | None:
        """Say who has a slot; None where nobody is known to."""
        return self._owners[slot]

    def watch(self, listener: Callable[[], None]) -> None:
        """Have a listener called after each change of the map."""
        self._listeners.append(listener)

    def trouble(self) -> None:
        """Have the map looked at soon: something failed that may be due to it."""
        self._trouble.set()

    def moved(self, slot: int, owner: Address) -> None:
        """Note what a node said of one slot; more may have moved."""
        self._ask_first = owner
        if self._owners[slot] != owner:
            self._owners[slot] = owner
            self._changed()
        self.trouble()

    async def load(self) -> bool:
        """Get the map from whichever node answers first; tells whether it is another one than before.

        Raises RedisUnavailable where none answers, and WrongRedis.
        """
        known = [*self.addresses, *self._connector.url.addresses]
        random.shuffle(known)
        if self._ask_first is not None:
            # Once: it may be gone by the next time.
            known.insert(0, self._ask_first)
            self._ask_first = None
        problems: list[str] = []
        for address in dict.fromkeys(known):
            try:
                owners = await self._ask(address)
            except (RedisUnavailable, ConnectionBroken, RedisError) as error:
                problems.append(f"{address}: {error}")
                continue
            changed = owners != self._owners
            if changed:
                self._owners = owners
                self._changed()
            return changed
        raise RedisUnavailable(f"no node of the cluster tells its slots: {'; '.join(problems)}")

    async def run(self) -> None:
        """Look at the map whenever there is trouble, less and less often while that does not help; until cancelled."""
        fruitless = 0
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            await self._trouble.wait()
            self._trouble.clear()
            if loop.time() - looked_at > CALM_SECONDS:
                fruitless = 0
            try:
                changed = await self.load()
            except (RedisUnavailable, WrongRedis) as error:
                logger.warning("the cluster's map of slots can't be fetched: %s", error)
                self._trouble.set()
                changed = False
            fruitless = 1 if changed else fruitless + 1
            looked_at = loop.time()
            await asyncio.sleep(pause_seconds(fruitless))

    async def _ask(self, address: Address) -> list[Address | None]:
        exchange = Exchange(self._connector, "map", address)
        try:
            slots, info = await exchange.send([("CLUSTER", "SLOTS"), ("INFO", "server")])
        finally:
            await exchange.close()
        if isinstance(slots, ResponseError) and "cluster support disabled" in str(slots):
            raise WrongRedis(f"{address} is no node of a Redis Cluster: use redis:// or rediss://")
        _check_version(address, checked(info))
        return _owners(checked(slots), address)

    def _changed(self) -> None:
        self.addresses = frozenset(owner for owner in self._owners if owner is not None)
        for listener in self._listeners:
            listener()


def _owners(reply: Reply, asked: Address) -> list[Address | None]:
    owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, primary, *_ in reply:
        # A node that does not know its own address yet leaves it out.
        host = primary[0].decode() if primary[0] else ""
        owner = Address(host if host not in ("", "?") else asked.host, int(primary[1]))
        owners[int(first) : int(last) + 1] = [owner] * (int(last) - int(first) + 1)
    if not any(owners):
        raise ClusterDownError("no slot is assigned to any node")
    return owners


def _check_version(address: Address, info: bytes) -> None:
    found = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    version = tuple(int(part) for part in found["redis_version"].split(".")[:2])
    if version < OLDEST_VERSION:
        raise WrongRedis(
            f"{address} is Redis {found['redis_version']}: on Redis Cluster the bridge needs "
            f"{'.'.join(map(str, OLDEST_VERSION))} or later (sharded Pub/Sub)"
        )
