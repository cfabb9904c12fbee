"""ConnectionService: answers for all workers of the instance, whichever of them is asked."""

from collections import Counter

from llmbridge.admin.connections import Page, one_page
from llmbridge.rpc import limits as check
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.own_connections import OwnConnections
from llmbridge.rpc.siblings import Siblings
from llmbridge.v1 import connection_service_pb2 as pb


class ConnectionMethods:
    """Decodes, asks this worker and its siblings, makes one answer of theirs."""

    def __init__(self, own: OwnConnections, siblings: Siblings, limits: Limits) -> None:
        self._own = own
        self._siblings = siblings
        self._limits = limits

    async def list(self, request: pb.ListConnectionsRequest) -> pb.ListConnectionsResponse:
        """Serve ListConnections."""
        check.check_id("session_id", request.session_id, False, self._limits)
        page_size = check.page_size("page_size", request.page_size)
        # This worker first: it refuses a bad request, for all of them.
        answers = [self._own.list(request), *await self._siblings.pages(request)]
        pages = [Page(tuple(answer.connections), answer.next_page_token) for answer in answers]
        page = one_page(pages, request.session_id, page_size, self._own.instance_id)
        return pb.ListConnectionsResponse(connections=page.connections, next_page_token=page.next_page_token)

    async def count(self, request: pb.CountConnectionsRequest) -> pb.CountConnectionsResponse:
        """Serve CountConnections."""
        max_sessions = check.page_size("max_sessions", request.max_sessions)
        counts = [self._own.count(), *await self._siblings.count()]
        per_session: Counter[str] = Counter()
        for count in counts:
            per_session.update({one.session_id: one.connections for one in count.sessions})
        return pb.CountConnectionsResponse(
            total=sum(count.total for count in counts),
            members=sum(count.members for count in counts),
            session_count=len(per_session),
            sessions=[
                pb.SessionConnections(session_id=session_id, connections=connections)
                for session_id, connections in per_session.most_common(max_sessions)
            ],
        )

    async def disconnect(self, request: pb.DisconnectConnectionRequest) -> pb.DisconnectConnectionResponse:
        """Serve DisconnectConnection."""
        check.check_id("connection_id", request.connection_id, True, self._limits)
        if self._own.is_here(request.connection_id):
            await self._own.disconnect(request.connection_id)
        else:
            await self._siblings.disconnect(request.connection_id)
        return pb.DisconnectConnectionResponse()
