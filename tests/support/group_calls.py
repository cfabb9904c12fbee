"""Members of groups as a client in any language would be them, and what they hold."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc

from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1 import group_service_pb2 as group_pb
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import Completion
from tests.support.calls import PATIENCE_SECONDS, attached

EXPLICIT = pb.ACKNOWLEDGEMENT_EXPLICIT
AUTOMATIC = pb.ACKNOWLEDGEMENT_AUTOMATIC


def membership(stream: StreamRef, name: str = "g", *, earliest: bool = False, **fields: Any) -> pb.SubscribeRequest:
    """Ask to be a member."""
    request = pb.SubscribeRequest(stream=stream, group=pb.GroupMembership(name=name, **fields))
    if earliest:
        request.position = pb.POSITION_EARLIEST
    return request


@dataclass
class Share:
    """What members of one group hold together. Several may take into the same one."""

    attempts: Counter[int] = field(default_factory=Counter)
    """How often each sequence was delivered."""
    texts: dict[int, str] = field(default_factory=dict)
    completions: list[Completion] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The answer, as far as it is here, in order."""
        return "".join(self.texts[sequence] for sequence in sorted(self.texts))

    def take(self, message: pb.SubscribeResponse) -> None:
        if message.tokens:
            assert message.delivery_attempt >= 1
            assert message.cursor
        else:
            assert not message.ack_ids
        for i, token in enumerate(message.tokens):
            sequence = message.first_sequence + i
            assert self.texts.setdefault(sequence, token.text) == token.text
            self.attempts[sequence] += 1
        if message.HasField("completion"):
            self.completions.append(message.completion)


@dataclass
class GroupMember:
    """One member's call."""

    call: Any
    share: Share = field(default_factory=Share)
    _reading: "asyncio.Future[Any] | None" = None

    @classmethod
    async def join(cls, bridge: Any, request: pb.SubscribeRequest, share: Share | None = None) -> "GroupMember":
        """Subscribe and wait until the member is attached; `bridge` is a BridgeServiceStub."""
        return cls(await attached(bridge, request), share if share is not None else Share())

    async def message(self) -> pb.SubscribeResponse:
        """Wait for a message that is no heartbeat."""
        message = await self._message(PATIENCE_SECONDS)
        assert message is not None, "nothing came"
        return message

    async def is_quiet(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for so long."""
        return await self._message(seconds) is None

    async def _message(self, seconds: float) -> pb.SubscribeResponse | None:
        give_up_at = asyncio.get_running_loop().time() + seconds
        while True:
            # A read that is cancelled cancels its call: one that gets nothing is gone on with by the next.
            self._reading = self._reading or asyncio.ensure_future(self.call.read())
            await asyncio.wait([self._reading], timeout=give_up_at - asyncio.get_running_loop().time())
            if not self._reading.done():
                return None
            message: Any = self._reading.result()
            self._reading = None
            assert message is not grpc.aio.EOF, "the call ended"
            self.share.take(message)
            if message.tokens or message.HasField("completion"):
                return message  # type: ignore[no-any-return]

    async def messages(self, tokens: int) -> list[pb.SubscribeResponse]:
        """Wait for so many tokens."""
        messages: list[pb.SubscribeResponse] = []
        while sum(len(message.tokens) for message in messages) < tokens:
            messages.append(await self.message())
        assert sum(len(message.tokens) for message in messages) == tokens
        return messages

    async def to_the_end(self) -> Share:
        """Read until the call ends; that must be OK, after the completion."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (message := await (self._reading or self.call.read())) is not grpc.aio.EOF:
                self._reading = None
                self.share.take(message)
            assert await self.call.code() is grpc.StatusCode.OK
        return self.share

    async def leave(self) -> None:
        """Cancel the call, and wait until it is over."""
        self.call.cancel()
        if self._reading is not None:
            await asyncio.wait([self._reading])


def ack_ids(*messages: pb.SubscribeResponse) -> list[str]:
    """Name the deliveries in messages."""
    return [ack_id for message in messages for ack_id in message.ack_ids]


def group_ref(stream: StreamRef, name: str = "g") -> group_pb.GroupRef:
    """Name a stream's group."""
    return group_pb.GroupRef(stream=stream, name=name)
