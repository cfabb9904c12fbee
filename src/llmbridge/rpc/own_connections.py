"""The connections of this process, in the contract's messages."""

from llmbridge.admin.connections import list_connections
from llmbridge.hub.connections import Connection, Connections
from llmbridge.rpc import limits as check
from llmbridge.rpc.convert import name_to_proto
from llmbridge.v1 import connection_service_pb2 as pb


class OwnConnections:
    """Asks the registry, encodes."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    @property
    def instance_id(self) -> str:
        """Names the instance in page tokens."""
        return self._connections.instance_id

    def list(self, request: pb.ListConnectionsRequest) -> pb.ListConnectionsResponse:
        """Give a page. Raises InvalidField."""
        page_size = check.page_size("page_size", request.page_size)
        page = list_connections(self._connections, request.session_id, page_size, request.page_token)
        return pb.ListConnectionsResponse(
            connections=[_to_proto(connection) for connection in page.connections],
            next_page_token=page.next_page_token,
        )

    def count(self) -> pb.CountConnectionsResponse:
        """Count all, and name every session."""
        totals = self._connections.totals()
        return pb.CountConnectionsResponse(
            total=totals.connections,
            members=totals.members,
            session_count=len(totals.per_session),
            sessions=[
                pb.SessionConnections(session_id=session_id, connections=count)
                for session_id, count in totals.per_session.items()
            ],
        )

    def is_here(self, connection_id: str) -> bool:
        """Whether there is such a connection."""
        return connection_id in self._connections

    async def disconnect(self, connection_id: str) -> None:
        """End one. Raises ConnectionNotFound."""
        await self._connections.disconnect(connection_id)


def _to_proto(connection: Connection) -> pb.Connection:
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
