"""Brings each item to the server that has its key: one connection and one batcher a server and purpose.

Where there is a single server, there is a single lane, and nothing to decide. On a cluster, a node that does not have
a slot (any more) says so and does nothing, so that sending the item again, to the right one, is safe.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from redis.exceptions import AskError, MovedError

from llmbridge.errors import RedisUnavailable
from llmbridge.log.batcher import Batcher
from llmbridge.log.cluster import Cluster, slot_of
from llmbridge.log.exchange import Command, ConnectionBroken, Exchange, Reply
from llmbridge.log.servers import Servers
from llmbridge.redis_url import Address

Item = TypeVar("Item")
Result = TypeVar("Result")
Unit = Sequence[Command]
"""Commands on keys of one slot, to be sent without anything in between."""

MOST_REDIRECTS = 5
"""Between nodes that agree, one is enough, and two while a slot is moved."""


class Redirect(Exception):
    """Another node has the slot. Nothing was carried out."""

    def __init__(self, error: AskError) -> None:
        super().__init__(str(error))
        self.error = error


class Wire:
    """One connection to one server. `asking`: for keys of slots that are on their way there."""

    def __init__(self, servers: Servers, purpose: str, address: Address | None, asking: bool) -> None:
        cluster = servers.cluster
        troubled = cluster.trouble if cluster is not None else lambda: None
        self.address = address
        name = f"{purpose}-asking" if asking else purpose
        self.exchange = Exchange(servers.connector, name, address, troubled)
        self._asking = asking
        self._in_cluster = cluster is not None

    async def send(self, units: Sequence[Unit]) -> list[list[Reply] | Redirect]:
        """Send units in one round trip; answers for each the replies, or where to go. Raises as Exchange.send."""
        if self._asking:
            units = [(("ASKING",), *unit) for unit in units]
        replies = iter(await self.exchange.send(list(chain.from_iterable(units))))
        answers: list[list[Reply] | Redirect] = [[next(replies) for _ in unit] for unit in units]
        if self._in_cluster:
            answers = [_redirected(answer) for answer in answers]
        if self._asking:
            answers = [answer if isinstance(answer, Redirect) else answer[1:] for answer in answers]
        return answers


def _redirected(answer: list[Reply] | Redirect) -> list[Reply] | Redirect:
    if isinstance(answer, list):
        for reply in answer:
            if isinstance(reply, AskError):
                return Redirect(reply)
    return answer


@dataclass(frozen=True, slots=True)
class LaneKind(Generic[Item, Result]):
    """What the lanes of a purpose do: `key_of` tells where an item belongs, `batcher` makes what carries items.

    What is carried may answer an item with a Redirect.
    """

    purpose: str
    key_of: Callable[[Item], str | bytes]
    batcher: Callable[[Wire], Batcher[Item, Result]]


@dataclass(frozen=True, slots=True)
class _Lane(Generic[Item, Result]):
    wire: Wire
    batcher: Batcher[Item, Result]

    @property
    def host(self) -> str:
        return self.wire.address.host if self.wire.address is not None else ""

    def submit(self, item: Item) -> Awaitable[Result]:
        # While Redis can't be reached, nobody waits in a queue to be told so.
        self.wire.exchange.breaker.raise_if_open()
        return self.batcher.submit(item)

    async def run(self) -> None:
        try:
            await self.batcher.run()
        finally:
            await self.wire.exchange.close()


class Lanes(Generic[Item, Result]):
    """The lanes of one purpose. `run` must be running."""

    def __init__(self, servers: Servers, kind: LaneKind[Item, Result]) -> None:
        self._servers = servers
        self._kind = kind
        self._cluster = servers.cluster
        self._lanes: dict[tuple[Address | None, bool], _Lane[Item, Result]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._stopped = False
        self._only = self._lane(None, False) if self._cluster is None else None
        if self._cluster is not None:
            self._cluster.watch(self._retire)

    async def submit(self, item: Item, follow_ask: bool = True) -> Result:
        """Have an item carried where it belongs. Raises RedisUnavailable, and what carrying it raises.

        `follow_ask` False: not to a node that the slot is still on its way to, where some of its keys are missing.
        """
        if self._only is not None:
            return await self._only.submit(item)
        assert self._cluster is not None
        slot = slot_of(self._kind.key_of(item))
        lane = self._owner(self._cluster, slot)
        for _ in range(MOST_REDIRECTS):
            try:
                return await lane.submit(item)
            except Redirect as redirect:
                error = redirect.error
                # A node that does not say which host means its own.
                address = Address(error.host or lane.host, error.port)
                if isinstance(error, MovedError):
                    self._cluster.moved(slot, address)
                    lane = self._lane(address, False)
                elif follow_ask:
                    lane = self._lane(address, True)
                else:
                    raise RedisUnavailable(f"slot {slot} is being moved") from None
        self._cluster.trouble()
        raise RedisUnavailable(f"the nodes do not agree on who has slot {slot}")

    async def submit_to_each(self, item: Item) -> dict[Address | None, Result | RedisUnavailable]:
        """Have an item, which concerns no key and may be repeated, carried to every server."""
        if self._cluster is not None and not self._cluster.addresses:
            raise RedisUnavailable("the cluster's slots are not known yet")
        addresses = [None] if self._cluster is None else list(self._cluster.addresses)
        found: dict[Address | None, Result | RedisUnavailable] = {}
        results = await asyncio.gather(*(self._to(address, item) for address in addresses), return_exceptions=True)
        for address, result in zip(addresses, results, strict=True):
            if isinstance(result, ConnectionBroken):
                found[address] = RedisUnavailable(str(result))
            elif isinstance(result, BaseException) and not isinstance(result, RedisUnavailable):
                raise result
            else:
                found[address] = result
        return found

    async def _to(self, address: Address | None, item: Item) -> Result:
        return await self._lane(address, False).submit(item)

    async def run(self) -> None:
        """Carry until cancelled; then close the connections."""
        if self._only is not None:
            await self._only.run()
            return
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for lane in self._lanes.values():
                    self._start(self._tasks, lane)
                await asyncio.get_running_loop().create_future()
        finally:
            self._stopped = True

    def _owner(self, cluster: Cluster, slot: int) -> _Lane[Item, Result]:
        address = cluster.owner(slot)
        if address is None:
            cluster.trouble()
            raise RedisUnavailable(f"no node is known to have slot {slot}")
        return self._lane(address, False)

    def _lane(self, address: Address | None, asking: bool) -> _Lane[Item, Result]:
        lane = self._lanes.get((address, asking))
        if lane is None:
            if self._stopped:
                raise RedisUnavailable("this bridge has stopped")
            wire = Wire(self._servers, self._kind.purpose, address, asking)
            lane = self._lanes[address, asking] = _Lane(wire, self._kind.batcher(wire))
            if self._tasks is not None:
                self._start(self._tasks, lane)
        return lane

    def _start(self, tasks: asyncio.TaskGroup, lane: _Lane[Item, Result]) -> None:
        # The group awaits it, also where it has ended long before.
        tasks.create_task(lane.run(), name=f"{self._kind.purpose} lane")

    def _retire(self) -> None:
        """Let go of nodes that have no slot any more, once they have answered; and of those that a slot has reached."""
        assert self._cluster is not None
        for key in list(self._lanes):
            address, asking = key
            if asking or address not in self._cluster.addresses:
                self._lanes.pop(key).batcher.finish()
