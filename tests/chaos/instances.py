"""Processes of one kind, each behind proxies whose addresses stay the same, and what can be done to them.

Knows nothing of what they serve, and to whom.
"""

import asyncio
import os
import random
import signal
from collections.abc import Sequence

import psutil

from tests.chaos.topology import Fault
from tests.support.http_process import HttpProcess
from tests.support.proxy import NOWHERE, Proxy, local


class Instances:
    """`kind` names one of them."""

    def __init__(self, kind: str, processes: Sequence[HttpProcess]) -> None:
        self.kind = kind
        self.processes = processes
        self.grpc = [Proxy(NOWHERE) for _ in processes]
        self.http = [Proxy(NOWHERE) for _ in processes]
        """Where a process lacks one of the two, nothing is behind its proxy."""

    async def listen(self) -> None:
        """Start the proxies: from now on addresses are known."""
        for proxy in (*self.grpc, *self.http):
            await proxy.start()

    async def start(self) -> None:
        async with asyncio.TaskGroup() as group:
            for i in range(len(self.processes)):
                group.create_task(self._start(i))

    async def stop(self) -> None:
        for process in self.processes:
            if hasattr(process, "process"):
                try:
                    if process.process.poll() is None:
                        process.process.send_signal(signal.SIGCONT)
                        # One that is killed leaves files behind.
                        await asyncio.to_thread(process.terminate)
                finally:
                    process.close()
        for proxy in (*self.grpc, *self.http):
            await proxy.stop()

    def problems(self) -> list[str]:
        """Those that have ended, though nobody ended them."""
        codes = [process.process.poll() for process in self.processes]
        return [f"{self.kind} {i} has ended by itself with {code}" for i, code in enumerate(codes) if code is not None]

    def memory(self) -> int:
        """Resident bytes of all of them."""
        return sum(resident(process.process.pid) for process in self.processes)

    def faults(self) -> list[Fault]:
        if not self.processes:
            return []
        return [
            Fault(f"{self.kind} killed", f"{self.kind}s", self.kill),
            Fault(f"{self.kind}s restarted one after the other", f"{self.kind}s", self.roll),
            Fault(f"{self.kind} frozen", f"{self.kind}s", self.freeze),
        ]

    async def kill(self, dice: random.Random, seconds: float) -> None:
        """SIGKILL one, and start it anew after a while."""
        await self._revive()
        i = dice.randrange(len(self.processes))
        await asyncio.to_thread(self.processes[i].kill)
        await asyncio.sleep(seconds)
        await self._restart(i)

    async def roll(self, dice: random.Random, seconds: float) -> None:
        """SIGTERM each in turn, and start it anew before it is the next one's turn, as a deployment does."""
        await self._revive()
        codes = []
        for i, process in enumerate(self.processes):
            codes.append(await asyncio.to_thread(process.terminate))
            await self._restart(i)
            await asyncio.sleep(seconds / len(self.processes))
        assert not any(codes), f"{self.kind}s drained and ended with {codes}"

    async def freeze(self, dice: random.Random, seconds: float) -> None:
        await self._revive()
        await freeze(dice.choice(self.processes).process.pid, seconds)

    async def _revive(self) -> None:
        """Start those anew that have ended by themselves, which is a finding: raises AssertionError."""
        problems = self.problems()
        for i, process in enumerate(self.processes):
            if process.process.poll() is not None:
                await self._restart(i)
        assert not problems, "; ".join(problems)

    async def _restart(self, i: int) -> None:
        self.processes[i].close()
        await self._start(i)

    async def _start(self, i: int) -> None:
        process = self.processes[i]
        await asyncio.to_thread(process.start)
        for proxy, address in ((self.grpc[i], process.address), (self.http[i], process.url)):
            if address:
                proxy.target = local(int(address.rpartition(":")[2]))


async def freeze(pid: int, seconds: float) -> None:
    """Stop a process, and have it go on later, as a machine does whose disk or host stalls."""
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def resident(pid: int) -> int:
    """Resident bytes of a process; 0 if it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
