"""GroupService."""

from collections.abc import Sequence

from llmbridge.errors import InvalidField
from llmbridge.groups.dead_letters import DeadLetter, DeadLetters
from llmbridge.groups.overview import GroupView, Overview
from llmbridge.groups.places import GroupName
from llmbridge.groups.settling import Settling
from llmbridge.log.groups import Verb
from llmbridge.model.names import StreamName
from llmbridge.rpc import limits as check
from llmbridge.rpc.convert import name_to_proto
from llmbridge.rpc.limits import MAX_REASON_BYTES, Limits
from llmbridge.rpc.membership import group_name
from llmbridge.v1 import group_service_pb2 as pb

MAX_IDS = 1_000

_VERBS: dict[int, Verb] = {
    pb.DISPOSITION_UNSPECIFIED: Verb.REQUEUE,
    pb.DISPOSITION_REQUEUE: Verb.REQUEUE,
    pb.DISPOSITION_DEAD_LETTER: Verb.BURY,
}


class GroupMethods:
    """Decodes, settles or looks, encodes."""

    def __init__(self, settling: Settling, overview: Overview, dead_letters: DeadLetters, limits: Limits) -> None:
        self._settling = settling
        self._overview = overview
        self._dead_letters = dead_letters
        self._limits = limits

    async def acknowledge(self, request: pb.AcknowledgeRequest) -> pb.AcknowledgeResponse:
        """Serve Acknowledge."""
        group = self._group(request.group)
        _check_count("ack_ids", request.ack_ids)
        return pb.AcknowledgeResponse(
            results=_results(await self._settling.settle(group, Verb.ACKNOWLEDGE, request.ack_ids))
        )

    async def extend_deadline(self, request: pb.ExtendDeadlineRequest) -> pb.ExtendDeadlineResponse:
        """Serve ExtendDeadline."""
        group = self._group(request.group)
        _check_count("ack_ids", request.ack_ids)
        return pb.ExtendDeadlineResponse(
            results=_results(await self._settling.settle(group, Verb.EXTEND, request.ack_ids))
        )

    async def reject(self, request: pb.RejectRequest) -> pb.RejectResponse:
        """Serve Reject."""
        group = self._group(request.group)
        _check_count("ack_ids", request.ack_ids)
        verb = _VERBS.get(request.disposition)
        if verb is None:
            raise InvalidField("disposition", f"is {request.disposition}, which this bridge does not know")
        if (size := len(request.reason.encode())) > MAX_REASON_BYTES:
            raise InvalidField("reason", f"has {size} bytes, at most {MAX_REASON_BYTES} are allowed: shorten it")
        return pb.RejectResponse(
            results=_results(await self._settling.settle(group, verb, request.ack_ids, request.reason))
        )

    async def get(self, request: pb.GetGroupRequest) -> pb.GetGroupResponse:
        """Serve GetGroup."""
        return pb.GetGroupResponse(info=group_to_proto(await self._overview.get(self._group(request.group))))

    async def list(self, request: pb.ListGroupsRequest) -> pb.ListGroupsResponse:
        """Serve ListGroups."""
        stream = self._log("log", request, "stream")
        return pb.ListGroupsResponse(groups=map(group_to_proto, await self._overview.of_log(stream)))

    async def list_consumers(self, request: pb.ListConsumersRequest) -> pb.ListConsumersResponse:
        """Serve ListConsumers."""
        view = await self._overview.get(self._group(request.group))
        return pb.ListConsumersResponse(
            consumers=[
                pb.Consumer(name=consumer.name, pending=consumer.pending, idle_ms=consumer.idle_ms)
                for consumer in view.state.consumers
            ]
        )

    async def delete(self, request: pb.DeleteGroupRequest) -> pb.DeleteGroupResponse:
        """Serve DeleteGroup."""
        await self._overview.delete(self._group(request.group))
        return pb.DeleteGroupResponse()

    async def list_dead_letters(self, request: pb.ListDeadLettersRequest) -> pb.ListDeadLettersResponse:
        """Serve ListDeadLetters."""
        stream = check.stream_name(request.stream, self._limits) if request.HasField("stream") else None
        page_size = check.page_size("page_size", request.page_size)
        page = await self._dead_letters.page(stream, page_size, request.page_token)
        return pb.ListDeadLettersResponse(
            dead_letters=map(letter_to_proto, page.letters), next_page_token=page.next_page_token
        )

    async def redrive_dead_letters(self, request: pb.RedriveDeadLettersRequest) -> pb.RedriveDeadLettersResponse:
        """Serve RedriveDeadLetters."""
        _check_count("ids", request.ids)
        return pb.RedriveDeadLettersResponse(
            results=[
                pb.REDRIVE_RESULT_DONE if done else pb.REDRIVE_RESULT_GONE
                for done in await self._dead_letters.redrive(request.ids)
            ]
        )

    async def delete_dead_letters(self, request: pb.DeleteDeadLettersRequest) -> pb.DeleteDeadLettersResponse:
        """Serve DeleteDeadLetters."""
        _check_count("ids", request.ids)
        return pb.DeleteDeadLettersResponse(deleted=await self._dead_letters.delete(request.ids))

    def _group(self, ref: pb.GroupRef) -> GroupName:
        """Decode which group is meant. Raises InvalidField."""
        stream = self._log("group.log", ref, "group.stream")
        return GroupName(stream, group_name("group.name", ref.name, self._limits))

    def _log(self, field: str, ref: pb.GroupRef | pb.ListGroupsRequest, stream_field: str) -> StreamName | None:
        """Decode which log is meant: a stream, or None for the lifecycle feed. Raises InvalidField."""
        match ref.WhichOneof("log"):
            case "stream":
                return check.stream_name(ref.stream, self._limits, stream_field)
            case "lifecycle":
                return None
        raise InvalidField(field, "is not set: set stream or lifecycle")


def group_to_proto(group: GroupView) -> pb.GroupInfo:
    """Encode how a group stands."""
    state = group.state
    return pb.GroupInfo(
        name=group.name,
        consumers=len(state.consumers),
        pending=state.pending,
        lag=state.lag,
        oldest_pending_ms=state.oldest_pending_ms,
        idle_ms=group.idle_ms,
        ack_deadline_ms=state.settings.ack_deadline_ms,
        max_deliveries=state.settings.max_deliveries,
        delivered_sequence=state.delivered_sequence,
    )


def letter_to_proto(letter: DeadLetter) -> pb.DeadLetter:
    """Encode a dead letter."""
    if letter.group.stream is None:
        group = pb.GroupRef(lifecycle=pb.LifecycleFeed(), name=letter.group.group)
    else:
        group = pb.GroupRef(stream=name_to_proto(letter.group.stream), name=letter.group.group)
    stored = letter.stored
    return pb.DeadLetter(
        id=str(letter.id),
        group=group,
        cursor=letter.cursor,
        attempts=stored.attempts,
        reason=stored.reason,
        first_delivered_ms=stored.first_delivered_ms,
        last_delivered_ms=stored.last_delivered_ms,
        consumer=stored.consumer,
    )


def _check_count(field: str, ids: Sequence[str]) -> None:
    if len(ids) > MAX_IDS:
        raise InvalidField(field, f"has {len(ids)} ids, at most {MAX_IDS:,} are allowed: send several requests")


def _results(done: Sequence[bool]) -> list[pb.SettleResult.ValueType]:
    return [pb.SETTLE_RESULT_DONE if one else pb.SETTLE_RESULT_NOT_PENDING for one in done]
