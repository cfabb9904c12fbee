"""Settles what members of consumer groups were delivered, looks at groups, and sees to dead letters.

All requests may be tried again. An answer may then tell what an earlier attempt of the same call did: an id is not
pending any more because that attempt settled it, a letter is gone because it was redriven.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmbridge.client.connection import Connection
from llmbridge.client.errors import GroupNotFound
from llmbridge.client.values import stream_ref
from llmbridge.model.names import StreamName
from llmbridge.v1 import group_service_pb2 as pb

_MAX_IDS = 1_000


@dataclass(frozen=True, slots=True)
class GroupName:
    """A group of a stream, or of the lifecycle feed where `stream` is None. An empty name is the bridge's default."""

    stream: StreamName | None
    group: str = ""

    @property
    def ref(self) -> pb.GroupRef:
        """Encode it."""
        if self.stream is None:
            return pb.GroupRef(lifecycle=pb.LifecycleFeed(), name=self.group)
        return pb.GroupRef(stream=stream_ref(self.stream), name=self.group)


class GroupAdmin:
    """What can be done with groups besides being a member. Every method raises Unavailable when the policy gave up.

    Of ids, any number may be given; 1,000 go with a request.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def acknowledge(self, group: GroupName, ack_ids: Sequence[str]) -> list[bool]:
        """Settle deliveries: they are done. Tells for each whether it was still pending. Raises GroupNotFound."""
        results: list[bool] = []
        for some in _portions(ack_ids):
            request = pb.AcknowledgeRequest(group=group.ref, ack_ids=some)
            response = await self._connection.unary(self._connection.groups.Acknowledge, request)
            results += _settled(response.results)
        return results

    async def extend(self, group: GroupName, ack_ids: Sequence[str]) -> list[bool]:
        """Give deliveries the full deadline from now on; stop working on those that are told False.

        Raises GroupNotFound.
        """
        results: list[bool] = []
        for some in _portions(ack_ids):
            request = pb.ExtendDeadlineRequest(group=group.ref, ack_ids=some)
            response = await self._connection.unary(self._connection.groups.ExtendDeadline, request)
            results += _settled(response.results)
        return results

    async def reject(
        self, group: GroupName, ack_ids: Sequence[str], *, dead_letter: bool = False, reason: str = ""
    ) -> list[bool]:
        """Give deliveries back: for the next member, or to the dead letters; tells for each whether it was pending.

        `reason` is kept with a dead letter. Raises GroupNotFound.
        """
        disposition = pb.DISPOSITION_DEAD_LETTER if dead_letter else pb.DISPOSITION_REQUEUE
        results: list[bool] = []
        for some in _portions(ack_ids):
            request = pb.RejectRequest(group=group.ref, ack_ids=some, disposition=disposition, reason=reason)
            response = await self._connection.unary(self._connection.groups.Reject, request)
            results += _settled(response.results)
        return results

    async def get(self, group: GroupName) -> pb.GroupInfo:
        """Tell how a group stands. Raises GroupNotFound."""
        request = pb.GetGroupRequest(group=group.ref)
        return (await self._connection.unary(self._connection.groups.GetGroup, request)).info

    async def of_log(self, stream: StreamName | None) -> list[pb.GroupInfo]:
        """List the groups of a stream, or with None of the lifecycle feed, by name. Raises StreamNotFound."""
        if stream is None:
            request = pb.ListGroupsRequest(lifecycle=pb.LifecycleFeed())
        else:
            request = pb.ListGroupsRequest(stream=stream_ref(stream))
        return list((await self._connection.unary(self._connection.groups.ListGroups, request)).groups)

    async def consumers(self, group: GroupName) -> list[pb.Consumer]:
        """List a group's consumers. Raises GroupNotFound."""
        request = pb.ListConsumersRequest(group=group.ref)
        return list((await self._connection.unary(self._connection.groups.ListConsumers, request)).consumers)

    async def delete(self, group: GroupName) -> None:
        """Delete a group with all it remembers; its members' calls end. Raises GroupNotFound."""
        try:
            await self._connection.unary(self._connection.groups.DeleteGroup, pb.DeleteGroupRequest(group=group.ref))
        except GroupNotFound as error:
            # After an attempt without an answer, this says that it had succeeded.
            if not error.outcome_unknown:
                raise

    async def dead_letters(
        self, stream: StreamName | None = None, *, page_size: int = 0
    ) -> AsyncIterator[pb.DeadLetter]:
        """List dead letters, of one stream or all, oldest first within a partition, fetching page after page."""
        request = pb.ListDeadLettersRequest(page_size=page_size)
        if stream is not None:
            request.stream.CopyFrom(stream_ref(stream))
        while True:
            page = await self._connection.unary(self._connection.groups.ListDeadLetters, request)
            for letter in page.dead_letters:
                yield letter
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def redrive(self, ids: Sequence[str]) -> list[bool]:
        """Give dead letters back to their groups; tells for each whether it is pending there again.

        Else it is gone: the entry, its stream, its group, or the letter itself.
        """
        results: list[bool] = []
        for some in _portions(ids):
            request = pb.RedriveDeadLettersRequest(ids=some)
            response = await self._connection.unary(self._connection.groups.RedriveDeadLetters, request)
            results += [result == pb.REDRIVE_RESULT_DONE for result in response.results]
        return results

    async def delete_dead_letters(self, ids: Sequence[str]) -> int:
        """Delete dead letters; returns how many there were."""
        deleted = 0
        for some in _portions(ids):
            request = pb.DeleteDeadLettersRequest(ids=some)
            deleted += (await self._connection.unary(self._connection.groups.DeleteDeadLetters, request)).deleted
        return deleted


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[i : i + _MAX_IDS] for i in range(0, len(ids), _MAX_IDS))


def _settled(results: Iterable[pb.SettleResult.ValueType]) -> list[bool]:
    return [result == pb.SETTLE_RESULT_DONE for result in results]
