"""Whether processes have ended."""

import asyncio
from collections.abc import Iterable

import psutil


async def ended(pids: Iterable[int], seconds: float = 20.0) -> bool:
    """Wait until none of them runs any more; False if one still does after `seconds`.

    One that has ended and that nobody has asked for its exit code yet has ended: who adopts orphans may take its time.
    """
    try:
        async with asyncio.timeout(seconds):
            while any(_runs(pid) for pid in pids):
                await asyncio.sleep(0.02)
    except TimeoutError:
        return False
    return True


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
