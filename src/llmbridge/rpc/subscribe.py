"""BridgeService.Subscribe."""

from llmbridge.errors import InvalidField
from llmbridge.rpc import limits as check
from llmbridge.rpc.limits import Limits
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
    """Decodes, attaches, and writes the reader's messages as they are."""

    def __init__(self, subscriptions: Subscriptions, limits: Limits) -> None:
        self._subscriptions = subscriptions
        self._limits = limits

    async def __call__(self, request: SubscribeRequest, context: Context) -> None:
        """Serve one call. A write waits while the client's flow control holds it."""
        name = check.stream_name(request.stream, self._limits)
        async with self._subscriptions.attach(name, decode_start(request)) as reader:
            await context.send_initial_metadata(())
            while (message := await reader.next_message()) is not None:
                await context.write(message)


def decode_start(request: SubscribeRequest) -> Start:
    """Decode where to begin. Raises InvalidField."""
    if request.after_cursor:
        return check.cursor("after_cursor", request.after_cursor)
    position = _POSITIONS.get(request.position)
    if position is None:
        raise InvalidField("position", f"{request.position} is not a position that this bridge knows")
    return position
