"""Looks for tasks that nobody ended."""

import asyncio
from typing import Any


async def no_tasks_left(before: set[asyncio.Task[Any]]) -> None:
    """Check that every task begun since `before` has ended; grpc's own need some turns of the loop for that."""
    left: set[asyncio.Task[Any]] = set()
    current = asyncio.current_task()
    for _ in range(1_000):
        left = {task for task in asyncio.all_tasks() - before if task is not current}
        if not left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"tasks left: {left}")
