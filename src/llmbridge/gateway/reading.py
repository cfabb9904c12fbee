"""One reader of one stream, from a place. Knows nothing of how its messages are shown to a browser.

All the gateway's readers share one call to the bridge, and those at the same place of a stream the messages, too.
"""

from contextlib import AbstractContextManager

from llmbridge.client.reading import Reading
from llmbridge.gateway.link import Link
from llmbridge.v1.bridge_service_pb2 import POSITION_UNSPECIFIED, Position, SubscribeRequest
from llmbridge.v1.stream_pb2 import StreamRef


def subscribe(
    link: Link,
    stream: StreamRef,
    *,
    after_cursor: str = "",
    position: Position.ValueType = POSITION_UNSPECIFIED,
    transport: str = "sse",
) -> AbstractContextManager[Reading]:
    """Read a stream while the context lasts: every message, heartbeats included, to the one with the completion.

    `after_cursor` goes before `position`. `transport` is `sse` or `websocket`. Reading raises ClientError: Unavailable
    with the reason DRAINING also when the gateway itself stops. Nobody may change the messages: others get the same.
    """
    request = SubscribeRequest(stream=stream)
    if after_cursor:
        request.after_cursor = after_cursor
    elif position != POSITION_UNSPECIFIED:
        request.position = position
    return link.reading(request, transport)
