"""Turns a response's records into the chunks of the Vercel AI SDK's UI message stream, version 1.

Pure: no requests, no bytes. The chunks depend on the records alone, not on how they were put into messages, so a replay
gives the same parts under the same names as the stream that it continues. The protocol is the SDK's
`uiMessageChunkSchema`; it refuses what it does not know, so nothing else is ever made here.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from llmbridge.v1 import token_pb2
from llmbridge.v1.stream_pb2 import StreamRef

__all__ = ["Chunk", "UiMessage", "message_id_of"]

Chunk = dict[str, Any]
"""One object of the protocol, to be sent as JSON."""

TOOL_CALL_ID = "tool_call_id"
"""A tool's result (role tool) names its call with this attribute."""

_FINISH_REASONS: Mapping[int, str] = {
    token_pb2.FINISH_REASON_STOP: "stop",
    token_pb2.FINISH_REASON_LENGTH: "length",
    token_pb2.FINISH_REASON_TOOL_CALLS: "tool-calls",
    token_pb2.FINISH_REASON_CONTENT_FILTER: "content-filter",
    token_pb2.FINISH_REASON_ERROR: "error",
}
_UNKNOWN_FINISH_REASON = "other"
_ASSISTANT = frozenset({token_pb2.ROLE_UNSPECIFIED, token_pb2.ROLE_ASSISTANT})


def message_id_of(stream: StreamRef) -> str:
    """Name the message that shows a response: the same for every reader, and for no other response of its session."""
    return f"{quote(stream.model_id, safe='')}/{quote(stream.response_id, safe='')}"


@dataclass(slots=True)
class _ToolCall:
    """A call as far as it was read."""

    id: str
    name: str
    arguments: str = ""
    told: bool = False
    """Whether its arguments, being whole, were sent as such."""


@dataclass(slots=True)
class _Part:
    """The part that pieces are being added to. Only one is open at a time."""

    kind: str
    """`text`, `reasoning` or, for a tool's result as text, `output`."""
    id: str
    text: str = ""


