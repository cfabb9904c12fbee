"""LifecycleService, and the encoding of what it tells."""

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from llmbridge.errors import InvalidField
from llmbridge.groups.consumer import MOST_OUTSTANDING
from llmbridge.groups.places import AckId
from llmbridge.groups.watcher import Watch
from llmbridge.groups.watchers import Watchers
from llmbridge.log.feed import LifecycleEntry
from llmbridge.rpc import limits as check
from llmbridge.rpc.caller import caller_of
from llmbridge.rpc.convert import name_to_proto, sealer_to_proto
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.membership import group_name, group_settings
from llmbridge.rpc.methods import Context
from llmbridge.v1 import lifecycle_service_pb2 as pb
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse

DEFAULT_EVENTS = 100


class WatchStreamsMethod:
    """Decodes, attaches, and writes the watcher's messages as they are."""

    def __init__(self, watchers: Watchers, limits: Limits) -> None:
        self._watchers = watchers
        self._limits = limits

    async def __call__(self, request: pb.WatchStreamsRequest, context: Context) -> None:
        """Serve one call. A write waits while the client's flow control holds it."""
        watch = decode_watch(request, self._limits)
        async with self._watchers.attach(watch, caller_of(context)) as watcher:
            await context.send_initial_metadata(())
            while (message := await watcher.next_message()) is not None:
                await context.write(message)


def decode_watch(request: pb.WatchStreamsRequest, limits: Limits) -> Watch:
    """Decode a watcher's wishes. Raises InvalidField."""
    check.check_id("consumer", request.consumer, False, limits)
    max_events = request.max_outstanding_events
    if max_events > MOST_OUTSTANDING:
        raise InvalidField("max_outstanding_events", f"is {max_events}, at most {MOST_OUTSTANDING} is allowed")
    return Watch(
        group=group_name("group", request.group, limits),
        consumer=request.consumer,
        max_events=max_events or DEFAULT_EVENTS,
        wanted=group_settings("", request.ack_deadline_ms, request.max_deliveries),
    )


class ProtoFeedWire:
    """Implements groups.watcher.FeedWire. Encoded one after the other, messages with an event each are one message."""

    def event(self, delivery: AckId, entry: LifecycleEntry) -> bytes:
        """Encode a message with an event. Raises ValueError where its completion is none."""
        message = pb.WatchStreamsResponse()
        event = message.events.add(
            ack_id=str(delivery),
            delivery_attempt=delivery.receipt.attempt,
            type=pb.LIFECYCLE_EVENT_TYPE_CREATED,
            stream=name_to_proto(entry.stream),
            cursor=str(entry.cursor),
            start_cursor=str(entry.start),
            recorded_ms=entry.recorded_ms,
            created_ms=entry.created_ms,
            tokens=entry.tokens,
        )
        if entry.sealer is not None:
            event.type = pb.LIFECYCLE_EVENT_TYPE_COMPLETED
            event.sealer = sealer_to_proto(entry.sealer)
            try:
                stored = SubscribeResponse.FromString(entry.completion)
            except DecodeError as error:
                raise ValueError("not a completion") from error
            if not stored.HasField("completion"):
                raise ValueError("no completion")
            event.completion.CopyFrom(stored.completion)
        return message.SerializeToString()

    def message(self, events: Iterable[bytes], missed: int) -> bytes:
        """Encode a message."""
        return b"".join((*events, pb.WatchStreamsResponse(missed=missed).SerializeToString()))
