"""Who may do what: the place where every request asks. Without access control everybody may do everything.

Knows where a token may stand in a request, and nothing of what one is.
"""

from typing import Protocol

from starlette.requests import HTTPConnection

from llmbridge.v1.stream_pb2 import StreamRef

PRODUCE = "produce"
SUBSCRIBE = "subscribe"
ADMIN = "admin"

COOKIE = "llmbridge_token"
QUERY_PARAMETER = "access_token"
"""For EventSource and WebSocket, which can't send headers: a short-lived token, since addresses get into logs."""


def token_of(request: HTTPConnection) -> str | None:
    """Find the request's token: in `Authorization: Bearer`, the cookie `llmbridge_token`, or `?access_token=`."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.cookies.get(COOKIE) or request.query_params.get(QUERY_PARAMETER) or None


class Access(Protocol):
    """Decides about requests."""

    async def check(self, request: HTTPConnection, scope: str, stream: StreamRef | None) -> None:
        """Let the request pass, or raise Problem (UNAUTHENTICATED, PERMISSION_DENIED).

        `scope` is PRODUCE, SUBSCRIBE or ADMIN; `stream` is None for what is not about one stream.
        """


class OpenAccess:
    """Lets everybody do everything."""

    async def check(self, request: HTTPConnection, scope: str, stream: StreamRef | None) -> None:
        """Let the request pass."""
