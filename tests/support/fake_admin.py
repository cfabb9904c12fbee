"""The fake bridge's StreamAdminService."""

# ruff: noqa: N802 - the contract names the methods
from collections import deque
from collections.abc import Callable

from llmbridge.v1 import stream_admin_service_pb2 as admin_pb2
from llmbridge.v1 import stream_pb2, token_pb2
from llmbridge.v1.stream_admin_service_pb2_grpc import StreamAdminServiceServicer
from tests.support.fake_log import Key, Logs, key_of
from tests.support.faults import Context, Fault, fail, maybe_fail


class FakeAdmin(StreamAdminServiceServicer):
    """Each call takes the next of `faults`."""

    def __init__(self, logs: Logs, notify: Callable[[], None]) -> None:
        self.faults: deque[Fault] = deque()
        self._logs = logs
        self._notify = notify

    async def CreateStream(
        self, request: admin_pb2.CreateStreamRequest, context: Context
    ) -> admin_pb2.CreateStreamResponse:
        async with maybe_fail(self.faults, context):
            if key_of(request.stream) in self._logs:
                await fail(context, Fault("STREAM_EXISTS"))
            self._logs.create(key_of(request.stream))
        return admin_pb2.CreateStreamResponse(stream=request.stream, created_ms=1)

    async def GetStream(self, request: admin_pb2.GetStreamRequest, context: Context) -> admin_pb2.GetStreamResponse:
        async with maybe_fail(self.faults, context):
            if key_of(request.stream) not in self._logs:
                await fail(context, Fault("STREAM_NOT_FOUND"))
        return admin_pb2.GetStreamResponse(info=self._info(key_of(request.stream)))

    async def ListStreams(
        self, request: admin_pb2.ListStreamsRequest, context: Context
    ) -> admin_pb2.ListStreamsResponse:
        if request.WhichOneof("scope") == "session_id":
            keys = [key for key in reversed(self._logs) if key[0] == request.session_id]
        else:
            keys = [key for key, log in self._logs.items() if log.completion is None]
        begin, size = int(request.page_token or 0), request.page_size or 100
        async with maybe_fail(self.faults, context):
            page = [self._info(key) for key in keys[begin : begin + size]]
        return admin_pb2.ListStreamsResponse(
            streams=page, next_page_token=str(begin + size) if begin + size < len(keys) else ""
        )

    async def TrimStream(self, request: admin_pb2.TrimStreamRequest, context: Context) -> admin_pb2.TrimStreamResponse:
        async with maybe_fail(self.faults, context):
            log = self._logs[key_of(request.stream)]
            if request.WhichOneof("until") == "keep_tokens":
                log.first = max(log.first, len(log.tokens) - request.keep_tokens + 1)
            else:
                log.first = int(request.through_cursor.partition("-")[2]) + 1
        return admin_pb2.TrimStreamResponse(first_sequence=log.first)

    async def DeleteStream(
        self, request: admin_pb2.DeleteStreamRequest, context: Context
    ) -> admin_pb2.DeleteStreamResponse:
        async with maybe_fail(self.faults, context):
            if self._logs.pop(key_of(request.stream), None) is None:
                await fail(context, Fault("STREAM_NOT_FOUND"))
            self._notify()
        return admin_pb2.DeleteStreamResponse()

    def _info(self, key: Key) -> stream_pb2.StreamInfo:
        log = self._logs[key]
        return stream_pb2.StreamInfo(
            stream=stream_pb2.StreamRef(session_id=key[0], model_id=key[1], response_id=key[2]),
            state=stream_pb2.STREAM_STATE_OPEN if log.completion is None else stream_pb2.STREAM_STATE_SEALED,
            first_sequence=log.first,
            last_sequence=log.last,
            producer_epoch=log.producer[0] if log.producer else 0,
            finish_reason=log.completion.finish_reason if log.completion else token_pb2.FINISH_REASON_UNSPECIFIED,
            sealer=log.sealer,
        )
