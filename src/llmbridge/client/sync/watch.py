"""Watching which streams begin and end, for programs without an event loop."""

from types import TracebackType
from typing import Self

from llmbridge.client import watch as asyncio_watch
from llmbridge.client.sync.face import Face, blocking, next_of
from llmbridge.client.sync.loop_thread import LoopThread


class StreamEvent(Face[asyncio_watch.StreamEvent], asyncio_watch.EventFacts):
    """A delivery of an event; as llmbridge.client.StreamEvent. Settle it within the group's deadline."""

    def __init__(self, thread: LoopThread, event: asyncio_watch.StreamEvent) -> None:
        super().__init__(thread, event)
        self.info = event.info

    acknowledge = blocking(asyncio_watch.StreamEvent.acknowledge)
    extend = blocking(asyncio_watch.StreamEvent.extend)
    reject = blocking(asyncio_watch.StreamEvent.reject)


class Watch(Face[asyncio_watch.Watch]):
    """A member of a group that shares all events, as an iterator that never ends by itself; as llmbridge.client.Watch.

    An event that was on its way to the loop at Ctrl-C comes again once this is closed.
    """

    @property
    def missed(self) -> int:
        """How many events the bridge said were gone, for their age, before any member of the group got them."""
        return self._original.missed

    close = blocking(asyncio_watch.Watch.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamEvent:
        return StreamEvent(self._thread, next_of(self._thread, self._original))
