"""Watchers of the lifecycle feed as a client in any language would be them, and what they hold."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc

from llmbridge.v1 import group_service_pb2 as group_pb
from llmbridge.v1 import lifecycle_service_pb2 as pb
from llmbridge.v1.group_service_pb2_grpc import GroupServiceStub
from llmbridge.v1.lifecycle_service_pb2_grpc import LifecycleServiceStub
from tests.support.calls import PATIENCE_SECONDS

CREATED = pb.LIFECYCLE_EVENT_TYPE_CREATED
COMPLETED = pb.LIFECYCLE_EVENT_TYPE_COMPLETED

Key = tuple[str, str, int]


def key_of(event: pb.LifecycleEvent) -> Key:
    """Name an event: session, response, and what happened."""
    return event.stream.session_id, event.stream.response_id, event.type


@dataclass
class Watched:
    """What watchers of one group hold together. Several may take into the same one."""

    events: list[pb.LifecycleEvent] = field(default_factory=list)
    missed: int = 0

    @property
    def keys(self) -> Counter[Key]:
        return Counter(map(key_of, self.events))

    def take(self, message: pb.WatchStreamsResponse) -> None:
        self.missed += message.missed
        self.events += message.events
        for event in message.events:
            assert event.delivery_attempt >= 1
            assert event.ack_id
            assert event.cursor
            assert (event.type == COMPLETED) is event.HasField("completion") is bool(event.sealer)


@dataclass
class WatchCall:
    """One watcher's call."""

    channel: grpc.aio.Channel
    call: Any
    group: str
    watched: Watched = field(default_factory=Watched)

    def __post_init__(self) -> None:
        self.groups: Any = GroupServiceStub(self.channel)
        self._reading: asyncio.Future[Any] | None = None

    @classmethod
    async def begin(
        cls, channel: grpc.aio.Channel, group: str = "g", watched: Watched | None = None, **fields: Any
    ) -> "WatchCall":
        """Watch, and wait until the call is attached."""
        stub: Any = LifecycleServiceStub(channel)
        call = stub.WatchStreams(pb.WatchStreamsRequest(group=group, **fields))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await call.initial_metadata()
        return cls(channel, call, group, watched if watched is not None else Watched())

    async def message(self) -> pb.WatchStreamsResponse:
        """Wait for a message that is no heartbeat."""
        message = await self._message(PATIENCE_SECONDS)
        assert message is not None, "nothing came"
        return message

    async def events(self, count: int) -> list[pb.LifecycleEvent]:
        """Wait for so many events; exactly so many must come."""
        events: list[pb.LifecycleEvent] = []
        while len(events) < count:
            events += (await self.message()).events
        assert len(events) == count
        return events

    async def event(self) -> pb.LifecycleEvent:
        """Wait for one event, which must come alone."""
        [event] = await self.events(1)
        return event

    async def is_quiet(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for so long."""
        return await self._message(seconds) is None

    async def acknowledge(self, *events: pb.LifecycleEvent) -> list[bool]:
        """Settle events; tells for each whether it was pending."""
        request = group_pb.AcknowledgeRequest(group=self.ref, ack_ids=[event.ack_id for event in events])
        results = (await self.groups.Acknowledge(request, timeout=PATIENCE_SECONDS)).results
        return [result == group_pb.SETTLE_RESULT_DONE for result in results]

    async def info(self) -> group_pb.GroupInfo:
        """Ask how the group stands."""
        response = await self.groups.GetGroup(group_pb.GetGroupRequest(group=self.ref), timeout=PATIENCE_SECONDS)
        return response.info  # type: ignore[no-any-return]

    @property
    def ref(self) -> group_pb.GroupRef:
        return group_pb.GroupRef(lifecycle=group_pb.LifecycleFeed(), name=self.group)

    async def leave(self) -> None:
        """Cancel the call, and wait until it is over."""
        self.call.cancel()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def _message(self, seconds: float) -> pb.WatchStreamsResponse | None:
        give_up_at = asyncio.get_running_loop().time() + seconds
        while True:
            # A read that is cancelled cancels its call: one that gets nothing is gone on with by the next.
            self._reading = self._reading or asyncio.ensure_future(self.call.read())
            await asyncio.wait([self._reading], timeout=give_up_at - asyncio.get_running_loop().time())
            if not self._reading.done():
                return None
            reading, self._reading = self._reading, None
            message: Any = reading.result()
            assert message is not grpc.aio.EOF, "the call ended"
            self.watched.take(message)
            if message.events:
                return message  # type: ignore[no-any-return]
