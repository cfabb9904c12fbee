"""One call that reads one stream: from wherever it starts to its completion, each record once, or an explicit error."""

from llmbridge.hub.attached import Attached
from llmbridge.hub.tail import Found
from llmbridge.model.cursor import Cursor
from llmbridge.model.wire import Wire
from llmbridge.subscribe.place import Place
from llmbridge.subscribe.start import Start


class Reader(Attached):
    """Reads from a place on. Made and attached by Subscriptions; used by one task."""

    def __init__(self, place: Place, wire: Wire, heartbeat_seconds: float) -> None:
        super().__init__(heartbeat_seconds)
        self._place = place
        self._wire = wire
        self._first: Found | None = None

    @property
    def cursor(self) -> str:
        """The cursor of the last record handed out, as the client gets it; empty before the first."""
        return self._place.cursor_text

    @property
    def lag(self) -> int:
        """How many records come after the cursor, as far as the tail knows."""
        return self._place.lag

    async def attach(self, start: Start) -> None:
        """Take the place to start from. Raises a HistoryGone or RedisUnavailable."""
        self._first = await self._place.attach(start, self.poke)
        if isinstance(start, Cursor):
            self._first = await self._place.advance()

    async def detach(self) -> None:
        """Let go of the tail."""
        self._place.detach()

    async def _advance(self) -> bytes | None:
        place = self._place
        found = place.live()
        if found is None:
            news = False
            if not place.caught_up():
                found = await place.advance()
                # What changed while the log was read would not wake this reader any more.
                news = not place.unchanged
            if found is None:
                self._ended = place.ended
                if not self._ended and not news:
                    await self._wait()
                return None
        place.take(found)
        self._ended = found.ended
        return found.message

    def _at_hand(self) -> bytes | None:
        if self._first is None:
            return None
        first, self._first = self._first, None
        self._place.take(first)
        self._ended = first.ended
        return first.message

    def _heartbeat(self) -> bytes:
        return self._wire.heartbeat(self.cursor)
