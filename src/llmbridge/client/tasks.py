"""Ending tasks and work properly when cancellation comes in between. Knows nothing of the bridge."""

import asyncio
from collections.abc import Coroutine
from typing import Any

# How long to wait before cancelling again a task that swallowed its cancellation.
_CANCEL_AGAIN = 1.0


async def outlast(work: Coroutine[Any, Any, None]) -> None:
    """Carry `work`, which must be bounded by itself, to its end even if the caller is cancelled meanwhile.

    Cancel scopes may cancel again and again, and with a plain `await` the first of them would end the work. The
    cancellation is raised afterwards.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


async def stop(task: asyncio.Task[None]) -> None:
    """Cancel the task and wait until it has ended. If it had failed before, raises what would otherwise pass unseen."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN)
    if not task.cancelled():
        task.result()


class Tasks:
    """Owns tasks that outlive the calls which start them: all of them have ended when `close` returns."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Carry `work` in a task."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._heed)

    async def close(self, patience: float) -> None:
        """Wait so many seconds for the tasks to end, then cancel them. Raises what one of them has failed with."""
        if self._tasks and patience:
            await asyncio.wait(self._tasks, timeout=patience)
        for task in tuple(self._tasks):
            await stop(task)
            self._tasks.discard(task)

    def _heed(self, task: asyncio.Task[None]) -> None:
        # One that has failed is kept, for `close` to raise it.
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)
