"""Watching the lifecycle feed: which streams begin and end, for workers that must do something for every answer.

Owns the call and what came and was not returned yet; which events there are left, the group knows, at the bridge.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

import grpc

from llmbridge.client.connection import Connection
from llmbridge.client.errors import ProtocolViolation, Unavailable
from llmbridge.client.groups import GroupAdmin, GroupName
from llmbridge.client.retry import Outage
from llmbridge.client.values import FinishReason, name_of
from llmbridge.model.names import StreamName
from llmbridge.v1.lifecycle_service_pb2 import (
    LIFECYCLE_EVENT_TYPE_COMPLETED,
    LifecycleEvent,
    WatchStreamsRequest,
    WatchStreamsResponse,
)
from llmbridge.v1.token_pb2 import Completion

_Call: TypeAlias = "grpc.aio.UnaryStreamCall[WatchStreamsRequest, WatchStreamsResponse]"

_log = logging.getLogger(__name__)


class EventFacts:
    """What an event says: a stream was created, or completed. `info` is the contract's message."""

    __slots__ = ()
    info: LifecycleEvent

    @property
    def stream(self) -> StreamName:
        """The stream it happened to. With `cursor` it names the event, however often that is delivered."""
        return name_of(self.info.stream)

    @property
    def cursor(self) -> str:
        """The cursor of the completion; of a created stream, the one before its first record."""
        return self.info.cursor

    @property
    def start_cursor(self) -> str:
        """Subscribing after it reads this stream from its beginning, or raises HistoryLost if it is gone."""
        return self.info.start_cursor

    @property
    def completed(self) -> bool:
        """Whether the stream has its end; else it was created."""
        return self.info.type == LIFECYCLE_EVENT_TYPE_COMPLETED

    @property
    def completion(self) -> Completion | None:
        """The stream's end, with usage where the producer told it."""
        return self.info.completion if self.info.HasField("completion") else None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the stream ended."""
        return FinishReason.of(self.info.completion) if self.info.HasField("completion") else None


@dataclass(frozen=True, slots=True)
class StreamEvent(EventFacts):
    """A delivery of an event.

    Settle it, by one of its methods, within the group's deadline; all of them tell whether it was still pending, and
    raise GroupNotFound, or Unavailable when the retry policy gave up.
    """

    info: LifecycleEvent
    _group: GroupName
    _groups: GroupAdmin

    async def acknowledge(self) -> bool:
        """Say that it is done: it will not be delivered to this group again."""
        return (await self._groups.acknowledge(self._group, [self.info.ack_id]))[0]

    async def extend(self) -> bool:
        """Ask for the full deadline from now on. False: somebody else has it by now, stop working on it."""
        return (await self._groups.extend(self._group, [self.info.ack_id]))[0]

    async def reject(self, *, dead_letter: bool = False, reason: str = "") -> bool:
        """Give it back: to be delivered again at once, or to the dead letters with a reason."""
        return (await self._groups.reject(self._group, [self.info.ack_id], dead_letter=dead_letter, reason=reason))[0]


class Watch:
    """A member of a group that shares all events, as an async iterator of StreamEvents that never ends by itself.

    Reconnects by itself, with jittered backoff: nothing is lost, and what was not acknowledged comes again, perhaps to
    another member. `anext` may be cancelled (by a timeout, say) and called again. Iterating raises GroupNotFound when
    the group was deleted (going on makes it anew), GroupSettingsDiffer, LimitExceeded when the bridge has too many
    members, Disconnected, or Unavailable when an outage lasts longer than `retry_for` seconds (None: never). After an
    error, iterating again tries again.

    Closing it (`aclose()`, the end of `async with`) gives back what was not acknowledged.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        group: str,
        consumer: str,
        max_outstanding_events: int,
        ack_deadline_ms: int,
        max_deliveries: int,
        retry_for: float | None,
        silence_timeout: float,
    ) -> None:
        self.missed = 0
        """How many events the bridge said were gone, for their age, before any member of the group got them."""
        self._connection = connection
        self._request = WatchStreamsRequest(
            group=group,
            consumer=consumer,
            max_outstanding_events=max_outstanding_events,
            ack_deadline_ms=ack_deadline_ms,
            max_deliveries=max_deliveries,
        )
        self._group = GroupName(None, group)
        self._groups = GroupAdmin(connection)
        self._silence_timeout = silence_timeout
        self._outage = Outage(connection.policy, retry_for)
        self._call: _Call | None = None
        # Outlives an `anext` that is cancelled: with its read grpc would end the call, and give back what is in work.
        self._read: asyncio.Task[WatchStreamsResponse | None] | None = None
        self._read_began = 0.0
        self._waiting: deque[LifecycleEvent] = deque()
        self._iterating = False
        self._loop = asyncio.get_running_loop()

    async def aclose(self) -> None:
        """End the call. Iterating afterwards begins another one."""
        await self._drop_call()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # grpc keeps an open call alive by itself. Garbage may be collected in any thread, and after the loop's end.
        call = getattr(self, "_call", None)
        if call is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call.cancel)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        if self._iterating:
            raise RuntimeError("a watch can be iterated by one task only; hand its events to others")
        self._iterating = True
        try:
            while not self._waiting:
                try:
                    self._take(await self._response())
                except Unavailable as error:
                    await self._drop_call()
                    await self._wait_before_resuming(error)
                except asyncio.CancelledError:
                    raise
                except BaseException:
                    await self._drop_call()
                    raise
            return StreamEvent(self._waiting.popleft(), self._group, self._groups)
        finally:
            self._iterating = False

    async def _response(self) -> WatchStreamsResponse:
        if self._call is None:
            with self._connection.translating(own_deadline=False):
                self._call = self._connection.lifecycle.WatchStreams(self._request)
        if self._read is None:
            self._read = asyncio.create_task(_read(self._connection, self._call), name="watch")
            self._read.add_done_callback(_heed)
            self._read_began = self._loop.time()
        await asyncio.wait([self._read], timeout=self._read_began + self._silence_timeout - self._loop.time())
        if not self._read.done():
            raise Unavailable(f"no sign of life for {self._silence_timeout:g} s")
        read, self._read = self._read, None
        response = read.result()
        if response is None:
            raise ProtocolViolation("the feed ended")
        return response

    def _take(self, response: WatchStreamsResponse) -> None:
        self._outage.over()
        if response.missed:
            self.missed += response.missed
            _log.warning("%d events are gone that no member of the group got", response.missed)
        self._waiting.extend(response.events)

    async def _wait_before_resuming(self, error: Unavailable) -> None:
        """Wait as backoff and bridge ask; raise `error` if the outage would then have lasted for too long."""
        delay = self._outage.next_delay(self._loop.time(), error.retry_delay)
        if delay is None:
            # The next iteration, should there be one, gets the same time again.
            raise error
        await asyncio.sleep(delay)

    async def _drop_call(self) -> None:
        call, self._call = self._call, None
        read, self._read = self._read, None
        # Their deliveries end with the call: they come again.
        self._waiting.clear()
        if call is not None:
            call.cancel()
        if read is not None:
            await asyncio.wait([read])


async def _read(connection: Connection, call: _Call) -> WatchStreamsResponse | None:
    """Read from a call; None when it has ended well."""
    # Not a method: it must not keep a watch alive that nobody refers to any more.
    with connection.translating(own_deadline=False):
        response = await call.read()
    return response if isinstance(response, WatchStreamsResponse) else None


def _heed(read: asyncio.Task[WatchStreamsResponse | None]) -> None:
    """Take note of how a read ended that perhaps nobody waits for: its watch was let go, or its client closed."""
    if not read.cancelled():
        read.exception()
