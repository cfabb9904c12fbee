"""ConnectionService."""

from llmbridge.admin.connections import list_connections
from llmbridge.hub.connections import Connection, Connections
from llmbridge.rpc import limits as check
from llmbridge.rpc.convert import name_to_proto
from llmbridge.rpc.limits import Limits
from llmbridge.v1 import connection_service_pb2 as pb


class ConnectionMethods:
    """Decodes, asks the registry, encodes."""

    def __init__(self, connections: Connections, limits: Limits) -> None:
        self._connections = connections
        self._limits = limits

    async def list(self, request: pb.ListConnectionsRequest) -> pb.ListConnectionsResponse:
        """Serve ListConnections."""
        check.check_id("session_id", request.session_id, False, self._limits)
        page_size = check.page_size("page_size", request.page_size)
        page = list_connections(self._connections, request.session_id, page_size, request.page_token)
        return pb.ListConnectionsResponse(
            connections=[connection_to_proto(connection) for connection in page.connections],
            next_page_token=page.next_page_token,
        )

    async def count(self, request: pb.CountConnectionsRequest) -> pb.CountConnectionsResponse:
        """Serve CountConnections."""
        max_sessions = check.page_size("max_sessions", request.max_sessions)
        totals = self._connections.totals()
        return pb.CountConnectionsResponse(
            total=totals.connections,
            members=totals.members,
            session_count=len(totals.per_session),
            sessions=[
                pb.SessionConnections(session_id=session_id, connections=count)
                for session_id, count in totals.per_session.most_common(max_sessions)
            ],
        )

    async def disconnect(self, request: pb.DisconnectConnectionRequest) -> pb.DisconnectConnectionResponse:
        """Serve DisconnectConnection."""
        check.check_id("connection_id", request.connection_id, True, self._limits)
        await self._connections.disconnect(request.connection_id)
        return pb.DisconnectConnectionResponse()


def connection_to_proto(connection: Connection) -> pb.Connection:
    """Encode a connection as it is now."""
    attachment = connection.attachment
    return pb.Connection(
        id=connection.id,
        stream=None if connection.stream is None else name_to_proto(connection.stream),
        transport=pb.Transport.Value(f"TRANSPORT_{attachment.caller.transport.name}"),
        peer=attachment.caller.peer,
        since_ms=connection.since_ms,
        last_activity_ms=connection.last_activity_ms,
        state=pb.ConnectionState.Value(f"CONNECTION_STATE_{connection.state.name}"),
        cursor=connection.cursor,
        lag=connection.lag,
        group=attachment.group,
        consumer=attachment.consumer,
    )
