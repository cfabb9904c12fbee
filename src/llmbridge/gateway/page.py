"""The page at `/`: its files, from the package, with headers that let it load nothing from anywhere else.

Knows nothing of what the page does.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from llmbridge.gateway.context import Gateway

__all__ = ["routes"]

_INDEX = "index.html"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # A new version of the bridge is a new page; what did not change is not sent again.
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    headers: dict[str, str]


def routes(gateway: Gateway) -> list[BaseRoute]:
    """Give the page and its files."""
    found = _load()

    async def file(request: Request) -> Response:
        name = request.path_params.get("name", _INDEX)
        wanted = found.get(name)
        if wanted is None:
            return Response(status_code=404, headers=_HEADERS)
        if wanted.headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=wanted.headers)
        return Response(wanted.content, headers=wanted.headers)

    async def model(_: Request) -> Response:
        """Say whether there is a model to ask, and its name if that is set."""
        options = gateway.options
        return JSONResponse({"model": options.upstream_model if options.upstream_url else None}, headers=_HEADERS)

    return [
        Route("/", file, methods=["GET"]),
        Route("/page/model.json", model, methods=["GET"]),
        Route("/page/{name}", file, methods=["GET"]),
    ]


def _load() -> dict[str, _File]:
    """Read the files once: nothing that a request names is ever a path."""
    loaded = {}
    for entry in files("llmbridge.gateway").joinpath("page").iterdir():
        content = entry.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        kind = _MEDIA_TYPES[entry.name.rpartition(".")[2]]
        loaded[entry.name] = _File(content, {**_HEADERS, "content-type": kind, "etag": etag})
    return loaded
