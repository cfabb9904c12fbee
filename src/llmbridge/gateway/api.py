"""The REST part of the gateway as a whole: every operation's route, and the document made of the same operations."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from llmbridge.gateway import aliases, condition, responses, rest
from llmbridge.gateway.chats import Chats
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.counts import Counts
from llmbridge.gateway.openapi import document
from llmbridge.gateway.operations import Operation

__all__ = ["operations", "routes"]


def operations(gateway: Gateway, chats: Chats, counts: Counts) -> list[Operation]:
    """Give all operations."""
    return [
        *rest.operations(gateway, counts),
        *responses.operations(gateway, chats),
        *aliases.operations(gateway, counts),
        *condition.operations(gateway),
    ]


def routes(gateway: Gateway, chats: Chats, counts: Counts) -> list[BaseRoute]:
    """Give the endpoints, and `/openapi.json`."""
    served = operations(gateway, chats, counts)
    written: list[Response] = []

    async def openapi(_: Request) -> Response:
        # Made when it is asked for first, since that reads the contract's comments.
        if not written:
            written.append(JSONResponse(document(served)))
        return written[0]

    return [*(operation.route for operation in served), Route("/openapi.json", openapi, methods=["GET"])]
