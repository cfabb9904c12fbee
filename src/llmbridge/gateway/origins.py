"""Keeps pages of other origins from changing anything: a browser sends their requests even where it hides the answers.

Without it, any page that somebody visits could reach a gateway on loopback, or use their cookie. Knows nothing of CORS'
headers, which tell a browser what it may show.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

import grpc
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llmbridge.gateway.access import COOKIE
from llmbridge.gateway.problems import Problem, response_of

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Origins:
    """Middleware that refuses what changes something for a page that is neither the gateway's own nor listed."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; see ASGI."""
        # A WebSocket can be read, too, and no CORS header keeps a page from it.
        if scope["type"] == "websocket" or (scope["type"] == "http" and scope["method"] not in _READING):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and not self._may(origin, headers):
                problem = Problem(
                    grpc.StatusCode.PERMISSION_DENIED,
                    f"pages of {origin} may not do this (LLMBRIDGE_HTTP_CORS_ORIGINS)",
                )
                await response_of(problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _may(self, origin: str, headers: Headers) -> bool:
        if origin in self._allowed or urlsplit(origin).netloc == headers.get("host"):
            return True
        # Where every page may call, it may do so as nobody in particular: cookies come along whether it asks or not.
        return "*" in self._allowed and f"{COOKIE}=" not in headers.get("cookie", "")
