"""What reading calls hold, checked as it comes: readers, members of groups, watchers. Knows no transport."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from google.protobuf.message import Message

from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1 import lifecycle_service_pb2 as feed_pb
from llmbridge.v1.group_service_pb2 import GroupRef, LifecycleFeed
from llmbridge.v1.token_pb2 import Completion
from tests.conformance.transport import CallFailed, Incoming, Refusal

MessageT = TypeVar("MessageT", bound=Message)

Acknowledge = Callable[[GroupRef, list[str]], Awaitable[object]]

PATIENCE_SECONDS = 15.0
CREATED = feed_pb.LIFECYCLE_EVENT_TYPE_CREATED
COMPLETED = feed_pb.LIFECYCLE_EVENT_TYPE_COMPLETED


class Ended(Exception):
    """The call is over and OK."""


class Call(Generic[MessageT]):
    """One call's messages, with bounded waits that lose nothing."""

    def __init__(self, incoming: Incoming[MessageT]) -> None:
        self._incoming = incoming
        self._reading: asyncio.Future[MessageT | None] | None = None

    async def attached(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._incoming.attached()

    async def next(self, seconds: float = PATIENCE_SECONDS) -> MessageT:
        """Wait for a message. Raises Ended, CallFailed, and TimeoutError when nothing came."""
        # A read that is cut may cost its call: one that brings nothing in time is gone on with by the next.
        self._reading = self._reading or asyncio.ensure_future(self._incoming.read())
        await asyncio.wait([self._reading], timeout=max(seconds, 0))
        if not self._reading.done():
            raise TimeoutError(f"nothing came for {seconds:.1f} s")
        reading, self._reading = self._reading, None
        message = reading.result()
        if message is None:
            raise Ended
        return message

    async def leave(self) -> None:
        """Give the call up, and wait until it is over."""
        await self._incoming.cancel()
        if self._reading is not None:
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                self._reading.exception()
            self._reading = None


async def refusal_of(call: Call[MessageT]) -> Refusal:
    """Wait for the error that a call must end with, passing over what comes before."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                await call.next()
    except CallFailed as failed:
        return failed.refusal
    except Ended:
        raise AssertionError("the call ended OK") from None


@dataclass
class Reader:
    """A reader by cursor. Fails at the first record that is out of order, comes twice or leaves a hole."""

    call: Call[pb.SubscribeResponse]
    last: int = 0
    cursor: str = ""
    texts: list[str] = field(default_factory=list)
    cursors: dict[int, str] = field(default_factory=dict)
    """After which record each message ended."""
    completion: Completion | None = None
    messages: int = 0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def take(self, message: pb.SubscribeResponse) -> bool:
        """Note a message; tells whether it was more than a heartbeat."""
        assert self.completion is None, "a message came after the end"
        if not message.tokens and not message.HasField("completion"):
            assert message.first_sequence == 0
            assert message.cursor == self.cursor, "a heartbeat's cursor is where the reader stands"
            return False
        assert message.first_sequence == self.last + 1, "nothing comes twice and nothing is missing"
        assert message.cursor
        self.messages += 1
        self.texts += [token.text for token in message.tokens]
        self.last += len(message.tokens)
        self.cursor = self.cursors[self.last] = message.cursor
        if message.HasField("completion"):
            self.completion = message.completion
            self.last += 1
        return True

    async def through(self, sequence: int) -> "Reader":
        """Read until this record is here; what came with it is here too."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.last < sequence:
                self.take(await self.call.next())
        return self

    async def to_the_end(self) -> "Reader":
        """Read until the call ends, which must be OK."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    self.take(await self.call.next())
        except Ended:
            return self

    async def heartbeat(self) -> None:
        """Wait for the next message, which must be a heartbeat."""
        assert not self.take(await self.call.next()), "it was no heartbeat"

    async def refused(self) -> Refusal:
        """Wait for the error that the call must end with; what comes before it is checked as ever."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    self.take(await self.call.next())
        except CallFailed as failed:
            return failed.refusal
        except Ended:
            raise AssertionError(f"the call ended OK at record {self.last}") from None

    async def leave(self) -> None:
        await self.call.leave()


@dataclass
class Share:
    """What members of one group hold together. Several may take into the same one."""

    attempts: Counter[int] = field(default_factory=Counter)
    """How often each sequence was delivered."""
    texts: dict[int, str] = field(default_factory=dict)
    completions: list[Completion] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts[sequence] for sequence in sorted(self.texts))

    def take(self, message: pb.SubscribeResponse) -> bool:
        """Note a message; tells whether it was more than a heartbeat."""
        assert bool(message.tokens) or not message.ack_ids
        assert not message.tokens or message.delivery_attempt >= 1
        for sequence, token in enumerate(message.tokens, message.first_sequence):
            assert self.texts.setdefault(sequence, token.text) == token.text
            self.attempts[sequence] += 1
        if message.HasField("completion"):
            self.completions.append(message.completion)
        return bool(message.tokens) or message.HasField("completion")


