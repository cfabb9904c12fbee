"""What Server-Sent Events and a WebSocket have in common as a case's incoming messages. Knows neither."""

from abc import ABC, abstractmethod

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest, SubscribeResponse
from tests.conformance.transport import CallFailed


class EventReading(ABC):
    """One subscription: what came of it and was not taken yet, how it ended, and where it stands."""

    def __init__(self, request: SubscribeRequest) -> None:
        self._request = request
        self._place = request.after_cursor
        self._attached = False
        self._waiting: list[SubscribeResponse] = []
        self._end: CallFailed | None = None
        self._over = False

    async def attached(self) -> None:
        while not self._attached:
            await self._more()
            if self._end is not None:
                raise self._end

    async def read(self) -> SubscribeResponse | None:
        while not self._waiting and not self._over:
            await self._more()
        if self._waiting:
            return self._waiting.pop(0)
        if self._end is not None:
            raise self._end
        return None

    @abstractmethod
    async def _more(self) -> None:
        """Take what comes next, or the end."""
