"""One subscription on the call that all of a client's readers share: messages as they come, until the call breaks.

Resuming is for those who read: see reader.py.
"""

import asyncio
from typing import Self

from llmbridge.client.conversation import HowItEnded
from llmbridge.client.errors import InvalidRequest, Unavailable
from llmbridge.client.shared import Shared
from llmbridge.client.subscribe_call import CREDIT_BYTES, Arrival, SubscribeCall
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest, SubscribeResponse

# A loop that was held up has not read yet what came meanwhile: it gets so many seconds to do so before it is silence.
_GRACE_SECONDS = 0.1
# What is larger would end the call, and with it everybody's reading; the bridge takes messages of up to 256 KiB.
_LARGEST_REQUEST = 65_536


class Reading:
    """An async iterator of SubscribeResponses, heartbeats included, which nobody may change: others get the same ones.

    Ends as a Subscribe call would: after the completion, at once where the cursor is behind the stream's end, or with a
    ClientError; Unavailable if the call broke, or nothing was heard for `silence_timeout` seconds. Waiting may be
    cancelled: nothing is lost by that. Who reads slowly is sent no more than CREDIT_BYTES, and holds up nobody else.
    For one task at a time.

    Ends with `close`, or when nothing refers to it any more.
    """

    def __init__(self, shared: Shared[SubscribeCall], request: SubscribeRequest, silence_timeout: float) -> None:
        """Begin. Raises ClientClosed; InvalidRequest for what would be too large for the call."""
        if request.ByteSize() > _LARGEST_REQUEST:
            raise InvalidRequest("the stream's name or the cursor is too long")
        self._loop = asyncio.get_running_loop()
        self._silence_timeout = silence_timeout
        self._call = shared.current()
        self._number, self._inbox = self._call.start(request)
        self._began = self._loop.time()
        self._taken = 0

    def close(self) -> None:
        """Want nothing more; what has come and was not read is gone. May be called again."""
        self._call.drop(self._number)
        self._inbox.arrivals.clear()
        self._inbox.end(None)

    def end(self, how: HowItEnded) -> None:
        """Want nothing more, but the error that `how` makes, once what has come is read. Does nothing at its end."""
        self._call.drop(self._number)
        self._inbox.end(how)

    def __del__(self) -> None:
        # Garbage may be collected in any thread, and after the loop's end.
        call = getattr(self, "_call", None)
        if call is not None and not self._inbox.ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call.drop, self._number)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SubscribeResponse:
        arrival = await self.next()
        if arrival is None:
            raise StopAsyncIteration
        return arrival.response

    async def next(self) -> Arrival | None:
        """Wait for the next message; None after the end. Raises ClientError."""
        inbox = self._inbox
        while not inbox.arrivals:
            if inbox.how_it_ended is not None:
                raise inbox.how_it_ended()
            if inbox.ended:
                return None
            await self._wait()
        arrival = inbox.arrivals.popleft()
        self._taken += arrival.size
        if self._taken >= CREDIT_BYTES // 2:
            self._call.grant(self._number, self._taken)
            self._taken = 0
        return arrival

    async def _wait(self) -> None:
        """Wait until something came, it ended, or the call is to be taken for dead: Unavailable."""
        left = self._silence_timeout - self._silence()
        if left > 0:
            await self._inbox.changed(left)
            return
        await self._inbox.changed(_GRACE_SECONDS)
        if self._silence() >= self._silence_timeout and not self._inbox.arrivals and not self._inbox.ended:
            # Others may be more patient; but nothing new goes where nobody answers.
            self._call.retire()
            raise Unavailable(f"no sign of life for {self._silence_timeout:g} s")

    def _silence(self) -> float:
        return self._loop.time() - max(self._call.heard_at, self._began)
