"""Creates, inspects, trims, lists and deletes streams, for programs without an event loop."""

from collections.abc import AsyncIterator, Iterator

from llmbridge.client import admin as asyncio_admin
from llmbridge.client.sync.loop_thread import LoopThread
from llmbridge.client.sync.reader import next_of
from llmbridge.model.names import StreamName
from llmbridge.v1.stream_admin_service_pb2 import TrimStreamResponse
from llmbridge.v1.stream_pb2 import StreamInfo


class StreamAdmin:
    """What can be done with streams as a whole; each method as that of llmbridge.client.StreamAdmin."""

    def __init__(self, thread: LoopThread, admin: asyncio_admin.StreamAdmin) -> None:
        self._thread = thread
        self._admin = admin

    def create(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        retention_ms: int = 0,
        max_length: int = 0,
    ) -> StreamName:
        """Create an empty stream and return its name. Raises StreamExists."""
        return self._thread.run(
            self._admin.create(stream, model_id, response_id, retention_ms=retention_ms, max_length=max_length)
        )

    def get(self, stream: StreamName | str, model_id: str = "", response_id: str = "") -> StreamInfo:
        """Tell a stream's state. Raises StreamNotFound."""
        return self._thread.run(self._admin.get(stream, model_id, response_id))

    def of_session(self, session_id: str, *, page_size: int = 0) -> Iterator[StreamInfo]:
        """List a session's streams, newest first."""
        return self._each(self._admin.of_session(session_id, page_size=page_size))

    def open(self, *, page_size: int = 0) -> Iterator[StreamInfo]:
        """List all open streams, in no particular order."""
        return self._each(self._admin.open(page_size=page_size))

    def trim(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        keep_tokens: int | None = None,
        through_cursor: str | None = None,
    ) -> TrimStreamResponse:
        """Drop the oldest records. Raises StreamNotFound, HistoryLost."""
        return self._thread.run(
            self._admin.trim(stream, model_id, response_id, keep_tokens=keep_tokens, through_cursor=through_cursor)
        )

    def delete(self, stream: StreamName | str, model_id: str = "", response_id: str = "") -> None:
        """Delete a stream at once. Raises StreamNotFound."""
        self._thread.run(self._admin.delete(stream, model_id, response_id))

    def _each(self, pages: AsyncIterator[StreamInfo]) -> Iterator[StreamInfo]:
        while True:
            try:
                info = next_of(self._thread, pages)
            except StopIteration:
                return
            yield info
