"""Creates, inspects, trims, lists and deletes streams. One request each, tried again where that is safe."""

import uuid
from collections.abc import AsyncIterator

from llmbridge.client.connection import Connection
from llmbridge.client.errors import StreamExists, StreamNotFound
from llmbridge.client.values import name_of, stream_name, stream_ref
from llmbridge.model.names import StreamName
from llmbridge.v1.stream_admin_service_pb2 import (
    CreateStreamRequest,
    DeleteStreamRequest,
    GetStreamRequest,
    ListStreamsRequest,
    TrimStreamRequest,
    TrimStreamResponse,
)
from llmbridge.v1.stream_pb2 import StreamInfo


class StreamAdmin:
    """What can be done with streams as a whole. Every method raises Unavailable when the retry policy gave up."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        retention_ms: int = 0,
        max_length: int = 0,
    ) -> StreamName:
        """Create an empty stream and return its name; without a response id, a random one is made.

        `retention_ms` and `max_length` (tokens) replace the bridge's settings for this stream; 0 leaves them. Raises
        StreamExists; if its `outcome_unknown` is set, an earlier attempt of this very call may have created it.
        """
        asked = stream_name(stream, model_id, response_id)
        # Made here and not by the bridge, so that a second attempt can't create a second stream.
        name = asked if asked.response_id else StreamName(asked.session_id, asked.model_id, uuid.uuid4().hex)
        request = CreateStreamRequest(stream=stream_ref(name), retention_ms=retention_ms, max_length=max_length)
        try:
            response = await self._connection.unary(self._connection.admin.CreateStream, request)
        except StreamExists as error:
            if name == asked or not error.outcome_unknown:
                raise
            return name
        return name_of(response.stream)

    async def get(self, stream: StreamName | str, model_id: str = "", response_id: str = "") -> StreamInfo:
        """Tell a stream's state. Raises StreamNotFound."""
        name = stream_name(stream, model_id, response_id)
        request = GetStreamRequest(stream=stream_ref(name))
        return (await self._connection.unary(self._connection.admin.GetStream, request)).info

    def of_session(self, session_id: str, *, page_size: int = 0) -> AsyncIterator[StreamInfo]:
        """List a session's streams, newest first, fetching page after page."""
        return self._pages(ListStreamsRequest(session_id=session_id, page_size=page_size))

    def open(self, *, page_size: int = 0) -> AsyncIterator[StreamInfo]:
        """List all open streams, in no particular order, fetching page after page."""
        return self._pages(ListStreamsRequest(all_open=True, page_size=page_size))

    async def _pages(self, request: ListStreamsRequest) -> AsyncIterator[StreamInfo]:
        while True:
            page = await self._connection.unary(self._connection.admin.ListStreams, request)
            for info in page.streams:
                yield info
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def trim(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        keep_tokens: int | None = None,
        through_cursor: str | None = None,
    ) -> TrimStreamResponse:
        """Drop the oldest records: all but `keep_tokens` tokens, or all up to `through_cursor`.

        Whole batches are dropped, as they were produced. Raises StreamNotFound; HistoryLost if the cursor is not of
        this stream.
        """
        request = TrimStreamRequest(stream=stream_ref(stream_name(stream, model_id, response_id)))
        if keep_tokens is not None and through_cursor is None:
            request.keep_tokens = keep_tokens
        elif through_cursor is not None and keep_tokens is None:
            request.through_cursor = through_cursor
        else:
            raise ValueError("give either keep_tokens or through_cursor")
        return await self._connection.unary(self._connection.admin.TrimStream, request)

    async def delete(self, stream: StreamName | str, model_id: str = "", response_id: str = "") -> None:
        """Delete a stream at once. Raises StreamNotFound."""
        request = DeleteStreamRequest(stream=stream_ref(stream_name(stream, model_id, response_id)))
        try:
            await self._connection.unary(self._connection.admin.DeleteStream, request)
        except StreamNotFound as error:
            # After an attempt without an answer, this says that it had succeeded.
            if not error.outcome_unknown:
                raise
