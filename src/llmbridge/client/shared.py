"""Calls that everybody of a client shares: one at a time, opened by the first who needs it.

Knows when there is to be another call, and nothing of what is said on it.
"""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from llmbridge.client.conversation import HowItEnded
from llmbridge.client.errors import ClientClosed
from llmbridge.client.tasks import Tasks

# How long a call may take to end in good order when the client is closed: the bridge then does not count it as broken.
_FAREWELL_SECONDS = 1.0


class SharedCall(Protocol):
    """A call that can be shared."""

    @property
    def accepting(self) -> bool:
        """Whether anything new may go to it."""

    async def run(self) -> None:
        """Carry it until it is over."""

    def tell_all(self, how: HowItEnded) -> None:
        """Tell everybody who waits how it ended, where `run` has not."""

    def finish(self) -> bool:
        """Take nothing new. Returns whether it will now end by itself: nobody waits for anything on it."""


_Call = TypeVar("_Call", bound=SharedCall)


class Shared(Generic[_Call]):
    """The call to which everything new goes, and those before it that somebody still uses."""

    def __init__(self, make: Callable[[], _Call], name: str) -> None:
        self._make = make
        self._name = name
        self._call: _Call | None = None
        self._calls: list[_Call] = []
        self._tasks = Tasks()
        self._closed = False

    def current(self) -> _Call:
        """Give the call for something new, opening one if need be. Raises ClientClosed."""
        if self._closed:
            raise ClientClosed
        if self._call is None or not self._call.accepting:
            self._call = self._make()
            self._calls.append(self._call)
            self._tasks.start(self._carry(self._call), self._name)
        return self._call

    async def close(self) -> None:
        """End all calls; those who wait for something get ClientClosed."""
        self._closed = True
        will_end = [call.finish() for call in self._calls]
        try:
            await self._tasks.close(_FAREWELL_SECONDS if all(will_end) else 0.0)
        finally:
            for call in self._calls:
                call.tell_all(ClientClosed)

    async def _carry(self, call: _Call) -> None:
        await call.run()
        self._calls.remove(call)
