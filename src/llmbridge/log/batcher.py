"""Natural batching: whatever waits while one exchange is under way goes with the next.

gRPC hands calls over one by one, each taking longer than a round trip to a near Redis, so on a busy bridge hardly two
would ever wait together. Therefore a batch may also be held back for a few ms, but only behind another one that has
just gone and came from other sources: a single producer, however fast, and a bridge with little to do never wait.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from llmbridge.errors import RedisUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Carries items in the order they were submitted, one batch at a time.

    `carry` answers a batch with a result or an exception for each item; what it raises becomes the exception of each.
    An item may be a group that goes undivided: `count_of` says how much of `max_items` it takes. One larger than the
    limits goes alone.
    """

    def __init__(
        self,
        carry: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        max_items: int,
        size_of: Callable[[Item], int],
        max_bytes: int,
        source_of: Callable[[Item], object] = lambda _: None,
        linger_seconds: float = 0.0,
        count_of: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        self._carry = carry
        self._max_items = max_items
        self._size_of = size_of
        self._max_bytes = max_bytes
        self._source_of = source_of
        self._linger_seconds = linger_seconds
        self._count_of = count_of
        self._waiting_count = 0
        self._carried_at = -math.inf
        self._carried_source: object = None
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._idle: asyncio.Future[None] | None = None
        self._closed = False

    def submit(self, item: Item) -> "asyncio.Future[Result]":
        """Have one item carried; the future gets its result. Cancelling that does not take the item back."""
        if self._closed:
            raise RedisUnavailable("this bridge has stopped using this connection")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._waiting_count += self._count_of(item)
        self._wake()
        return future

    async def run(self) -> None:
        """Carry until cancelled, or finished; then what still waits fails with RedisUnavailable (it was never sent)."""
        try:
            while True:
                while self._waiting:
                    await self._linger()
                    await self._carry_one_batch()
                if self._closed:
                    return
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
        finally:
            self._closed = True
            while self._waiting:
                _, future = self._waiting.popleft()
                _settle(future, RedisUnavailable("this bridge has stopped"))

    def finish(self) -> None:
        """Take no more items, and end when those that wait are carried."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _linger(self) -> None:
        if self._waiting_count >= self._max_items:
            return  # There is a full batch already.
        source = self._source_of(self._waiting[0][0])
        if self._linger_seconds and source != self._carried_source:
            pause = self._carried_at + self._linger_seconds - asyncio.get_running_loop().time()
            if pause > 0:
                await asyncio.sleep(pause)

    async def _carry_one_batch(self) -> None:
        items: list[Item] = []
        futures: list[asyncio.Future[Result]] = []
        count = size = 0
        while self._waiting and size < self._max_bytes:
            item, future = self._waiting[0]
            more = self._count_of(item)
            if items and count + more > self._max_items:
                break
            self._waiting.popleft()
            items.append(item)
            futures.append(future)
            count += more
            size += self._size_of(item)
        self._waiting_count -= count
        self._carried_at = asyncio.get_running_loop().time()
        self._carried_source = self._source_of(items[-1])
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
