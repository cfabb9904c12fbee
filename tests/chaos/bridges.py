"""Bridges as processes, each behind a proxy whose address stays the same, and what can be done to them and to the way.

Knows nothing of what their Redis is: a topology tells each its settings.
"""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tests.chaos.topology import Fault
from tests.support.bridge_process import BridgeProcess
from tests.support.proxy import Proxy


class Bridges:
    """As many bridges as there are `environments`."""

    def __init__(self, environments: Sequence[Mapping[str, str]], directory: Path) -> None:
        self.processes = [
            BridgeProcess(dict(environment), _logging_to(directory / f"bridge-{i}.log"))
            for i, environment in enumerate(environments)
        ]
        self.proxies = [Proxy(("127.0.0.1", 1)) for _ in environments]

    async def start(self) -> None:
        for proxy in self.proxies:
            await proxy.start()
        async with asyncio.TaskGroup() as group:
            for i in range(len(self.processes)):
                group.create_task(self._start(i))

    async def stop(self) -> None:
        for bridge in self.processes:
            if hasattr(bridge, "process"):
                if bridge.process.poll() is None:
                    bridge.process.send_signal(signal.SIGCONT)
                await asyncio.to_thread(bridge.close)
        for proxy in self.proxies:
            await proxy.stop()

    async def _start(self, i: int) -> None:
        await asyncio.to_thread(self.processes[i].start)
        host, _, port = self.processes[i].address.rpartition(":")
        self.proxies[i].target = (host, int(port))

    @property
    def addresses(self) -> list[str]:
        ports = [proxy.port for proxy in self.proxies]
        return [",".join(f"127.0.0.1:{port}" for port in ports[i:] + ports[:i]) for i in range(len(ports))]

    def problems(self) -> list[str]:
        """Those that have ended, though nobody ended them."""
        codes = [bridge.process.poll() for bridge in self.processes]
        return [f"bridge {i} has ended by itself with {code}" for i, code in enumerate(codes) if code is not None]

    def memory(self) -> int:
        """Resident bytes of all of them."""
        return sum(resident(bridge.process.pid) for bridge in self.processes)

    def faults(self) -> list[Fault]:
        return [
            Fault("bridge killed", "bridges", self.kill),
            Fault("bridges restarted one after the other", "bridges", self.roll),
            Fault("bridge frozen", "bridges", self.freeze),
            *link_faults("clients and bridges", self.proxies),
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
        for i, bridge in enumerate(self.processes):
            codes.append(await asyncio.to_thread(bridge.terminate))
            await self._restart(i)
            await asyncio.sleep(seconds / len(self.processes))
        assert not any(codes), f"bridges drained and ended with {codes}"

    async def freeze(self, dice: random.Random, seconds: float) -> None:
        await self._revive()
        await freeze(dice.choice(self.processes).process.pid, seconds)

    async def _revive(self) -> None:
        """Start those anew that have ended by themselves, which is a finding: raises AssertionError."""
        problems = self.problems()
        for i, bridge in enumerate(self.processes):
            if bridge.process.poll() is not None:
                await self._restart(i)
        assert not problems, "; ".join(problems)

    async def _restart(self, i: int) -> None:
        self.processes[i].close()
        await self._start(i)


def _logging_to(log: Path) -> tuple[str, ...]:
    """The bridge's usual command, with its log appended to a file. The shell becomes the bridge."""
    return ("/bin/sh", "-c", f"exec \"$@\" 2>>'{log}'", "sh", *BridgeProcess().command)


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


def link_faults(between: str, proxies: Sequence[Proxy]) -> list[Fault]:
    """What proxies do to the connections between two kinds of processes; each fault takes one or all of them."""

    def fault(what: str, act: Callable[[Proxy, float], Awaitable[None]]) -> Fault:
        async def on_some(dice: random.Random, seconds: float) -> None:
            chosen = list(proxies) if dice.random() < 0.5 else [dice.choice(proxies)]
            async with asyncio.TaskGroup() as group:
                for proxy in chosen:
                    group.create_task(_carry_out(act, proxy, seconds))

        return Fault(f"{what} between {between}", f"links of {between}", on_some)

    return [
        fault("RST", _reset),
        fault("FIN", _finish),
        fault("refusal", _refuse),
        fault("delay", _delay),
        fault("half-open connections", _half_open),
        fault("trickle", _trickle),
    ]


async def _carry_out(act: Callable[[Proxy, float], Awaitable[None]], proxy: Proxy, seconds: float) -> None:
    try:
        await act(proxy, seconds)
    finally:
        await proxy.heal()


async def _reset(proxy: Proxy, seconds: float) -> None:
    for _ in range(3):
        proxy.reset_all()
        await asyncio.sleep(seconds / 3)


async def _finish(proxy: Proxy, seconds: float) -> None:
    for _ in range(3):
        proxy.finish_all()
        await asyncio.sleep(seconds / 3)


async def _refuse(proxy: Proxy, seconds: float) -> None:
    proxy.refuse()
    proxy.reset_all()
    await asyncio.sleep(seconds)


async def _delay(proxy: Proxy, seconds: float) -> None:
    proxy.delay(min(seconds / 10, 0.2))
    await asyncio.sleep(seconds)


async def _half_open(proxy: Proxy, seconds: float) -> None:
    """Nobody is told, and nothing is repaired: both sides must notice by themselves, which may take them longer."""
    proxy.half_open()
    await asyncio.sleep(seconds)


async def _trickle(proxy: Proxy, seconds: float) -> None:
    proxy.trickle()
    await asyncio.sleep(seconds)
