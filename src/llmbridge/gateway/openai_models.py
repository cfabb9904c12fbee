"""`GET /v1/models`, as OpenAI's SDKs ask it: which models can be named to `POST /v1/chat/completions`.

Those are the upstream's, since it is what answers. Knows nothing of streams.
"""

from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from llmbridge.gateway.access import PRODUCE
from llmbridge.gateway.chats import Chats
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.openai_chunks import refusal
from llmbridge.gateway.problems import Problem
from llmbridge.gateway.upstream import UpstreamError

__all__ = ["routes"]

_BAD_GATEWAY = 502


def routes(gateway: Gateway, chats: Chats) -> list[BaseRoute]:
    """Give the endpoint."""

    async def models(request: Request) -> Response:
        try:
            await gateway.access.check(request, PRODUCE, None)
            found = await chats.models()
        except UpstreamError as error:
            return refusal(Problem(grpc.StatusCode.UNAVAILABLE, str(error), status=_BAD_GATEWAY))
        except Problem as problem:
            return refusal(problem)
        return JSONResponse({"object": "list", "data": with_default(found, gateway.options.upstream_model)})

    return [Route("/v1/models", models, methods=["GET"])]


def with_default(models: list[dict[str, Any]], default: str) -> list[dict[str, Any]]:
    """Put the model that a request without one means first, also if the upstream does not tell of it."""
    if not default:
        return models
    unknown = {"id": default, "object": "model", "created": 0, "owned_by": "upstream"}
    first = next((model for model in models if model["id"] == default), unknown)
    return [first, *(model for model in models if model["id"] != default)]
