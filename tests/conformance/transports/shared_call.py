"""What calls that many things share have in common: requests gathered into messages, a task that reads, an end."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import grpc

_Request = TypeVar("_Request")


class SharedCall(ABC, Generic[_Request]):
    """One call. What is asked for while a message is being written goes with the next."""

    def __init__(self, call: Any, new_request: Callable[[], _Request]) -> None:
        self._call = call
        self._new_request = new_request
        self._next = new_request()
        self._has_next = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    @property
    def over(self) -> bool:
        """Whether it takes nothing more."""
        return self._tasks[1].done()

    async def close(self) -> None:
        """Give the call up. Raises what was found wrong with what came."""
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            if not task.cancelled():
                task.result()

    @abstractmethod
    async def _read(self) -> None:
        """Hand out what comes, to the end."""

    async def _write(self) -> None:
        while True:
            await self._has_next.wait()
            self._has_next.clear()
            message, self._next = self._next, self._new_request()
            # How the call has ended is told to who reads.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._call.write(message)
