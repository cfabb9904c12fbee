"""Create, inspect, list, trim and delete streams."""

import secrets
from dataclasses import dataclass, replace

from llmbridge.admin.page_tokens import make_page_token, parse_page_token
from llmbridge.errors import StreamNotFound
from llmbridge.log.streams import SessionPlace, StreamLog, StreamState
from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName

RESPONSE_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class ListPage:
    """Some streams, and the token of the next page ('' after the last)."""

    streams: tuple[StreamState, ...]
    next_page_token: str


class Streams:
    """Works on whole streams."""

    def __init__(self, log: StreamLog, default_retention_ms: int) -> None:
        self._log = log
        self._default_retention_ms = default_retention_ms

    async def create(
        self, name: StreamName, retention_ms: int | None, max_length: int | None
    ) -> tuple[StreamName, int]:
        """Create an empty stream, with a random response id where the name has none; returns name and time (ms).

        Raises StreamExists.
        """
        if not name.response_id:
            name = replace(name, response_id=secrets.token_urlsafe(RESPONSE_ID_BYTES))
        incarnation = await self._log.create(name, retention_ms, max_length, self._default_retention_ms)
        return name, incarnation // 1000

    async def get(self, name: StreamName) -> StreamState:
        """Tell a stream's state. Raises StreamNotFound."""
        state = await self._log.inspect(name)
        if state is None:
            raise StreamNotFound(name)
        return state

    async def trim(self, name: StreamName, keep_tokens: int, through: Cursor | None) -> tuple[int, int]:
        """Drop the oldest entries. Returns and raises as StreamLog.trim."""
        return await self._log.trim(name, keep_tokens, through)

    async def delete(self, name: StreamName) -> None:
        """Delete a stream. Raises StreamNotFound."""
        if not await self._log.delete(name):
            raise StreamNotFound(name)

    async def list_session(self, session_id: str, page_size: int, page_token: str) -> ListPage:
        """List a session's streams, newest first. Raises InvalidField for a page token that is none."""
        place: SessionPlace | None = None
        if page_token:
            place = SessionPlace(*parse_page_token(page_token, "session", session_id))
        streams: list[StreamState] = []
        while len(streams) < page_size:
            wanted = page_size - len(streams)
            members = await self._log.session_members(session_id, place, wanted)
            states = await self._log.inspect_all([name for name, _ in members])
            streams += [state for state in states if state is not None]
            if len(members) < wanted:
                return ListPage(tuple(streams), "")
            place = members[-1][1]
        assert place is not None, "a full page has a last member"
        return ListPage(tuple(streams), make_page_token("session", session_id, place.created_us, place.member))

    async def list_open(self, page_size: int, page_token: str) -> ListPage:
        """List all open streams, partition by partition. Raises InvalidField for a page token that is none."""
        partition, after = parse_page_token(page_token, "open", "") if page_token else (0, "")
        streams: list[StreamState] = []
        while partition < self._log.partitions:
            wanted = page_size - len(streams)
            members = await self._log.open_members(partition, after, wanted)
            states = await self._log.inspect_all([name for name, _ in members])
            # Others were sealed or expired since the index was read.
            streams += [state for state in states if state is not None and state.sealer is None]
            if len(members) < wanted:
                partition, after = partition + 1, ""
            else:
                after = members[-1][1]
            if len(streams) == page_size:
                return ListPage(tuple(streams), make_page_token("open", "", partition, after))
        return ListPage(tuple(streams), "")
