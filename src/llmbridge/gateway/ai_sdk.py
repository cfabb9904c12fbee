"""The Vercel AI SDK's endpoints, as `useChat` calls them: send, resume and stop. A chat's id is the session's.

What the protocol says is in `ui_message`; here is how a response gets to a client, and that it never seems whole when
it is not.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from llmbridge.client.errors import ClientClosed, ClientError, Disconnected, Unavailable
from llmbridge.gateway.access import PRODUCE, SUBSCRIBE
from llmbridge.gateway.bodies import read_object
from llmbridge.gateway.calls import ask
from llmbridge.gateway.chats import Chats
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.event_body import DONE, KEEP_ALIVE, Cut, EventBody, event
from llmbridge.gateway.link import Link
from llmbridge.gateway.newest import newest_response
from llmbridge.gateway.problems import invalid_field
from llmbridge.gateway.queries import check_query, cursor_of
from llmbridge.gateway.reading import subscribe
from llmbridge.gateway.ui_message import Chunk, UiMessage, message_id_of
from llmbridge.gateway.ui_prompt import prompt_of
from llmbridge.gateway.unbroken import unbroken
from llmbridge.gateway.upstream import Question
from llmbridge.model.cursor import Cursor
from llmbridge.v1.bridge_service_pb2 import CancelRequest
from llmbridge.v1.stream_pb2 import STREAM_STATE_OPEN, StreamInfo, StreamRef

__all__ = ["routes", "ui_message_stream"]

HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
"""By this the SDK tells the protocol's version."""

_STOPPED = "stopped by the reader"
_PARAMETERS = ("tools", "tool_choice", "temperature", "top_p", "max_tokens", "seed")


def routes(gateway: Gateway, chats: Chats) -> list[BaseRoute]:
    """Give the endpoints under `/api/chat`."""
    endpoints = _Endpoints(gateway, chats)
    return [
        Route("/api/chat", endpoints.send, methods=["POST"]),
        Route("/api/chat/{chat_id}/stream", endpoints.resume, methods=["GET"]),
        Route("/api/chat/{chat_id}/stop", endpoints.stop, methods=["POST"]),
    ]


async def ui_message_stream(
    link: Link, stream: StreamRef, *, after: Cursor | None = None, named: bool = True
) -> AsyncGenerator[bytes]:
    """Write a response as a UI message stream, to its end.

    From `start`, or what follows the cursor `after`, without `start`: the client has the parts that were open there,
    and they go on under the same ids. `after` must be a place in the log as it is. `named` as in UiMessage.start. The
    last event of each message has the cursor as its id.

    Raises Cut when the stream can't be followed to its end now but may be later. Lost history is an `error`.
    """
    message = UiMessage(message_id_of(stream))
    try:
        if after is None:
            yield b"".join(event(chunk) for chunk in message.start(named=named))
        else:
            await _catch_up(link, stream, message, after)
        async with aclosing(unbroken(link, stream, after_cursor="" if after is None else str(after))) as messages:
            async for received in messages:
                chunks = message.tokens(received.tokens)
                if received.HasField("completion"):
                    chunks += message.completion(received.completion)
                yield _events(chunks, received.cursor) or KEEP_ALIVE
    except (Unavailable, ClientClosed, Disconnected) as error:
        raise Cut from error
    except ClientError as error:
        yield event({"type": "error", "errorText": error.message})
    yield DONE


def _events(chunks: list[Chunk], cursor: str) -> bytes:
    last = len(chunks) - 1
    return b"".join(event(chunk, cursor if at == last else "") for at, chunk in enumerate(chunks))


async def _catch_up(link: Link, stream: StreamRef, message: UiMessage, after: Cursor) -> None:
    """Bring the message to where the client has it, which the cursor alone does not tell."""
    async with aclosing(unbroken(link, stream)) as messages:
        async for received in messages:
            if not received.tokens:
                # A heartbeat, or the completion: nobody has less than the log before it.
                continue
            message.tokens(received.tokens[: after.sequence - received.first_sequence + 1])
            if received.first_sequence + len(received.tokens) > after.sequence:
                return


