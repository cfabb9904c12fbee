"""What can be done to one running Redis: each ends with a Redis that works, and each must be seen to have bitten.

Knows nothing of bridges.
"""

import asyncio
import os
import random
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.chaos.clock import MISSING, Clock, offset_of
from tests.chaos.instances import freeze
from tests.chaos.topology import DidNotBite, Fault
from tests.support.redis_process import RedisProcess

_PATIENCE_SECONDS = 15.0
_CLOCK_TOLERANCE_SECONDS = 3.0
_NOTHING_LISTENS = ("127.0.0.1", "1")


class RedisFaults:
    """The faults of this Redis. `clock` is what it was started with, if its clock can be set."""

    def __init__(self, server: RedisProcess, clock: Clock | None = None) -> None:
        self.server = server
        self.losses = 0
        self._clock = clock
        said = subprocess.run([server.binary.path, "--version"], check=True, capture_output=True, text=True).stdout
        # Redis server v=7.0.15 sha=…
        self._version = int(said.split("v=", 1)[1].split(".", 1)[0])

    def faults(self) -> Sequence[Fault]:
        acts: dict[str, Callable[[random.Random, float], Awaitable[None]]] = {
            "Redis killed": self.kill,
            "Redis killed, its last second lost": self.lose_power,
            "Redis frozen": self.freeze,
            "Redis full": self.fill,
            "Redis read-only (a replica)": self.demote,
            "Redis without its replicas": self.isolate,
            "Redis loading": self.load_slowly,
            "connections killed by Redis": self.kill_connections,
            "script cache flushed": self.flush_scripts,
            "Redis' clock jumps": self.jump,
        }
        return [Fault(kind, "redis", act) for kind, act in acts.items() if kind not in self.missing()]

    def missing(self) -> dict[str, str]:
        """The faults that can't be done to this Redis, and why."""
        reasons = {}
        if self._clock is None:
            reasons["Redis' clock jumps"] = MISSING
        if self._version < 7:
            reasons["Redis loading"] = "it takes Redis 7 to answer often enough while it loads little"
        return reasons

    @property
    def pid(self) -> int:
        assert self.server.process is not None
        return self.server.process.pid

    async def kill(self, dice: random.Random, seconds: float) -> None:
        """SIGKILL, with an append-only file that is synced always: nothing that was acknowledged may be gone."""
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.server.start)

    async def lose_power(self, dice: random.Random, seconds: float) -> None:
        """Lose the last second, as `appendfsync everysec` allows.

        A killed process loses nothing that the kernel has, so the file is cut to what it was up to a second before.
        """
        await self._configure("appendfsync", "everysec")
        before = self._append_only_file()
        kept = before.stat().st_size
        await asyncio.sleep(dice.uniform(0.2, 0.9))
        self.losses += 1
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(seconds)
        lost = before.stat().st_size - kept if before == self._append_only_file() else 0
        if lost > 0:
            os.truncate(before, kept)
        await asyncio.to_thread(self.server.start)
        if lost <= 0:
            raise DidNotBite("nothing was written that could be lost")

    async def freeze(self, dice: random.Random, seconds: float) -> None:
        await freeze(self.pid, seconds)

    async def fill(self, dice: random.Random, seconds: float) -> None:
        """Allow it less memory than it uses, without eviction, and relieve it."""
        await self._refusing("OOM", seconds, ("maxmemory", "1"), ("maxmemory", "0"))

    async def isolate(self, dice: random.Random, seconds: float) -> None:
        """Have it ask for more replicas than there are."""
        await self._refusing("NOREPLICAS", seconds, ("min-replicas-to-write", "3"), ("min-replicas-to-write", "0"))

    async def demote(self, dice: random.Random, seconds: float) -> None:
        """Make it a replica of nobody that can be reached, and a primary again."""
        before = await self._refused("READONLY")
        await self._command("REPLICAOF", *_NOTHING_LISTENS)
        try:
            await self._seen("READONLY", before)
            await asyncio.sleep(seconds)
        finally:
            await self._command("REPLICAOF", "NO", "ONE")

    async def load_slowly(self, dice: random.Random, seconds: float) -> None:
        """SIGKILL, and a start that takes a while because every key does: LOADING is what it answers meanwhile."""
        # Only while it loads a snapshot does it look up after every few bytes.
        await self._command("BGREWRITEAOF")
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while await asyncio.to_thread(self._is_rewriting):
                await asyncio.sleep(0.02)
        keys = int(str(await self._command("DBSIZE")))
        slow = {
            "key-load-delay": str(round(seconds * 1e6 / max(keys, 1)) + 1),
            "loading-process-events-interval-bytes": "1024",
        }
        await asyncio.to_thread(self.server.kill)
        self.server.config |= slow
        try:
            await asyncio.to_thread(self.server.start)
        finally:
            for name in slow:
                del self.server.config[name]
        if not await self._refused("LOADING"):
            raise DidNotBite("Redis has answered nobody LOADING")

    def _is_rewriting(self) -> bool:
        with self.server.client() as client:
            state = client.info("persistence")
        return bool(state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"])

    async def kill_connections(self, dice: random.Random, seconds: float) -> None:
        """Close the bridges' connections from Redis' side, again and again."""
        killed = 0
        for _ in range(5):
            for kind in ("normal", "pubsub"):
                killed += int(str(await self._command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")))
            await asyncio.sleep(seconds / 5)
        if not killed:
            raise DidNotBite("there were no connections to kill")

    async def flush_scripts(self, dice: random.Random, seconds: float) -> None:
        before = await self._refused("NOSCRIPT")
        for _ in range(10):
            await self._command("SCRIPT", "FLUSH")
            await asyncio.sleep(seconds / 10)
        await self._seen("NOSCRIPT", before)

    async def jump(self, dice: random.Random, seconds: float) -> None:
        """Set its clock forward and back, by less than the limits that the bridges' settings put on silence."""
        assert self._clock is not None
        for offset in (dice.uniform(5.0, 20.0), -dice.uniform(5.0, 20.0), 0.0):
            self._clock.set(offset)
            shown = offset_of(await asyncio.to_thread(self._time))
            assert abs(shown - offset) < _CLOCK_TOLERANCE_SECONDS, f"the clock is off by {shown}, not {offset}"
            await asyncio.sleep(seconds / 3)

    def _time(self) -> tuple[int, int]:
        with self.server.client() as client:
            seconds, microseconds = client.time()
        return int(seconds), int(microseconds)

    async def _refusing(self, error: str, seconds: float, begin: tuple[str, str], end: tuple[str, str]) -> None:
        before = await self._refused(error)
        await self._configure(*begin)
        try:
            await self._seen(error, before)
            await asyncio.sleep(seconds)
        finally:
            await self._configure(*end)

    async def _seen(self, error: str, before: int) -> None:
        """Wait until it has answered somebody so since."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while await self._refused(error) <= before:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise DidNotBite(f"Redis has answered nobody {error}") from None

    async def _refused(self, error: str) -> int:
        """Count how often it has answered so since its start. Before 7.0, what a script meets is counted as ERR."""

        def ask() -> int:
            with self.server.client() as client:
                found = client.info("errorstats")
            names = {error, "ERR"} if self._version < 7 else {error}
            return sum(int(found.get(f"errorstat_{name}", {"count": 0})["count"]) for name in names)

        return await asyncio.to_thread(ask)

    async def _configure(self, name: str, value: str) -> None:
        await self._command("CONFIG", "SET", name, value)

    async def _command(self, *words: str) -> object:
        def run() -> object:
            with self.server.client() as client:
                return client.execute_command(*words)

        return await asyncio.to_thread(run)

    def _append_only_file(self) -> Path:
        """The file that commands are appended to now; Redis 7 makes a new one at every rewrite."""
        parts = sorted(self.server.directory.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime)
        return parts[-1] if parts else self.server.directory / "appendonly.aof"
