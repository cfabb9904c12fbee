"""StreamAdminService."""

from llmbridge.admin.streams import Streams
from llmbridge.errors import InvalidField, LimitExceeded
from llmbridge.model.records import MAX_SEQUENCE
from llmbridge.rpc import limits as check
from llmbridge.rpc.convert import name_to_proto, state_to_proto
from llmbridge.rpc.limits import Limits
from llmbridge.v1 import stream_admin_service_pb2 as pb

MIN_RETENTION_MS = 1_000


class StreamAdminMethods:
    """Decodes, works on the stream, encodes."""

    def __init__(self, streams: Streams, limits: Limits) -> None:
        self._streams = streams
        self._limits = limits

    async def create(self, request: pb.CreateStreamRequest) -> pb.CreateStreamResponse:
        """Serve CreateStream."""
        name = check.stream_name(request.stream, self._limits)
        if request.retention_ms > self._limits.max_retention_ms:
            raise LimitExceeded(
                "max_retention_ms", self._limits.max_retention_ms, request.retention_ms, "ask for a shorter retention"
            )
        if request.retention_ms and request.retention_ms < MIN_RETENTION_MS:
            raise InvalidField("retention_ms", f"is {request.retention_ms}, at least {MIN_RETENTION_MS} is needed")
        check.check_number("max_length", request.max_length)
        name, created_ms = await self._streams.create(name, request.retention_ms or None, request.max_length or None)
        return pb.CreateStreamResponse(stream=name_to_proto(name), created_ms=created_ms)

    async def get(self, request: pb.GetStreamRequest) -> pb.GetStreamResponse:
        """Serve GetStream."""
        state = await self._streams.get(check.stream_name(request.stream, self._limits))
        return pb.GetStreamResponse(info=state_to_proto(state))

    async def list(self, request: pb.ListStreamsRequest) -> pb.ListStreamsResponse:
        """Serve ListStreams."""
        page_size = check.page_size("page_size", request.page_size)
        scope = request.WhichOneof("scope")
        if scope == "session_id":
            check.check_id("session_id", request.session_id, True, self._limits)
            page = await self._streams.list_session(request.session_id, page_size, request.page_token)
        elif scope == "all_open" and request.all_open:
            page = await self._streams.list_open(page_size, request.page_token)
        else:
            raise InvalidField("scope", "is not set: set session_id, or all_open to true")
        return pb.ListStreamsResponse(
            streams=[state_to_proto(state) for state in page.streams], next_page_token=page.next_page_token
        )

    async def trim(self, request: pb.TrimStreamRequest) -> pb.TrimStreamResponse:
        """Serve TrimStream."""
        name = check.stream_name(request.stream, self._limits)
        until = request.WhichOneof("until")
        if until == "keep_tokens" and 1 <= request.keep_tokens <= MAX_SEQUENCE:
            first, dropped = await self._streams.trim(name, request.keep_tokens, None)
        elif until == "through_cursor":
            through = check.cursor("through_cursor", request.through_cursor)
            first, dropped = await self._streams.trim(name, 0, through)
        else:
            raise InvalidField("until", "set keep_tokens, at least 1, or through_cursor")
        return pb.TrimStreamResponse(first_sequence=first, entries_dropped=dropped)

    async def delete(self, request: pb.DeleteStreamRequest) -> pb.DeleteStreamResponse:
        """Serve DeleteStream."""
        await self._streams.delete(check.stream_name(request.stream, self._limits))
        return pb.DeleteStreamResponse()
