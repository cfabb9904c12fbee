"""Classes for programs without an event loop, made of asyncio ones: a method waits for what the other's would return.

Knows nothing of the bridge.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from llmbridge.client.sync.loop_thread import LoopThread

_Original = TypeVar("_Original")
_Original_co = TypeVar("_Original_co", covariant=True)
_Item = TypeVar("_Item")
_Item_co = TypeVar("_Item_co", covariant=True)
_Result = TypeVar("_Result")
_P = ParamSpec("_P")


class Faced(Protocol[_Original_co]):
    """Has what it stands for, and the thread that this belongs to."""

    @property
    def _thread(self) -> LoopThread: ...

    @property
    def _original(self) -> _Original_co: ...


class Face(Generic[_Original]):
    """Stands for something that belongs to the event loop of a thread."""

    def __init__(self, thread: LoopThread, original: _Original) -> None:
        self._thread = thread
        self._original = original


def blocking(
    method: Callable[Concatenate[_Original, _P], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[Faced[_Original], _P], _Result]:
    """Make a method that has the original's carried out, and waits for it."""

    @wraps(method)
    def run(self: Faced[_Original], /, *arguments: _P.args, **options: _P.kwargs) -> _Result:
        return self._thread.run(method(self._original, *arguments, **options))

    return run


def blocking_each(
    method: Callable[Concatenate[_Original, _P], AsyncIterator[_Item]],
) -> Callable[Concatenate[Faced[_Original], _P], Iterator[_Item]]:
    """Make a method that iterates over what the original's does, and waits for each item."""

    @wraps(method)
    def each(self: Faced[_Original], /, *arguments: _P.args, **options: _P.kwargs) -> Iterator[_Item]:
        items = method(self._original, *arguments, **options)
        while True:
            try:
                item = next_of(self._thread, items)
            except StopIteration:
                return
            yield item

    return each


class _Next(Protocol[_Item_co]):
    def __anext__(self) -> Awaitable[_Item_co]: ...


def next_of(thread: LoopThread, source: _Next[_Item_co]) -> _Item_co:
    """Have the next item fetched. Raises StopIteration at the end."""

    async def fetch() -> _Item_co:
        return await source.__anext__()

    try:
        return thread.run(fetch())
    except StopAsyncIteration:
        raise StopIteration from None
