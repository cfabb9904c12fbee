"""The calls that cases make, over whatever transport, and the removal of what they left at the bridge."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Never

import pytest
from google.protobuf.message import Message

from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1 import group_service_pb2 as group_pb
from llmbridge.v1 import lifecycle_service_pb2 as feed_pb
from llmbridge.v1 import stream_admin_service_pb2 as admin_pb
from llmbridge.v1.stream_pb2 import StreamInfo, StreamRef
from llmbridge.v1.token_pb2 import FINISH_REASON_STOP, Completion, Token
from tests.conformance.incoming import PATIENCE_SECONDS, Call, Member, Reader, Share, Watcher, feed_group
from tests.conformance.target import Instance
from tests.conformance.transport import CallFailed, NotOffered, Refusal, Transport

STOP = Completion(finish_reason=FINISH_REASON_STOP)
_TEXT_BYTES = 40_000
DONE, NOT_PENDING = group_pb.SETTLE_RESULT_DONE, group_pb.SETTLE_RESULT_NOT_PENDING


def new_stream(model: str = "m", response: str = "r") -> StreamRef:
    """Name a stream that nobody else has, in a session of its own."""
    return StreamRef(session_id=f"conformance-{secrets.token_hex(8)}", model_id=model, response_id=response)


async def refused(call: Awaitable[Any]) -> Refusal:
    """Await a call that must fail with a status, in bounded time."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            result = await call
    except CallFailed as failed:
        return failed.refusal
    raise AssertionError(f"it succeeded: {result}")


def group_of(stream: StreamRef, name: str = "g") -> group_pb.GroupRef:
    """Name a stream's group."""
    return group_pb.GroupRef(stream=stream, name=name)


