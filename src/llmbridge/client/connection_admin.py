"""Lists, counts and ends the connections of a bridge. One request each, tried again where that is safe."""

from collections.abc import AsyncIterator

from llmbridge.client.connection import Connection
from llmbridge.client.errors import ConnectionNotFound
from llmbridge.v1 import connection_service_pb2 as pb


class ConnectionAdmin:
    """The readers, members and watchers attached to the bridge that answers, at all its workers.

    Every method raises Unavailable when the retry policy gave up.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self, session_id: str = "", *, page_size: int = 0) -> AsyncIterator[pb.Connection]:
        """List a session's connections, or without one all, oldest first, fetching page after page.

        Raises InvalidRequest if another bridge answers in between.
        """
        request = pb.ListConnectionsRequest(session_id=session_id, page_size=page_size)
        while True:
            page = await self._connection.unary(self._connection.connections.ListConnections, request)
            for info in page.connections:
                yield info
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def count(self, *, max_sessions: int = 0) -> pb.CountConnectionsResponse:
        """Count all connections, and those of the `max_sessions` sessions that have the most (0: of 100)."""
        request = pb.CountConnectionsRequest(max_sessions=max_sessions)
        return await self._connection.unary(self._connection.connections.CountConnections, request)

    async def disconnect(self, connection_id: str) -> None:
        """End a connection, also one whose client takes nothing; that client gets Disconnected.

        Raises ConnectionNotFound.
        """
        request = pb.DisconnectConnectionRequest(connection_id=connection_id)
        try:
            await self._connection.unary(self._connection.connections.DisconnectConnection, request)
        except ConnectionNotFound as error:
            # After an attempt without an answer, this says that it had succeeded.
            if not error.outcome_unknown:
                raise
