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