@dataclass
class Member:
    """A member of a group of a stream."""

    call: Call[pb.SubscribeResponse]
    group: GroupRef
    share: Share

    async def message(self, seconds: float = PATIENCE_SECONDS) -> pb.SubscribeResponse:
        """Wait for a message that is no heartbeat."""
        give_up_at = asyncio.get_running_loop().time() + seconds
        while True:
            message = await self.call.next(give_up_at - asyncio.get_running_loop().time())
            if self.share.take(message):
                return message

    async def messages(self, tokens: int) -> list[pb.SubscribeResponse]:
        """Wait for exactly so many tokens."""
        messages: list[pb.SubscribeResponse] = []
        while sum(len(message.tokens) for message in messages) < tokens:
            messages.append(await self.message())
        assert sum(len(message.tokens) for message in messages) == tokens
        return messages

    async def is_quiet(self, seconds: float = 0.15) -> bool:
        """Whether no entry comes for so long."""
        try:
            await self.message(seconds)
        except TimeoutError:
            return True
        return False

    async def to_the_end(self) -> Share:
        """Read until the call ends, which must be OK."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    self.share.take(await self.call.next())
        except Ended:
            return self.share

    async def refused(self) -> Refusal:
        return await refusal_of(self.call)

    async def leave(self) -> None:
        await self.call.leave()


def ack_ids(*messages: pb.SubscribeResponse) -> list[str]:
    """Name the deliveries in messages."""
    return [ack_id for message in messages for ack_id in message.ack_ids]


@dataclass
class Watcher:
    """A member of a group of the lifecycle feed, which cares for its own sessions only.

    Other people's events, of which a shared bridge may have many, are acknowledged and passed over.
    """

    call: Call[feed_pb.WatchStreamsResponse]
    group: GroupRef
    acknowledge: Acknowledge
    sessions: set[str]
    events: list[feed_pb.LifecycleEvent] = field(default_factory=list)
    missed: int = 0
    waiting: list[feed_pb.LifecycleEvent] = field(default_factory=list)

    async def event(self, seconds: float = PATIENCE_SECONDS) -> feed_pb.LifecycleEvent:
        """Wait for the next event of one of its sessions."""
        give_up_at = asyncio.get_running_loop().time() + seconds
        while not self.waiting:
            message = await self.call.next(give_up_at - asyncio.get_running_loop().time())
            self.missed += message.missed
            others: list[feed_pb.LifecycleEvent] = []
            for event in message.events:
                assert event.delivery_attempt >= 1
                assert event.ack_id
                assert event.cursor
                assert (event.type == COMPLETED) is event.HasField("completion") is bool(event.sealer)
                (self.waiting if event.stream.session_id in self.sessions else others).append(event)
            if others:
                await self.acknowledge(self.group, [event.ack_id for event in others])
        event = self.waiting.pop(0)
        self.events.append(event)
        return event

    async def take(self, count: int) -> list[feed_pb.LifecycleEvent]:
        """Wait for so many events."""
        return [await self.event() for _ in range(count)]

    async def heartbeat(self) -> None:
        """Wait for a message without events; before it there may be events of other people's sessions."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while events := (await self.call.next()).events:
                assert self.sessions.isdisjoint(event.stream.session_id for event in events)

    async def is_quiet(self, seconds: float = 0.15) -> bool:
        """Whether none of its sessions' events comes for so long."""
        try:
            await self.event(seconds)
        except TimeoutError:
            return True
        return False

    async def refused(self) -> Refusal:
        return await refusal_of(self.call)

    async def leave(self) -> None:
        await self.call.leave()


def feed_group(name: str) -> GroupRef:
    """Name a group of the lifecycle feed."""
    return GroupRef(lifecycle=LifecycleFeed(), name=name)
