"""Those who wait for something to happen, again and again. Knows not what it is.

An asyncio.Event would be set and cleared at once; a new one for each time costs several times as much.
"""

import asyncio


class Waiters:
    """Tasks that wait for the next time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Wait until it happens the next time."""
        waiter = self._loop.create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def tell(self) -> None:
        """It has happened: let all go on who wait now."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