class UiMessage:
    """The state of one message while its response is read. Feed it `tokens`, then `completion`."""

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self._parts = 0
        self._open: _Part | None = None
        self._calls: dict[int, _ToolCall] = {}

    def start(self, *, named: bool = True) -> list[Chunk]:
        """Begin the message. `named` False lets the client keep the id of the message that it is adding to."""
        start: Chunk = {"type": "start", "messageId": self.message_id} if named else {"type": "start"}
        return [start, {"type": "start-step"}]

    def tokens(self, tokens: Iterable[token_pb2.Token]) -> list[Chunk]:
        """Add tokens. Neighbouring pieces of the same part become one chunk."""
        return list(_merged(chunk for token in tokens for chunk in self._token(token)))

    def completion(self, completion: token_pb2.Completion) -> list[Chunk]:
        """End the message: by `finish`, after `error` if it failed, or by `abort` if somebody stopped it."""
        chunks = self._close_part()
        reason = completion.finish_reason
        if reason == token_pb2.FINISH_REASON_CANCELLED:
            abort: Chunk = {"type": "abort"}
            if completion.error_message:
                abort["reason"] = completion.error_message
            return [*chunks, abort]
        if reason == token_pb2.FINISH_REASON_ERROR:
            # Half a call must not be carried out.
            chunks.append({"type": "error", "errorText": completion.error_message or "the generation failed"})
        else:
            chunks += [chunk for call in self._calls.values() for chunk in _whole(call)]
        finish = {"type": "finish", "finishReason": _FINISH_REASONS.get(reason, _UNKNOWN_FINISH_REASON)}
        return [*chunks, {"type": "finish-step"}, finish]

    def _token(self, token: token_pb2.Token) -> Iterator[Chunk]:
        if token.role == token_pb2.ROLE_TOOL:
            yield from self._tool_result(token)
        # What the person or the application said is no part of the answer.
        elif token.role in _ASSISTANT:
            match token.WhichOneof("content"):
                case "text":
                    yield from self._piece("text", token.text)
                case "reasoning":
                    yield from self._piece("reasoning", token.reasoning)
                case "tool_call":
                    yield from self._tool_call(token.tool_call)
                case "json":
                    yield from self._close_part()
                    yield {"type": "data-json", "data": json.loads(token.json)}

    def _piece(self, kind: str, text: str) -> Iterator[Chunk]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            yield from self._close_part()
            self._parts += 1
            self._open = _Part(kind, f"{kind}-{self._parts}")
            yield {"type": f"{kind}-start", "id": self._open.id}
        yield {"type": f"{kind}-delta", "id": self._open.id, "delta": text}

    def _close_part(self) -> list[Chunk]:
        part, self._open = self._open, None
        if part is None:
            return []
        if part.kind == "output":
            return [{"type": "tool-output-available", "toolCallId": part.id, "output": part.text}]
        return [{"type": f"{part.kind}-end", "id": part.id}]

    def _tool_call(self, fragment: token_pb2.ToolCall) -> Iterator[Chunk]:
        call = self._calls.get(fragment.index)
        if call is not None and fragment.id and call.id != fragment.id and call.told:
            # The next round of a response that carries its tools' results: indexes begin again.
            call = None
        if call is None:
            yield from self._close_part()
            self._parts += 1
            call = _ToolCall(fragment.id or f"{self.message_id}/tool-{self._parts}", fragment.name)
            self._calls[fragment.index] = call
            yield {"type": "tool-input-start", "toolCallId": call.id, "toolName": call.name}
        elif fragment.name and not call.name:
            call.name = fragment.name
        if fragment.arguments:
            call.arguments += fragment.arguments
            yield {"type": "tool-input-delta", "toolCallId": call.id, "inputTextDelta": fragment.arguments}

    def _tool_result(self, token: token_pb2.Token) -> Iterator[Chunk]:
        call_id = token.attributes.get(TOOL_CALL_ID, "")
        call = next((call for call in self._calls.values() if call.id == call_id), None)
        if call is None:
            # The SDK refuses a stream with a result that belongs to nothing.
            return
        content = token.WhichOneof("content")
        if content == "json":
            yield from self._close_part()
            yield from _whole(call)
            yield {"type": "tool-output-available", "toolCallId": call.id, "output": json.loads(token.json)}
        elif content == "text":
            if self._open is None or (self._open.kind, self._open.id) != ("output", call.id):
                yield from self._close_part()
                yield from _whole(call)
                self._open = _Part("output", call.id)
            self._open.text += token.text


def _whole(call: _ToolCall) -> Iterator[Chunk]:
    """Tell a call's arguments as a whole, once."""
    if call.told:
        return
    call.told = True
    told: Chunk = {"toolCallId": call.id, "toolName": call.name}
    try:
        # A function without parameters is called with nothing by some models.
        arguments = json.loads(call.arguments) if call.arguments.strip() else {}
    except ValueError as error:
        reason = f"the arguments are not JSON: {error}"
        yield {"type": "tool-input-error", **told, "input": call.arguments, "errorText": reason}
    else:
        yield {"type": "tool-input-available", **told, "input": arguments}


_PIECES: Mapping[str, tuple[str, str]] = {
    "text-delta": ("id", "delta"),
    "reasoning-delta": ("id", "delta"),
    "tool-input-delta": ("toolCallId", "inputTextDelta"),
}
"""Chunks that add to a part: where they name it, and where the piece is."""


def _merged(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    last: Chunk | None = None
    pieces: list[str] = []
    for chunk in chunks:
        name, piece = _PIECES.get(chunk["type"], ("", ""))
        if last is not None:
            if name and chunk["type"] == last["type"] and chunk[name] == last[name]:
                pieces.append(chunk[piece])
                continue
            yield _joined(last, pieces)
        last, pieces = chunk, [chunk[piece]] if piece else []
    if last is not None:
        yield _joined(last, pieces)


def _joined(chunk: Chunk, pieces: list[str]) -> Chunk:
    if len(pieces) > 1:
        chunk[_PIECES[chunk["type"]][1]] = "".join(pieces)
    return chunk
