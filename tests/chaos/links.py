"""What proxies do to the connections between two kinds of processes. Knows nothing of what the processes are."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from tests.chaos.topology import Fault
from tests.support.proxy import Proxy


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