class Caller:
    """A client of one instance. What the transport does not offer skips the case, with the transport's reason."""

    def __init__(self, instance: Instance, transport: Transport) -> None:
        self.instance = instance
        self.transport = transport
        self._streams: dict[bytes, StreamRef] = {}
        self._groups: list[group_pb.GroupRef] = []
        self._feed_groups: set[str] = set()

    @classmethod
    def of(cls, instance: Instance, transport: Callable[[Instance], Transport]) -> "Caller":
        """Make one, unless the instance can't be reached so."""
        try:
            return cls(instance, transport(instance))
        except NotOffered as reason:
            _skip(reason)

    async def call(self, request: Message, timeout: float = PATIENCE_SECONDS) -> Any:
        """Send any request that has one response. Raises CallFailed."""
        if isinstance(request, pb.ProduceRequest | pb.CancelRequest | admin_pb.CreateStreamRequest):
            self._streams[request.stream.SerializeToString(deterministic=True)] = request.stream
        try:
            return await self.transport.call(request, timeout)
        except NotOffered as reason:
            _skip(reason)

    def needs_heartbeats(self) -> None:
        """Skip the case where readers do not get any."""
        if not self.transport.shows_heartbeats:
            pytest.skip("the transport shows its readers no heartbeats")

    def more_than_fits(self) -> list[str]:
        """Give texts of which a reader that takes nothing gets some, and never all."""
        count = max(40, int(1.5 * self.transport.buffered_bytes / _TEXT_BYTES))
        return [f"{i:05d}" * (_TEXT_BYTES // 5) for i in range(count)]

    async def call_with_garbage(self) -> None:
        """Send bytes that are no request. Raises CallFailed."""
        try:
            await self.transport.call_with_garbage()
        except NotOffered as reason:
            _skip(reason)

    def reading(self, request: pb.SubscribeRequest) -> Call[pb.SubscribeResponse]:
        """Send any request to read."""
        try:
            return Call(self.transport.subscribe(request))
        except NotOffered as reason:
            _skip(reason)

    def watching(self, request: feed_pb.WatchStreamsRequest) -> Call[feed_pb.WatchStreamsResponse]:
        """Send any request to watch the lifecycle feed."""
        try:
            return Call(self.transport.watch(request))
        except NotOffered as reason:
            _skip(reason)

    async def produce(
        self,
        stream: StreamRef,
        *texts: str,
        first: int = 0,
        end: Completion | None = None,
        epoch: int = 0,
        by: str = "",
        timeout: float = PATIENCE_SECONDS,
    ) -> pb.ProduceResponse:
        """Append these texts as tokens, and `end`, in one request of producer `by`."""
        request = pb.ProduceRequest(
            stream=stream,
            tokens=[Token(text=text) for text in texts],
            completion=end,
            first_sequence=first,
            producer_epoch=epoch,
            producer_id=by,
        )
        response: pb.ProduceResponse = await self.call(request, timeout)
        return response

    async def produce_surely(self, stream: StreamRef, *texts: str, first: int, end: Completion | None = None) -> None:
        """Produce as the page says: the same request again, unchanged, after the RetryInfo delay."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (refusal := await self._refusal_of_produce(stream, *texts, first=first, end=end)) is not None:
                assert refusal.code == "UNAVAILABLE", refusal
                assert refusal.retry_ms, "what a retry helps has a RetryInfo"
                await asyncio.sleep(refusal.retry_ms / 1_000)

    async def _refusal_of_produce(self, stream: StreamRef, *texts: str, **fields: Any) -> Refusal | None:
        try:
            await self.produce(stream, *texts, **fields)
        except CallFailed as failed:
            return failed.refusal
        return None

    async def cancel(self, stream: StreamRef, reason: str = "") -> pb.CancelResponse:
        response: pb.CancelResponse = await self.call(pb.CancelRequest(stream=stream, reason=reason))
        return response

    async def keep_alive(self, stream: StreamRef, epoch: int = 0, by: str = "") -> int:
        """Say that a producer is alive; returns for how long it may be silent, in ms."""
        response = await self.call(pb.KeepAliveRequest(stream=stream, producer_epoch=epoch, producer_id=by))
        limit: int = response.producer_lost_ms
        return limit

    async def create(self, stream: StreamRef, **fields: int) -> StreamRef:
        """Create a stream; returns its name, which the bridge may have completed."""
        response = await self.call(admin_pb.CreateStreamRequest(stream=stream, **fields))
        made: StreamRef = response.stream
        self._streams[made.SerializeToString(deterministic=True)] = made
        return made

    async def info(self, stream: StreamRef) -> StreamInfo:
        response = await self.call(admin_pb.GetStreamRequest(stream=stream))
        info: StreamInfo = response.info
        return info

    async def trim(self, stream: StreamRef, **until: Any) -> admin_pb.TrimStreamResponse:
        response: admin_pb.TrimStreamResponse = await self.call(admin_pb.TrimStreamRequest(stream=stream, **until))
        return response

    async def delete(self, stream: StreamRef) -> None:
        await self.call(admin_pb.DeleteStreamRequest(stream=stream))

    async def subscribe(self, stream: StreamRef, *, last: int = 0, wait: bool = True, **start: Any) -> Reader:
        """Begin to read after record `last`, and `wait` until the call is attached."""
        call = self.reading(pb.SubscribeRequest(stream=stream, **start))
        if wait:
            await call.attached()
        return Reader(call, last, start.get("after_cursor", ""))

    async def read_all(self, stream: StreamRef, *, last: int = 0, **start: Any) -> Reader:
        """Read a sealed stream to its end."""
        return await (await self.subscribe(stream, last=last, wait=False, **start)).to_the_end()

    async def join(
        self,
        stream: StreamRef,
        name: str = "g",
        *,
        share: Share | None = None,
        wait: bool = True,
        position: pb.Position.ValueType = pb.POSITION_UNSPECIFIED,
        **fields: Any,
    ) -> Member:
        """Become a member of a stream's group."""
        self._groups.append(group_of(stream, name))
        membership = pb.GroupMembership(name=name, **fields)
        call = self.reading(pb.SubscribeRequest(stream=stream, group=membership, position=position))
        if wait:
            await call.attached()
        return Member(call, group_of(stream, name), share if share is not None else Share())

    async def watch(self, *streams: StreamRef, group: str, wait: bool = True, **fields: Any) -> Watcher:
        """Become a watcher, for the sessions of these streams. The group is deleted with what the case left."""
        self._feed_groups.add(group)
        call = self.watching(feed_pb.WatchStreamsRequest(group=group, **fields))
        if wait:
            await call.attached()
        return Watcher(call, feed_group(group), self.acknowledge, {stream.session_id for stream in streams})

    async def acknowledge(self, group: group_pb.GroupRef, ids: Sequence[str]) -> list[int]:
        return list((await self.call(group_pb.AcknowledgeRequest(group=group, ack_ids=ids))).results)

    async def extend(self, group: group_pb.GroupRef, ids: Sequence[str]) -> list[int]:
        return list((await self.call(group_pb.ExtendDeadlineRequest(group=group, ack_ids=ids))).results)

    async def requeue(self, group: group_pb.GroupRef, ids: Sequence[str]) -> list[int]:
        return list((await self.call(group_pb.RejectRequest(group=group, ack_ids=ids))).results)

    async def bury(self, group: group_pb.GroupRef, ids: Sequence[str], reason: str = "") -> list[int]:
        """Reject deliveries to the dead letters."""
        request = group_pb.RejectRequest(
            group=group, ack_ids=ids, disposition=group_pb.DISPOSITION_DEAD_LETTER, reason=reason
        )
        return list((await self.call(request)).results)

    async def group(self, group: group_pb.GroupRef) -> group_pb.GroupInfo:
        response = await self.call(group_pb.GetGroupRequest(group=group))
        info: group_pb.GroupInfo = response.info
        return info

    async def delete_group(self, group: group_pb.GroupRef) -> None:
        await self.call(group_pb.DeleteGroupRequest(group=group))

    async def letters(self, stream: StreamRef | None = None, group: str = "") -> list[group_pb.DeadLetter]:
        """List the dead letters of a stream, or those of a group of the feed."""
        request = group_pb.ListDeadLettersRequest(stream=stream, page_size=1_000)
        letters: list[group_pb.DeadLetter] = []
        while True:
            page = await self.call(request)
            letters += [
                letter
                for letter in page.dead_letters
                if stream is not None or (letter.group.HasField("lifecycle") and letter.group.name == group)
            ]
            request.page_token = page.next_page_token
            if not request.page_token:
                return letters

    async def letters_once_there(self, count: int, stream: StreamRef | None = None, group: str = "") -> Any:
        """Wait until there are so many dead letters."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(letters := await self.letters(stream, group)) < count:
                await asyncio.sleep(0.05)
        assert len(letters) == count
        return letters

    async def redrive(self, *letters: group_pb.DeadLetter) -> list[int]:
        request = group_pb.RedriveDeadLettersRequest(ids=[letter.id for letter in letters])
        return list((await self.call(request)).results)

    async def delete_letters(self, *letters: group_pb.DeadLetter) -> int:
        request = group_pb.DeleteDeadLettersRequest(ids=[letter.id for letter in letters])
        deleted: int = (await self.call(request)).deleted
        return deleted

    async def clean_up(self) -> None:
        """Remove every stream, group of the feed and dead letter that came of the case's calls."""
        for made in self._groups:
            await self._quietly(group_pb.DeleteGroupRequest(group=made))
            await self._delete_letters_of(made.stream)
        for stream in self._streams.values():
            await self._quietly(admin_pb.DeleteStreamRequest(stream=stream))
        for group in self._feed_groups:
            await self._quietly(group_pb.DeleteGroupRequest(group=feed_group(group)))
            await self._delete_letters_of(None, group)

    async def _delete_letters_of(self, stream: StreamRef | None, group: str = "") -> None:
        try:
            if letters := await self.letters(stream, group):
                await self.delete_letters(*letters)
        except pytest.skip.Exception:
            # The transport has no such calls. What is left there expires.
            return
        except CallFailed as failed:
            # A name that no stream can have left nothing.
            if failed.refusal.reason != "INVALID_FIELD":
                raise

    async def _quietly(self, request: Message) -> None:
        try:
            await self.transport.call(request, PATIENCE_SECONDS)
        except NotOffered:
            # What is left expires.
            return
        except CallFailed as failed:
            if failed.refusal.reason not in ("STREAM_NOT_FOUND", "GROUP_NOT_FOUND", "INVALID_FIELD"):
                raise


def _skip(reason: NotOffered) -> Never:
    pytest.skip(f"the transport does not offer it: {reason}")
