"""A Redis Cluster of three primaries with a replica each, and two bridges that find its nodes themselves."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from redis.exceptions import RedisError

from llmbridge.log.cluster import slot_of
from llmbridge.log.keys import Keys
from tests.chaos.instances import freeze
from tests.chaos.redis_faults import RedisFaults
from tests.chaos.replicated import Replicated, eventually
from tests.chaos.topology import DidNotBite, Fault
from tests.support import cluster
from tests.support.redis_process import RedisProcess

PRIMARIES = 3
# The bridges' defaults.
_KEYS = Keys("llm", 64)
_REST_SECONDS = 0.2


class Cluster(Replicated[cluster.Cluster]):
    """With one of `replica_acks` nothing may be lost: each primary has one replica, and no other can be promoted."""

    def __init__(self, directory: Path, replica_acks: int = 1) -> None:
        cluster.cluster_binary()
        super().__init__(directory, replica_acks, lambda: cluster.running_cluster(PRIMARIES, PRIMARIES))
        self.name = "cluster" if replica_acks else "cluster-no-acks"

    @property
    def url(self) -> str:
        return self.servers.url

    @property
    def processes(self) -> Mapping[str, RedisProcess]:
        return {f"redis-{i}": node for i, node in enumerate(self.servers.nodes)}

    def server_faults(self) -> Sequence[Fault]:
        acts = {
            "primary killed": self.kill_primary,
            "primary frozen": self.freeze_primary,
            "replica frozen": self.freeze_replica,
            "slot moved there and back": self.move,
            "connections killed by Redis": self.kill_connections,
            "script cache flushed": self.flush_scripts,
        }
        return [Fault(kind, "redis", act) for kind, act in acts.items()]

    async def kill_primary(self, dice: random.Random, seconds: float) -> None:
        """SIGKILL; some time after its replica has taken over, it comes back and becomes its replica."""
        async with self.promoting():
            killed = await self._a_primary(dice)
            await asyncio.to_thread(killed.kill)
            await eventually("a replica is promoted", lambda: len(self._primaries()) == PRIMARIES)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(killed.start)
            await self._until_well()

    async def freeze_primary(self, dice: random.Random, seconds: float) -> None:
        """For longer than the others wait, its replica takes over, and it finds that out when it goes on."""
        async with self.promoting():
            await self._freeze(await self._a_primary(dice), seconds)

    async def freeze_replica(self, dice: random.Random, seconds: float) -> None:
        ports = {primary.port for primary in await asyncio.to_thread(self._primaries)}
        await self._freeze(dice.choice([node for node in self.servers.nodes if node.port not in ports]), seconds)

    async def move(self, dice: random.Random, seconds: float) -> None:
        """Move a slot that is used to another node, key by key, and back, and that again as often as there is time."""
        deadline = time.monotonic() + seconds
        slot = await asyncio.to_thread(self._a_used_slot, dice)
        primaries = await asyncio.to_thread(self._primaries)
        home = await asyncio.to_thread(self.servers.node_of, slot)
        other = dice.choice([node for node in primaries if node is not home])
        moved = 0
        while True:
            for to in (other, home):
                try:
                    moved += await asyncio.to_thread(self._move, slot, to)
                except RedisError as error:
                    raise AssertionError(f"slot {slot} could not be moved: {error}") from error
                # What MIGRATE brings is not acknowledged by replicas, and must be there before a primary is killed.
                await self._until_well()
                await asyncio.sleep(_REST_SECONDS)
            if time.monotonic() >= deadline:
                break
        if not moved:
            raise DidNotBite(f"nothing was left in slot {slot}")

    def _a_used_slot(self, dice: random.Random) -> int:
        for partition in dice.sample(range(_KEYS.partitions), _KEYS.partitions):
            slot = slot_of(_KEYS.feed(partition))
            with self.servers.node_of(slot).client() as client:
                if client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot):
                    return slot
        raise DidNotBite("there was nothing in any slot")

    def _move(self, slot: int, to: RedisProcess) -> int:
        source = self.servers.begin_moving(slot, to)
        moved = self.servers.move_keys(slot, source, to)
        self.servers.end_moving(slot, source, to)
        return moved

    async def kill_connections(self, dice: random.Random, seconds: float) -> None:
        await RedisFaults(await self._a_primary(dice)).kill_connections(dice, seconds)

    async def flush_scripts(self, dice: random.Random, seconds: float) -> None:
        await RedisFaults(await self._a_primary(dice)).flush_scripts(dice, seconds)

    async def _freeze(self, node: RedisProcess, seconds: float) -> None:
        assert node.process is not None
        await freeze(node.process.pid, seconds)
        await self._until_well()

    async def _a_primary(self, dice: random.Random) -> RedisProcess:
        return dice.choice(await asyncio.to_thread(self._primaries))

    def _primaries(self) -> list[RedisProcess]:
        """Those that live and have slots, as a living node says."""
        nodes = [node for node in self.servers.nodes if node.alive]
        with nodes[0].client() as client:
            slots = client.execute_command("CLUSTER SLOTS", _raw=True)
        ports = {port for _, _, (_, port, *_), *_ in slots}
        return [node for node in nodes if node.port in ports]

    async def _until_well(self) -> None:
        """Wait until every node says the same of all slots, and three are replicas that are in step."""

        def well() -> bool:
            seen = set()
            followed = 0
            for node in self.servers.nodes:
                with node.client() as client:
                    info = cluster.text(client.execute_command("CLUSTER", "INFO"))
                    slots = client.execute_command("CLUSTER SLOTS", _raw=True)
                    found = client.info("replication")
                if "cluster_state:ok" not in info or "cluster_slots_ok:16384" not in info:
                    return False
                seen.add(tuple(sorted((first, last, owner[1]) for first, last, owner, *_ in slots)))
                if found["role"] == "master":
                    followed += sum(
                        found[f"slave{i}"]["state"] == "online"
                        and found["master_repl_offset"] - found[f"slave{i}"]["offset"] < 65_536
                        for i in range(found["connected_slaves"])
                    )
            return len(seen) == 1 and followed == PRIMARIES

        await eventually("the cluster's nodes agree, and each primary has its replica", well)
