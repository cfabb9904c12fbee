"""Reads a stream through outages of the bridge, for clients that could not come back to where they were by themselves.

Knows nothing of how the messages are shown.
"""

import asyncio
from collections.abc import AsyncGenerator

from llmbridge.client.errors import Unavailable
from llmbridge.client.retry import Outage, RetryPolicy
from llmbridge.gateway.link import Link
from llmbridge.gateway.reading import subscribe
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.stream_pb2 import StreamRef

__all__ = ["unbroken"]

_POLICY = RetryPolicy(give_up_after=20.0)
"""An outage that is longer is shown to the person who waits."""


async def unbroken(
    link: Link, stream: StreamRef, *, after_cursor: str = "", policy: RetryPolicy = _POLICY
) -> AsyncGenerator[SubscribeResponse]:
    """Read as `subscribe` does, as often as it takes: every record once, in order.

    Raises Unavailable after an outage of `policy.give_up_after` seconds, and at once when the gateway stops; every
    other ClientError at once.
    """
    clock = asyncio.get_running_loop().time
    outage = Outage(policy, policy.give_up_after)
    while True:
        try:
            with subscribe(link, stream, after_cursor=after_cursor) as messages:
                async for message in messages:
                    outage.over()
                    after_cursor = message.cursor or after_cursor
                    yield message
        except Unavailable as error:
            delay = outage.next_delay(clock(), error.retry_delay)
            if delay is None or link.draining:
                raise
        else:
            return
        await asyncio.sleep(delay)