class _Endpoints:
    """The endpoints of one gateway."""

    def __init__(self, gateway: Gateway, chats: Chats) -> None:
        self._gateway = gateway
        self._chats = chats

    async def send(self, request: Request) -> Response:
        """Ask the upstream what `useChat` posts, and show the answer. A client that leaves can come back to it.

        Of the body's other fields `modelId` and OpenAI's parameters of the same meaning count; an application may send
        more, as `useChat` lets it.
        """
        body = await read_object(request)
        model = body.get("modelId") or self._gateway.options.upstream_model
        for name, value in (("id", body.get("id")), ("modelId", model)):
            if not isinstance(value, str) or not value:
                raise invalid_field(name, f"{name}: not a text with at least one character")
        messages = prompt_of(body.get("messages"))
        stream = StreamRef(session_id=body["id"], model_id=model)
        await self._gateway.access.check(request, PRODUCE, stream)
        parameters = {name: body[name] for name in _PARAMETERS if name in body}
        started = await self._chats.start(stream, Question(model, messages, parameters))
        # After a tool's result `useChat` goes on with the message that called the tool.
        named = body["messages"][-1]["role"] != "assistant"
        return EventBody(ui_message_stream(self._gateway.link, started, named=named), HEADERS)

    async def resume(self, request: Request) -> Response:
        """Show the chat's newest open response, of `?modelId=` if that is given; 204 when there is none.

        With `?cursor=` (or Last-Event-ID) what comes after it, also when that response has ended meanwhile.
        """
        session = await self._session(request)
        # An application may put anything else into the address.
        check_query(request, ("modelId", "cursor"), others=True)
        after = cursor_of(request)
        info = await self._meant(request, session, after)
        if info is None:
            return Response(status_code=204, headers=HEADERS)
        if after is not None and after.sequence > info.last_sequence:
            await _refuse_lost(self._gateway.link, info.stream, after)
        return EventBody(ui_message_stream(self._gateway.link, info.stream, after=after), HEADERS)

    async def stop(self, request: Request) -> Response:
        """Cancel the chat's newest open response, of `?modelId=` if that is given.

        The body is the one of the SDK's documentation, if any: an `activeStreamId` (the message's id) that is another
        response's is a request that came too late, and changes nothing.
        """
        session = await self._session(request)
        active = await _active_stream_id(request)
        info = await self._meant(request, session, None)
        if info is not None and active in (None, message_id_of(info.stream), info.stream.response_id):
            link = self._gateway.link
            cancel = CancelRequest(stream=info.stream, reason=_STOPPED)
            await ask(link, link.bridge.Cancel, cancel)
        return JSONResponse({"success": True})

    async def _session(self, request: Request) -> str:
        session: str = request.path_params["chat_id"]
        await self._gateway.access.check(request, SUBSCRIBE, StreamRef(session_id=session))
        return session

    async def _meant(self, request: Request, session: str, after: Cursor | None) -> StreamInfo | None:
        model = request.query_params.get("modelId", "")

        def meant(info: StreamInfo) -> bool:
            if model and info.stream.model_id != model:
                return False
            if after is None:
                return info.state == STREAM_STATE_OPEN
            # A cursor is of one stream, which need not be the newest any more.
            return bool(info.cursor) and Cursor.parse(info.cursor).incarnation == after.incarnation

        info = await newest_response(self._gateway.link, session, meant)
        if info is not None and info.state != STREAM_STATE_OPEN and info.cursor == str(after):
            return None
        return info


async def _refuse_lost(link: Link, stream: StreamRef, after: Cursor) -> None:
    """Let the bridge say what happened to a log that ends before the cursor. Raises HistoryLost."""
    with subscribe(link, stream, after_cursor=str(after)) as messages:
        await anext(messages, None)


async def _active_stream_id(request: Request) -> str | None:
    try:
        body = await request.json()
    except ValueError:
        # The documented endpoint takes anything; what can't be read names no stream.
        return None
    named = body.get("activeStreamId") if isinstance(body, dict) else None
    return named if isinstance(named, str) else None
