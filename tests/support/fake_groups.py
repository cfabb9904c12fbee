"""The fake bridge's GroupService: one group, whatever it is called, and its dead letters."""

# ruff: noqa: N802 - the contract names the methods
from collections import deque

from llmbridge.v1 import group_service_pb2 as pb
from llmbridge.v1.group_service_pb2_grpc import GroupServiceServicer
from tests.support.faults import Context, Fault, fail, maybe_fail


class FakeGroups(GroupServiceServicer):
    """Each call takes the next of `faults`. `pending` are ids that can be settled, `letters` those of dead letters."""

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque()
        self.pending: set[str] = set()
        self.letters: list[str] = []
        self.exists = True
        self.sizes: list[int] = []
        """How many ids each request had."""

    async def Acknowledge(self, request: pb.AcknowledgeRequest, context: Context) -> pb.AcknowledgeResponse:
        self.sizes.append(len(request.ack_ids))
        async with maybe_fail(self.faults, context):
            results = [self._settled(ack_id, remove=True) for ack_id in request.ack_ids]
        return pb.AcknowledgeResponse(results=results)

    async def ExtendDeadline(self, request: pb.ExtendDeadlineRequest, context: Context) -> pb.ExtendDeadlineResponse:
        self.sizes.append(len(request.ack_ids))
        async with maybe_fail(self.faults, context):
            results = [self._settled(ack_id, remove=False) for ack_id in request.ack_ids]
        return pb.ExtendDeadlineResponse(results=results)

    async def Reject(self, request: pb.RejectRequest, context: Context) -> pb.RejectResponse:
        self.sizes.append(len(request.ack_ids))
        dead = request.disposition == pb.DISPOSITION_DEAD_LETTER
        async with maybe_fail(self.faults, context):
            results = [self._settled(ack_id, remove=dead) for ack_id in request.ack_ids]
            if dead:
                self.letters += [f"{request.reason} {ack_id}" for ack_id in request.ack_ids]
        return pb.RejectResponse(results=results)

    def _settled(self, ack_id: str, *, remove: bool) -> pb.SettleResult.ValueType:
        if ack_id not in self.pending:
            return pb.SETTLE_RESULT_NOT_PENDING
        if remove:
            self.pending.discard(ack_id)
        return pb.SETTLE_RESULT_DONE

    async def GetGroup(self, request: pb.GetGroupRequest, context: Context) -> pb.GetGroupResponse:
        async with maybe_fail(self.faults, context):
            if not self.exists:
                await fail(context, Fault("GROUP_NOT_FOUND"))
        return pb.GetGroupResponse(info=self._info(request.group.name))

    async def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:
        async with maybe_fail(self.faults, context):
            found = [self._info("g")] if self.exists else []
        return pb.ListGroupsResponse(groups=found)

    async def ListConsumers(self, request: pb.ListConsumersRequest, context: Context) -> pb.ListConsumersResponse:
        async with maybe_fail(self.faults, context):
            if not self.exists:
                await fail(context, Fault("GROUP_NOT_FOUND"))
        return pb.ListConsumersResponse(consumers=[pb.Consumer(name="c", pending=len(self.pending))])

    def _info(self, name: str) -> pb.GroupInfo:
        return pb.GroupInfo(name=name, consumers=1, pending=len(self.pending))

    async def DeleteGroup(self, request: pb.DeleteGroupRequest, context: Context) -> pb.DeleteGroupResponse:
        async with maybe_fail(self.faults, context):
            if not self.exists:
                await fail(context, Fault("GROUP_NOT_FOUND"))
            self.exists = False
        return pb.DeleteGroupResponse()

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        begin, size = int(request.page_token or 0), request.page_size or 100
        async with maybe_fail(self.faults, context):
            page = self.letters[begin : begin + size]
        return pb.ListDeadLettersResponse(
            dead_letters=[pb.DeadLetter(id=one) for one in page],
            next_page_token=str(begin + size) if begin + size < len(self.letters) else "",
        )

    async def RedriveDeadLetters(
        self, request: pb.RedriveDeadLettersRequest, context: Context
    ) -> pb.RedriveDeadLettersResponse:
        self.sizes.append(len(request.ids))
        async with maybe_fail(self.faults, context):
            there = [one in self.letters for one in request.ids]
            self.letters = [one for one in self.letters if one not in request.ids]
        return pb.RedriveDeadLettersResponse(
            results=[pb.REDRIVE_RESULT_DONE if one else pb.REDRIVE_RESULT_GONE for one in there]
        )

    async def DeleteDeadLetters(
        self, request: pb.DeleteDeadLettersRequest, context: Context
    ) -> pb.DeleteDeadLettersResponse:
        self.sizes.append(len(request.ids))
        async with maybe_fail(self.faults, context):
            left = [one for one in self.letters if one not in request.ids]
            deleted, self.letters = len(self.letters) - len(left), left
        return pb.DeleteDeadLettersResponse(deleted=deleted)
