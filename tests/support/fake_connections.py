"""The fake bridge's ConnectionService."""

# ruff: noqa: N802 - the contract names the methods
from collections import Counter, deque

from llmbridge.v1 import connection_service_pb2 as pb
from llmbridge.v1.connection_service_pb2_grpc import ConnectionServiceServicer
from tests.support.faults import Context, Fault, fail, maybe_fail


class FakeConnections(ConnectionServiceServicer):
    """Each call takes the next of `faults`. `attached` are the connections, oldest first."""

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque()
        self.attached: list[pb.Connection] = []

    async def ListConnections(self, request: pb.ListConnectionsRequest, context: Context) -> pb.ListConnectionsResponse:
        found = [one for one in self.attached if request.session_id in ("", one.stream.session_id)]
        begin, size = int(request.page_token or 0), request.page_size or 100
        async with maybe_fail(self.faults, context):
            page = found[begin : begin + size]
        return pb.ListConnectionsResponse(
            connections=page, next_page_token=str(begin + size) if begin + size < len(found) else ""
        )

    async def CountConnections(
        self, request: pb.CountConnectionsRequest, context: Context
    ) -> pb.CountConnectionsResponse:
        async with maybe_fail(self.faults, context):
            sessions = Counter(one.stream.session_id for one in self.attached if one.HasField("stream"))
        return pb.CountConnectionsResponse(
            total=len(self.attached),
            session_count=len(sessions),
            sessions=[
                pb.SessionConnections(session_id=session_id, connections=count)
                for session_id, count in sessions.most_common(request.max_sessions or 100)
            ],
        )

    async def DisconnectConnection(
        self, request: pb.DisconnectConnectionRequest, context: Context
    ) -> pb.DisconnectConnectionResponse:
        async with maybe_fail(self.faults, context):
            left = [one for one in self.attached if one.id != request.connection_id]
            if len(left) == len(self.attached):
                await fail(context, Fault("CONNECTION_NOT_FOUND"))
            self.attached = left
        return pb.DisconnectConnectionResponse()
