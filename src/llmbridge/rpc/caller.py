"""Who makes a call, as its transport tells it."""

from llmbridge.hub.connections import Caller, Transport
from llmbridge.rpc.methods import Context

TRANSPORT_KEY = "llmbridge-transport"
"""The metadata key in which the HTTP gateway tells how its client came."""

_TRANSPORTS = {"sse": Transport.SSE, "websocket": Transport.WEBSOCKET}


def caller_of(context: Context) -> Caller:
    """Tell who made this call."""
    metadata = dict(context.invocation_metadata() or ())
    return Caller(_TRANSPORTS.get(str(metadata.get(TRANSPORT_KEY)), Transport.GRPC), context.peer())
