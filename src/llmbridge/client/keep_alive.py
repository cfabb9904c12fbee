"""Tells the bridge, while a producer writes nothing, that it lives. Knows the writer only as a callback."""

import asyncio
import logging
from collections.abc import Callable

from llmbridge.client.connection import Connection
from llmbridge.client.errors import ClientError, GenerationOver, StreamNotFound
from llmbridge.v1.bridge_service_pb2 import KeepAliveRequest

_log = logging.getLogger(__name__)

# Before the bridge has told how long a producer may be silent, and at most: so long a model works in vain that was
# cancelled before it said anything, or where the bridge could not tell.
_LONGEST_INTERVAL = 5.0
# The contract's advice: call at a quarter of the limit, so that three calls may get lost.
_SHARE = 4


class KeepAlive:
    """Calls KeepAlive after every `interval` seconds of silence.

    None: a quarter of the bridge's limit, and at least every 5 s, since this is also how a silent producer learns that
    nobody wants it any more.
    """

    def __init__(
        self,
        connection: Connection,
        request: KeepAliveRequest,
        interval: float | None,
        on_over: Callable[[GenerationOver], None],
    ) -> None:
        self._connection = connection
        self._request = request
        self._interval = interval
        self._on_over = on_over
        self._clock = asyncio.get_running_loop().time
        self._spoke_at = self._clock()

    def spoke(self) -> None:
        """Note that the producer has just been heard of by the bridge."""
        self._spoke_at = self._clock()

    async def run(self) -> None:
        """Keep the stream alive until the task is cancelled, or until the bridge says that the generation is over."""
        interval = self._interval or _LONGEST_INTERVAL
        while True:
            silence = self._clock() - self._spoke_at
            if silence < interval:
                await asyncio.sleep(interval - silence)
                continue
            began = self._clock()
            try:
                response = await self._connection.unary(
                    self._connection.bridge.KeepAlive, self._request, give_up_after=interval
                )
            except GenerationOver as error:
                self._on_over(error)
                return
            except StreamNotFound:
                # Before the first token there may be no stream, hence no limit. If it vanished, the next write tells.
                _log.debug("nothing to keep alive yet: %s", self._request.stream)
            except ClientError as error:
                _log.warning("could not keep the stream alive: %s", error)
            else:
                if self._interval is None:
                    interval = min(response.producer_lost_ms / 1000 / _SHARE or _LONGEST_INTERVAL, _LONGEST_INTERVAL)
            # The bridge counts from some moment of the call; the earliest is the safe one.
            self._spoke_at = max(self._spoke_at, began)
