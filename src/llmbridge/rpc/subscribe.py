"""BridgeService.Subscribe."""

from contextlib import AbstractAsyncContextManager

from llmbridge.errors import InvalidField
from llmbridge.groups.members import Members
from llmbridge.hub.attached import Attached
from llmbridge.hub.connections import Caller
from llmbridge.model.names import StreamName
from llmbridge.rpc import limits as check
from llmbridge.rpc.caller import caller_of
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.membership import decode_membership
from llmbridge.rpc.methods import Context
from llmbridge.subscribe.start import Position, Start
from llmbridge.subscribe.subscriptions import Subscriptions
from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest

_POSITIONS = {
    pb.POSITION_UNSPECIFIED: Position.BEGINNING,
    pb.POSITION_BEGINNING: Position.BEGINNING,
    pb.POSITION_EARLIEST: Position.EARLIEST,
    pb.POSITION_LATEST: Position.LATEST,
}


class SubscribeMethod:
    """Decodes, attaches a reader or a member of a group, and writes its messages as they are."""

    def __init__(self, subscriptions: Subscriptions, members: Members, limits: Limits) -> None:
        self._subscriptions = subscriptions
        self._members = members
        self._limits = limits

    async def __call__(self, request: SubscribeRequest, context: Context) -> None:
        """Serve one call. A write waits while the client's flow control holds it."""
        name = check.stream_name(request.stream, self._limits)
        async with self._attach(name, request, caller_of(context)) as attached:
            await context.send_initial_metadata(())
            while (message := await attached.next_message()) is not None:
                await context.write(message)

    def _attach(
        self, name: StreamName, request: SubscribeRequest, caller: Caller
    ) -> AbstractAsyncContextManager[Attached]:
        if request.HasField("group"):
            return self._members.attach(name, decode_membership(request, self._limits), caller)
        return self._subscriptions.attach(name, decode_start(request), caller)


def decode_start(request: SubscribeRequest) -> Start:
    """Decode where to begin. Raises InvalidField."""
    if request.after_cursor:
        return check.cursor("after_cursor", request.after_cursor)
    position = _POSITIONS.get(request.position)
    if position is None:
        raise InvalidField("position", f"{request.position} is not a position that this bridge knows")
    return position
