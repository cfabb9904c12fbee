"""Names in addresses: any text may be one, so each part of a path is decoded by itself, after the path was divided.

`/v1/sessions/a%2Fb` is the session `a/b`, and never the session `a`. Knows nothing of particular endpoints.
"""

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

from starlette.convertors import Convertor, StringConvertor
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from llmbridge.gateway.problems import invalid_field

_STRAY_PERCENT = re.compile(r"%(?![0-9a-fA-F]{2})")


def decoded(value: str, field: str, where: str) -> str:
    """Decode a percent-encoded name. Raises Problem, naming the field, for what is none."""
    try:
        if _STRAY_PERCENT.search(value) is None:
            return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        # Told like the other kind.
        pass
    raise invalid_field(field, f"{value[:64]!r} in {where} is not percent-encoded UTF-8")


class _NameConvertor(Convertor[str]):
    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return decoded(value, "path", "the path")

    def to_string(self, value: str) -> str:
        return quote(value, safe="")


_NAME = _NameConvertor()


def with_decoded_names(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """Have the parameters of these routes decoded after the path was divided; for routes behind RawPaths."""
    found = list(routes)
    for route in found:
        if isinstance(route, Route | WebSocketRoute):
            for name, convertor in route.param_convertors.items():
                if isinstance(convertor, StringConvertor):
                    route.param_convertors[name] = _NAME
    return found


class RawPaths:
    """Middleware: routes are found by the path as it was sent, not decoded. Not for mounted applications."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; see ASGI."""
        if scope["type"] in ("http", "websocket"):
            raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
            # Some servers leave the query in.
            path = raw.partition(b"?")[0].decode("latin-1")
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)
