"""The older addresses by which deployments produce: `/streams/start`, `/streams/token`, `/streams/complete`; `/api/…`.

Without a response id they mean the newest response of session and model. They have no sequence numbers, and so neither
protection against repeated requests nor against lost ones.
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmbridge.client.errors import StreamCompleted
from llmbridge.gateway.access import PRODUCE
from llmbridge.gateway.bodies import read_object
from llmbridge.gateway.calls import ask, produce
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.counts import Counts
from llmbridge.gateway.forms import FormField, read_form, schema_of_form
from llmbridge.gateway.newest import newest_response
from llmbridge.gateway.operations import Operation
from llmbridge.gateway.problems import Problem, error_info, invalid_field
from llmbridge.gateway.responses import PREFIXES, stream_url
from llmbridge.v1 import token_pb2
from llmbridge.v1.bridge_service_pb2 import ProduceRequest, ProduceResponse
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest
from llmbridge.v1.stream_pb2 import STREAM_STATE_OPEN, StreamInfo, StreamRef
from llmbridge.v1.token_pb2 import Completion, Generation, Token

__all__ = ["operations"]

_ROLES = ("assistant", "user", "system", "tool")
_FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "cancelled", "error")

_SESSION = FormField("sessionId", "The conversation.", required=True)
_MODEL = FormField("modelId", "The model that answers.", required=True)
_RESPONSE = FormField("responseId", "Which of its answers; without it the newest.")
_METADATA = FormField("metadata", "Free attributes.", "object")
_FORMS: Mapping[str, tuple[FormField, ...]] = {
    "start": (
        FormField("sessionId", "The conversation; without it a new one."),
        _MODEL,
        FormField("responseId", "The answer's name; without it the bridge makes one."),
        FormField("connectionType", "How the page will read [sse].", choices=("sse", "websocket")),
        FormField("metadata", "Taken and not kept: attributes belong to tokens and to the end.", "object"),
    ),
    "token": (
        _SESSION,
        _MODEL,
        _RESPONSE,
        FormField("token", "A piece of the answer.", required=True),
        FormField("role", "Who speaks [assistant].", choices=_ROLES),
        FormField(
            "metadata",
            "Free attributes; `model`, `temperature` and `maxTokens` tell how it was generated.",
            "object",
        ),
    ),
    "complete": (
        _SESSION,
        _MODEL,
        _RESPONSE,
        FormField("finishReason", "Why it ended [stop].", choices=_FINISH_REASONS),
        FormField("errorMessage", "What went wrong."),
        _METADATA,
    ),
}
_DESCRIPTIONS = {
    "start": "Begins a new response.",
    "token": "Appends a token to the newest response of session and model, or to a new one where that has ended.",
    "complete": "Ends the newest response of session and model.",
}
_TEXT = {"type": "string"}
_ANSWER = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("connectionId", "sessionId", "modelId", "responseId", "status", "streamUrl"), _TEXT),
        **dict.fromkeys(("connectionType", "cursor", "finishReason"), _TEXT),
        "sequence": {"type": "integer"},
    },
    "required": ["connectionId", "sessionId", "modelId", "responseId", "status", "streamUrl"],
}


def operations(gateway: Gateway, counts: Counts) -> list[Operation]:
    """Make the endpoints, with and without `/api`."""
    endpoints = _Endpoints(gateway, counts)
    served = {"start": endpoints.start, "token": endpoints.token, "complete": endpoints.complete}
    return [_operation(prefix, name, serve) for prefix in PREFIXES for name, serve in served.items()]


def _operation(
    prefix: str, name: str, serve: Callable[[Mapping[str, Any], Request], Awaitable[tuple[StreamRef, dict[str, Any]]]]
) -> Operation:
    async def endpoint(request: Request) -> Response:
        stream, told = await serve(read_form(_FORMS[name], await read_object(request)), request)
        url = "/v1/websocket" if told.get("connectionType") == "websocket" else stream_url(prefix, stream)
        return JSONResponse(
            {
                # Older pages know a response by this name.
                "connectionId": stream.response_id,
                "sessionId": stream.session_id,
                "modelId": stream.model_id,
                "responseId": stream.response_id,
                **told,
                "streamUrl": url,
            }
        )

    return Operation(
        name=f"Streams_{name}{prefix.replace('/', '_')}",
        tag="Older addresses",
        verb="POST",
        path=f"{prefix}/streams/{name}",
        description=_DESCRIPTIONS[name],
        parameters=(),
        body=schema_of_form(_FORMS[name]),
        answer=_ANSWER,
        messages=(),
        endpoint=endpoint,
    )


class _Endpoints:
    """The endpoints of one gateway."""

    def __init__(self, gateway: Gateway, counts: Counts) -> None:
        self._gateway = gateway
        self._link = gateway.link
        self._counts = counts
        # Two tokens at once after a completion must not begin two responses. (At two gateways they may.)
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def start(self, values: Mapping[str, Any], request: Request) -> tuple[StreamRef, dict[str, Any]]:
        """Begin a response."""
        stream = StreamRef(
            session_id=values.get("sessionId") or secrets.token_hex(16),
            model_id=values["modelId"],
            response_id=values.get("responseId", ""),
        )
        await self._gateway.access.check(request, PRODUCE, stream)
        created = await self._create(stream)
        return created, {"status": "started", "connectionType": values.get("connectionType", "sse")}

    async def token(self, values: Mapping[str, Any], request: Request) -> tuple[StreamRef, dict[str, Any]]:
        """Append a token."""
        asked = _asked(values)
        await self._gateway.access.check(request, PRODUCE, asked)
        message = ProduceRequest(tokens=[_token(values)])
        if "responseId" in values:
            message.stream.CopyFrom(asked)
            answer = await produce(self._link, self._counts, message)
            return asked, _stored("accepted", answer)
        name = (asked.session_id, asked.model_id)
        async with self._locks.setdefault(name, asyncio.Lock()):
            newest = await self._newest(asked)
            is_open = newest is not None and newest.state == STREAM_STATE_OPEN
            message.stream.CopyFrom(newest.stream if newest is not None and is_open else await self._create(asked))
            try:
                answer = await produce(self._link, self._counts, message)
            except StreamCompleted:
                # It was ended in between: this token is of the next one.
                message.stream.CopyFrom(await self._create(asked))
                answer = await produce(self._link, self._counts, message)
        return message.stream, _stored("accepted", answer)

    async def complete(self, values: Mapping[str, Any], request: Request) -> tuple[StreamRef, dict[str, Any]]:
        """End a response."""
        asked = _asked(values)
        await self._gateway.access.check(request, PRODUCE, asked)
        stream = asked
        if "responseId" not in values:
            newest = await self._newest(asked)
            if newest is None:
                raise Problem(
                    grpc.StatusCode.NOT_FOUND,
                    "this session has no response of this model",
                    details=[
                        error_info("STREAM_NOT_FOUND", {"session_id": asked.session_id, "model_id": asked.model_id})
                    ],
                )
            stream = newest.stream
        reason = values.get("finishReason", "error" if values.get("errorMessage") else "stop")
        completion = Completion(
            finish_reason=token_pb2.FinishReason.Value(f"FINISH_REASON_{reason.upper()}"),
            error_message=values.get("errorMessage", ""),
            attributes=_attributes(values.get("metadata", {})),
        )
        answer = await produce(self._link, self._counts, ProduceRequest(stream=stream, completion=completion))
        return stream, {**_stored("completed", answer), "finishReason": reason}

    async def _newest(self, asked: StreamRef) -> StreamInfo | None:
        return await newest_response(self._link, asked.session_id, lambda info: info.stream.model_id == asked.model_id)

    async def _create(self, stream: StreamRef) -> StreamRef:
        created = await ask(self._link, self._link.admin.CreateStream, CreateStreamRequest(stream=stream))
        return created.stream


def _asked(values: Mapping[str, Any]) -> StreamRef:
    return StreamRef(
        session_id=values["sessionId"], model_id=values["modelId"], response_id=values.get("responseId", "")
    )


def _stored(status: str, answer: ProduceResponse) -> dict[str, Any]:
    return {"status": status, "cursor": answer.cursor, "sequence": answer.last_sequence}


def _token(values: Mapping[str, Any]) -> Token:
    metadata = dict(values.get("metadata", {}))
    token = Token(text=values["token"])
    if "role" in values:
        token.role = token_pb2.Role.Value(f"ROLE_{values['role'].upper()}")
    generation = Generation()
    for name, kinds, target in (
        ("model", (str,), "model"),
        ("temperature", (int, float), "temperature"),
        ("maxTokens", (int,), "max_tokens"),
    ):
        value = metadata.pop(name, None)
        if value is None:
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise invalid_field(f"metadata.{name}", f"metadata.{name} is of the wrong type")
        try:
            setattr(generation, target, value)
        except ValueError:
            raise invalid_field(f"metadata.{name}", f"metadata.{name} is out of range") from None
    if generation.ByteSize():
        token.generation.CopyFrom(generation)
    token.attributes.update(_attributes(metadata))
    return token


def _attributes(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Attributes are text: what is not becomes JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in metadata.items()
    }
