"""Natural batching: whatever waits while one exchange is under way goes with the next. Nothing waits to be filled."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from llmbridge.errors import RedisUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Carries items in the order they were submitted, one batch at a time.

    `carry` answers a batch with a result or an exception for each item; what it raises becomes the exception of each.
    """

    def __init__(
        self,
        carry: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        max_items: int,
        size_of: Callable[[Item], int],
        max_bytes: int,
    ) -> None:
        self._carry = carry
        self._max_items = max_items
        self._size_of = size_of
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    async def submit(self, item: Item) -> Result:
        """Have one item carried and return its result. Cancelling the caller does not take the item back."""
        if self._closed:
            raise RedisUnavailable("this bridge has stopped")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._wake.set()
        return await future

    async def run(self) -> None:
        """Carry until cancelled; then what still waits fails with RedisUnavailable (it was never sent)."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    await self._carry_one_batch()
        finally:
            self._closed = True
            while self._waiting:
                _, future = self._waiting.popleft()
                _settle(future, RedisUnavailable("this bridge has stopped"))

    async def _carry_one_batch(self) -> None:
        items: list[Item] = []
        futures: list[asyncio.Future[Result]] = []
        size = 0
        while self._waiting and len(items) < self._max_items and (not items or size < self._max_bytes):
            item, future = self._waiting.popleft()
            items.append(item)
            futures.append(future)
            size += self._size_of(item)
        results: Sequence[Result | Exception]
        try:
            results = await self._carry(items)
        except Exception as error:  # every item's caller gets it: none is lost, and the batcher goes on
            results = [error] * len(items)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        for future, result in zip(futures, results, strict=True):
            _settle(future, result)


def _settle(future: asyncio.Future[Result], result: Result | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
