"""OpenAI's protocol: any stream as `chat.completion.chunk` events, and an endpoint that OpenAI SDKs can ask.

What the objects say is in `chat_chunk`.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from llmbridge.client.errors import ClientClosed, ClientError, Disconnected, Unavailable
from llmbridge.client.tasks import outlast
from llmbridge.gateway.access import PRODUCE, SUBSCRIBE
from llmbridge.gateway.bodies import read_object
from llmbridge.gateway.calls import ask
from llmbridge.gateway.chat_chunk import ChatChunks, ChatCompletion, Chunk, error_body
from llmbridge.gateway.chats import Chats
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.event_body import DONE, KEEP_ALIVE, Cut, EventBody, event, while_connected
from llmbridge.gateway.events import reading_problem
from llmbridge.gateway.link import Link
from llmbridge.gateway.names import decoded
from llmbridge.gateway.problems import Problem, invalid_field, problem_of
from llmbridge.gateway.queries import check_query, cursor_of
from llmbridge.gateway.unbroken import unbroken
from llmbridge.gateway.upstream import Question
from llmbridge.v1.bridge_service_pb2 import CancelRequest
from llmbridge.v1.stream_pb2 import StreamRef

__all__ = ["chunk_stream", "refusal", "routes"]

SESSION_HEADER = "x-llmbridge-session"
MODEL_HEADER = "x-llmbridge-model"
RESPONSE_HEADER = "x-llmbridge-response"
"""What names a completion's stream, percent-encoded: names may have any characters, headers not."""

_MODEL = "/v1/sessions/{session_id}/models/{model_id}"
"""The stream whose response id is empty."""
_RESPONSE = _MODEL + "/responses/{response_id}"
_SERVER_ERRORS = 500
_FAILED_UPSTREAM = 502
_CLIENT_LEFT = 499
_FLAGS = {"": True, "true": True, "1": True, "false": False, "0": False}


logger = logging.getLogger(__name__)


def routes(gateway: Gateway, chats: Chats) -> list[BaseRoute]:
    """Give the endpoints."""
    endpoints = _Endpoints(gateway, chats)
    return [
        Route("/v1/chat/completions", endpoints.create, methods=["POST"]),
        *(Route(path + "/chat.completion.chunks", endpoints.read, methods=["GET"]) for path in (_RESPONSE, _MODEL)),
    ]


async def chunk_stream(
    link: Link, stream: StreamRef, *, after_cursor: str = "", include_usage: bool = True
) -> AsyncGenerator[bytes]:
    """Write a stream from its beginning, or after a cursor, as chunks to its end, which is `[DONE]`.

    The last event of each message has the cursor as its id. A response that failed, and history that is lost, end with
    an error event instead. Raises Cut when the stream can't be followed to its end now but may be later.
    """
    encoder = ChatChunks(stream, include_usage=include_usage)
    try:
        async with aclosing(unbroken(link, stream, after_cursor=after_cursor)) as messages:
            async for message in messages:
                chunks = encoder.chunks(message)
                last = len(chunks) - 1
                events = [event(chunk, message.cursor if at == last else "") for at, chunk in enumerate(chunks)]
                yield b"".join(events) or KEEP_ALIVE
                if chunks and "error" in chunks[-1]:
                    return
    except (Unavailable, ClientClosed, Disconnected) as error:
        raise Cut from error
    except ClientError as error:
        yield event(_error_of(reading_problem(error)))
        return
    yield DONE


