"""Starts responses for pages: `POST …/responses`, which tells all that a page needs to show one; and `/chat/start`.

Knows the other modules' addresses by their form only.
"""

import secrets
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmbridge.gateway.access import PRODUCE
from llmbridge.gateway.bodies import read_object
from llmbridge.gateway.calls import ask
from llmbridge.gateway.chats import Chats
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.forms import FormField, read_form, schema_of_form
from llmbridge.gateway.operations import Operation, Parameter
from llmbridge.gateway.problems import invalid_field
from llmbridge.gateway.transcoding import fill_from_json, refuse_unknown, settable_fields
from llmbridge.gateway.upstream import Question
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest
from llmbridge.v1.stream_pb2 import StreamRef

__all__ = ["operations", "stream_url", "urls_of"]

PREFIXES = ("", "/api")

_TEXT = {"type": "string"}
_RESPONSE_ID = FormField("responseId", "The response's name; without it the bridge makes one.")
_START = (
    _RESPONSE_ID,
    FormField("retentionMs", "As in CreateStream.", "string"),
    FormField("maxLength", "As in CreateStream.", "string"),
)
_CHAT = (
    FormField("sessionId", "The conversation; without it a new one."),
    FormField("modelId", "The model, by the model server's name; without it the configured one."),
    FormField("prompt", "What to ask.", required=True),
    _RESPONSE_ID,
)


def stream_url(prefix: str, stream: StreamRef) -> str:
    """Give the address of a stream's events as older pages know it."""
    query = urlencode({"modelId": stream.model_id, "responseId": stream.response_id}, quote_via=quote)
    return f"{prefix}/sse/stream/{quote(stream.session_id, safe='')}?{query}"


def urls_of(stream: StreamRef) -> dict[str, str]:
    """Give the addresses, without the host, where a response is shown and stopped."""
    names = (stream.session_id, stream.model_id, stream.response_id)
    session, model, response = (quote(name, safe="") for name in names)
    base = f"/v1/sessions/{session}/models/{model}/responses/{response}"
    return {
        "self": base,
        "produce": f"{base}:produce",
        "cancel": f"{base}:cancel",
        "events": f"{base}/events",
        "webSocket": "/v1/websocket",
        "aiSdk": f"/api/chat/{session}/stream",
        "openai": f"{base}/chat.completion.chunks",
    }


def operations(gateway: Gateway, chats: Chats) -> list[Operation]:
    """Make the endpoints."""
    endpoints = _Endpoints(gateway, chats)
    start = Operation(
        name="Responses_Start",
        tag="Responses",
        verb="POST",
        path="/v1/sessions/{sessionId}/models/{modelId}/responses",
        description="Starts a response: creates its stream, and tells where it is shown.",
        parameters=(
            Parameter("sessionId", "path", {**_TEXT, "minLength": 1}, "The conversation."),
            Parameter("modelId", "path", {**_TEXT, "minLength": 1}, "The model that answers."),
        ),
        body=schema_of_form(_START),
        answer={
            "type": "object",
            "properties": {
                "sessionId": _TEXT,
                "modelId": _TEXT,
                "responseId": _TEXT,
                "createdMs": _TEXT,
                "cursor": {**_TEXT, "description": "Where to begin to read: empty, the beginning."},
                "urls": {"type": "object", "additionalProperties": _TEXT},
            },
            "required": ["sessionId", "modelId", "responseId", "createdMs", "cursor", "urls"],
        },
        messages=(),
        endpoint=endpoints.start,
    )
    return [start, *(endpoints.chat_operation(prefix) for prefix in PREFIXES)]


class _Endpoints:
    """The endpoints of one gateway."""

    def __init__(self, gateway: Gateway, chats: Chats) -> None:
        self._gateway = gateway
        self._chats = chats

    def chat_operation(self, prefix: str) -> Operation:
        """Make `/chat/start` under a prefix."""

        async def serve(request: Request) -> Response:
            return await self.chat(request, prefix)

        return Operation(
            name=f"Chat_Start{prefix.replace('/', '_')}",
            tag="Chat",
            verb="POST",
            path=f"{prefix}/chat/start",
            description="Asks the configured model server, whose answer goes into a new response. Answers at once.",
            parameters=(),
            body=schema_of_form(_CHAT),
            answer={
                "type": "object",
                "properties": dict.fromkeys(
                    ("connectionId", "sessionId", "modelId", "responseId", "status", "streamUrl"), _TEXT
                )
                | {"urls": {"type": "object", "additionalProperties": _TEXT}},
                "required": ["connectionId", "sessionId", "modelId", "responseId", "status", "streamUrl", "urls"],
            },
            messages=(),
            endpoint=serve,
        )

    async def start(self, request: Request) -> Response:
        """Start a response that somebody will produce."""
        names = request.path_params
        stream = StreamRef(session_id=names["sessionId"], model_id=names["modelId"])
        await self._gateway.access.check(request, PRODUCE, stream)
        values = await read_object(request)
        # What StreamRef calls response_id stands beside CreateStream's own fields here.
        inner = settable_fields(StreamRef.DESCRIPTOR, {"session_id", "model_id"})
        outer = settable_fields(CreateStreamRequest.DESCRIPTOR, {"stream"})
        refuse_unknown(values, inner | outer)
        fill_from_json(stream, {name: value for name, value in values.items() if name in inner}, inner)
        message = CreateStreamRequest(stream=stream)
        fill_from_json(message, {name: value for name, value in values.items() if name in outer}, outer)
        created = await ask(self._gateway.link, self._gateway.link.admin.CreateStream, message)
        return JSONResponse(
            {
                **_names(created.stream),
                "createdMs": str(created.created_ms),
                "cursor": "",
                "urls": urls_of(created.stream),
            }
        )

    async def chat(self, request: Request, prefix: str) -> Response:
        """Start a response that the upstream produces."""
        values = read_form(_CHAT, await read_object(request))
        model = values.get("modelId") or self._gateway.options.upstream_model
        if not model:
            raise invalid_field("modelId", "modelId is missing, and no model is configured")
        stream = StreamRef(
            session_id=values.get("sessionId") or secrets.token_hex(16),
            model_id=model,
            response_id=values.get("responseId", ""),
        )
        await self._gateway.access.check(request, PRODUCE, stream)
        started = await self._chats.start(stream, Question.of_prompt(model, values["prompt"]))
        return JSONResponse(
            {
                "connectionId": started.response_id,
                **_names(started),
                "status": "started",
                "streamUrl": stream_url(prefix, started),
                "urls": urls_of(started),
            }
        )


def _names(stream: StreamRef) -> dict[str, Any]:
    return {"sessionId": stream.session_id, "modelId": stream.model_id, "responseId": stream.response_id}
