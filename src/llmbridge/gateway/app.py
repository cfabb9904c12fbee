"""The gateway's application: which endpoints there are, and what all of them share. Only this module knows them all."""

import logging
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from llmbridge.client.errors import ClientError
from llmbridge.gateway import ai_sdk, api, openai_chunks, openai_models, page, sse, sse_alias, websocket
from llmbridge.gateway.chats import Chats
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.limits import Limits
from llmbridge.gateway.names import RawPaths, with_decoded_names
from llmbridge.gateway.options import Options
from llmbridge.gateway.origins import Origins
from llmbridge.gateway.problems import Problem, error_info, problem_of, response_of

CORS_MAX_AGE_SECONDS = 600
EXPOSED_HEADERS = (
    "retry-after",
    "x-llmbridge-model",
    "x-llmbridge-response",
    "x-llmbridge-session",
    "x-vercel-ai-ui-message-stream",
)

logger = logging.getLogger(__name__)


def create_app(gateway: Gateway) -> Starlette:
    """Assemble the application. It is to be run with its lifespan, which owns the upstream's answers."""
    options = gateway.options
    counts = gateway.instance.counts
    chats = Chats(gateway.link, options, counts)
    gateway.instance.measure(lambda: (gateway.link.reads, chats.under_way))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with chats:
            yield

    app = Starlette(
        routes=with_decoded_names([*api.routes(gateway, chats, counts), *_routes(gateway, chats)]),
        lifespan=lifespan,
        middleware=[
            Middleware(RawPaths),
            *_cors(options),
            Middleware(Origins, allowed=options.http_cors_origins),
            Middleware(Limits, max_body_bytes=options.http_max_body_bytes, max_requests=options.http_max_connections),
        ],
        exception_handlers={
            Problem: _problem,
            ClientError: _client_error,
            HTTPException: _http_exception,
            Exception: _defect,
        },
    )
    # One address, one thing.
    app.router.redirect_slashes = False
    app.router.default = _nothing_there
    return app


def _routes(gateway: Gateway, chats: Chats) -> Iterable[BaseRoute]:
    for reading in (sse, sse_alias, websocket, page):
        yield from reading.routes(gateway)
    for asking in (ai_sdk, openai_chunks, openai_models):
        yield from asking.routes(gateway, chats)


def _cors(options: Options) -> list[Middleware]:
    if not options.http_cors_origins:
        return []
    everybody = "*" in options.http_cors_origins
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=options.http_cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            # With cookies any page could act as whoever visits it.
            allow_credentials=not everybody,
            expose_headers=EXPOSED_HEADERS,
            max_age=CORS_MAX_AGE_SECONDS,
        )
    ]


def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return response_of(error)


def _client_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ClientError)
    return response_of(problem_of(error))


async def _nothing_there(scope: Scope, receive: Receive, send: Send) -> None:
    what = "no WebSocket" if scope["type"] == "websocket" else "nothing"
    problem = Problem(grpc.StatusCode.NOT_FOUND, f"there is {what} at {scope['path']}")
    await response_of(problem)(scope, receive, send)


def _http_exception(request: Request, error: Exception) -> Response:
    """Answer for what Starlette itself refuses: methods that an address does not have."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        # Starlette names those of one route, and an address may have several.
        allowed = ", ".join(sorted(_methods_at(request)))
        problem = Problem(
            grpc.StatusCode.UNIMPLEMENTED,
            f"{request.method} is not for {request.url.path}, which has {allowed}",
            status=405,
            headers={"allow": allowed},
        )
    else:
        problem = Problem(grpc.StatusCode.UNKNOWN, error.detail, status=error.status_code, headers=error.headers)
    return response_of(problem)


def _methods_at(request: Request) -> set[str]:
    app: Starlette = request.app
    routes = [route for route in app.routes if isinstance(route, Route)]
    path = next(route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in routes if route.path == path for method in route.methods or ()}


def _defect(request: Request, error: Exception) -> Response:
    incident = secrets.token_hex(8)
    logger.error("incident %s: %s %s", incident, request.method, request.url.path, exc_info=error)
    return response_of(
        Problem(
            grpc.StatusCode.INTERNAL,
            f"a defect of the gateway; its log has the details under {incident}",
            details=[error_info("INTERNAL", {"incident": incident})],
        )
    )