async def _only_for(link: Link, stream: StreamRef, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Cancel the stream when its one reader leaves, as whoever closes an OpenAI SDK's stream means to."""
    async with aclosing(events):
        try:
            async for piece in events:
                yield piece
        except (GeneratorExit, asyncio.CancelledError):
            await outlast(_cancel(link, stream))
            raise


async def _cancel(link: Link, stream: StreamRef) -> None:
    try:
        await ask(link, link.bridge.Cancel, CancelRequest(stream=stream, reason="the client left"))
    except ClientError as error:
        # Nobody is left to tell. The answer goes on to its end.
        logger.warning("an answer that nobody reads could not be stopped: %s", error)


class _Endpoints:
    """The endpoints of one gateway."""

    def __init__(self, gateway: Gateway, chats: Chats) -> None:
        self._gateway = gateway
        self._chats = chats

    async def read(self, request: Request) -> Response:
        """Show a stream as chunks, after `?cursor=` (or Last-Event-ID) if that is given; waits for its first token."""
        names = request.path_params
        stream = StreamRef(
            session_id=names["session_id"],
            model_id=names["model_id"],
            response_id=names.get("response_id", ""),
        )
        try:
            await self._gateway.access.check(request, SUBSCRIBE, stream)
            check_query(request, ("cursor", "include_usage"))
            usage = _FLAGS.get(request.query_params.get("include_usage", "").lower())
            if usage is None:
                raise invalid_field("include_usage", "include_usage: neither true nor false")
            after = cursor_of(request)
        except Problem as problem:
            return refusal(problem)
        return EventBody(chunk_stream(self._gateway.link, stream, after_cursor=str(after or ""), include_usage=usage))

    async def create(self, request: Request) -> Response:
        """Ask the upstream through a new stream, as OpenAI's `POST /v1/chat/completions`; errors have OpenAI's form.

        With the header `x-llmbridge-session` the answer is a response of that session, which others can read and which
        goes on when the client leaves. The answer's headers name the stream.
        """
        try:
            asked = _asked(await read_object(request), self._gateway.options.upstream_model)
            session = decoded(request.headers.get(SESSION_HEADER, ""), SESSION_HEADER, f"the header {SESSION_HEADER}")
            stream = StreamRef(session_id=session or secrets.token_hex(16), model_id=asked.question.model)
            await self._gateway.access.check(request, PRODUCE, stream)
            stream = await self._chats.start(stream, asked.question)
            headers = _headers(stream)
            if not asked.is_streamed:
                answer = await while_connected(request.receive, self._whole(stream))
                if answer is not None:
                    return JSONResponse(*answer, headers=headers)
                if not session:
                    await _cancel(self._gateway.link, stream)
                return Response(status_code=_CLIENT_LEFT)
        except ClientError as error:
            return refusal(problem_of(error))
        except Problem as problem:
            return refusal(problem)
        link = self._gateway.link
        events = chunk_stream(link, stream, include_usage=asked.include_usage)
        return EventBody(events if session else _only_for(link, stream, events), headers)

    async def _whole(self, stream: StreamRef) -> tuple[Chunk, int]:
        """Wait for the answer's end; returns the body and its status."""
        encoder, completion = ChatChunks(stream, include_usage=True), ChatCompletion()
        async with aclosing(unbroken(self._gateway.link, stream)) as messages:
            async for message in messages:
                for chunk in encoder.chunks(message):
                    if "error" in chunk:
                        return chunk, _FAILED_UPSTREAM
                    completion.add(chunk)
        return completion.body, 200


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request to create a completion asks for."""

    question: Question
    is_streamed: bool
    include_usage: bool


def _asked(body: dict[str, Any], default_model: str) -> _Asked:
    """Read a request's body. What only the model server can judge is passed on."""
    model = body.pop("model", None) or default_model
    messages = body.pop("messages", None)
    options = body.pop("stream_options", None)
    streamed = body.pop("stream", None)
    if not isinstance(model, str) or not model:
        raise invalid_field("model", "model: not a text with at least one character")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise invalid_field("messages", "messages: not a list with at least one message")
    if streamed is not None and not isinstance(streamed, bool):
        raise invalid_field("stream", "stream: neither true nor false")
    if not isinstance(options, dict | None):
        raise invalid_field("stream_options", "stream_options: not an object")
    usage = (options or {}).get("include_usage")
    if not isinstance(usage, bool | None):
        raise invalid_field("stream_options.include_usage", "stream_options.include_usage: neither true nor false")
    if body.pop("n", None) not in (None, 1):
        raise invalid_field("n", "n: a stream carries one answer, so only 1 is possible")
    return _Asked(Question(model, messages, body), bool(streamed), bool(usage))


def _headers(stream: StreamRef) -> dict[str, str]:
    names = {SESSION_HEADER: stream.session_id, MODEL_HEADER: stream.model_id, RESPONSE_HEADER: stream.response_id}
    return {name: quote(value, safe="") for name, value in names.items()}


def refusal(problem: Problem) -> Response:
    """Write a problem as OpenAI does."""
    return JSONResponse(_error_of(problem), status_code=problem.status, headers=problem.headers)


def _error_of(problem: Problem) -> Chunk:
    info: dict[str, Any] = next((dict(one) for one in problem.details if "reason" in one), {})
    return error_body(
        problem.message,
        "server_error" if problem.status >= _SERVER_ERRORS else "invalid_request_error",
        param=info.get("metadata", {}).get("field"),
        code=str(info["reason"]).removeprefix("ERROR_REASON_").lower() if info else None,
    )
