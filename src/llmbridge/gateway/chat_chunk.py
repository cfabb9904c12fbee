"""Turns a response's records into OpenAI's `chat.completion.chunk` objects, and into one `chat.completion`.

Pure: no requests, no bytes. The inverse of `llmbridge.client.adapters`, which reads such chunks.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmbridge.v1 import token_pb2
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.stream_pb2 import StreamRef

__all__ = ["ChatChunks", "ChatCompletion", "Chunk", "error_body"]

Chunk = dict[str, Any]
"""One object, to be sent as JSON."""

_FINISH_REASONS: Mapping[int, str] = {
    token_pb2.FINISH_REASON_STOP: "stop",
    token_pb2.FINISH_REASON_LENGTH: "length",
    token_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    token_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
    # OpenAI has no word for it; this is vLLM's. "stop" would say that the answer is whole.
    token_pb2.FINISH_REASON_CANCELLED: "abort",
}
_UNKNOWN_FINISH_REASON = "stop"
_ASSISTANT = frozenset({token_pb2.ROLE_UNSPECIFIED, token_pb2.ROLE_ASSISTANT})
REFUSAL = "refusal"
"""The attribute of text that refuses to answer (see client.adapters.openai_chat)."""


def error_body(message: str, kind: str = "server_error", *, param: str | None = None, code: str | None = None) -> Chunk:
    """Make the body of an error, which is also the last event of a stream that fails."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ChatChunks:
    """The chunks of one response. Feed it its messages in order."""

    def __init__(self, stream: StreamRef, *, include_usage: bool) -> None:
        self._stream = stream
        self._include_usage = include_usage
        self._started = False
        self._created = 0
        self._model = stream.model_id

    def chunks(self, message: SubscribeResponse) -> list[Chunk]:
        """Write a message; a heartbeat gives nothing. Neighbouring pieces of text become one chunk.

        After a completion with an error the last is an error body, and there is no finish reason.
        """
        chunks: list[Chunk] = []
        if not self._started and (message.tokens or message.HasField("completion")):
            self._begin(message)
            chunks.append(self._chunk({"role": "assistant", "content": ""}))
        chunks += [self._chunk(delta) for delta in _merged(_deltas(message.tokens))]
        if message.HasField("completion"):
            chunks += self._end(message.completion)
        return chunks

    def _begin(self, message: SubscribeResponse) -> None:
        self._started = True
        first = message.tokens[0] if message.tokens else token_pb2.Token()
        self._created = (first.timestamp_ms or message.appended_ms) // 1000
        self._model = first.generation.model or self._model

    def _end(self, completion: token_pb2.Completion) -> Iterator[Chunk]:
        reason = completion.finish_reason
        if reason == token_pb2.FINISH_REASON_ERROR:
            yield error_body(completion.error_message or "the generation failed")
            return
        yield self._chunk({}, _FINISH_REASONS.get(reason, _UNKNOWN_FINISH_REASON))
        if self._include_usage and completion.HasField("usage"):
            yield {**self._head(), "choices": [], "usage": _usage(completion.usage)}

    def _chunk(self, delta: Chunk, finish_reason: str | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head(), "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return chunk

    def _head(self) -> Chunk:
        return {
            "id": f"chatcmpl-{self._stream.response_id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }


@dataclass(slots=True)
class ChatCompletion:
    """A whole answer, put together from its chunks."""

    _head: Chunk = field(default_factory=dict)
    _texts: dict[str, list[str]] = field(default_factory=dict)
    _calls: dict[int, Chunk] = field(default_factory=dict)
    _finish_reason: str | None = None
    _usage: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Add a chunk, which must not be an error."""
        self._head = {
            "id": chunk["id"],
            "object": "chat.completion",
            "created": chunk["created"],
            "model": chunk["model"],
        }
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            self._finish_reason = choice["finish_reason"] or self._finish_reason
            for name, value in choice["delta"].items():
                if name == "tool_calls":
                    self._add_calls(value)
                elif name != "role":
                    self._texts.setdefault(name, []).append(value)

    def _add_calls(self, fragments: Iterable[Chunk]) -> None:
        for fragment in fragments:
            function = fragment["function"]
            call = self._calls.setdefault(
                fragment["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = call["id"] or fragment.get("id", "")
            call["function"]["name"] = call["function"]["name"] or function.get("name", "")
            call["function"]["arguments"] += function["arguments"]

    @property
    def body(self) -> Chunk:
        """The object."""
        texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
        message: Chunk = {"role": "assistant", **texts, "content": texts.get("content") or None}
        message["refusal"] = texts.get("refusal")
        if self._calls:
            message["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        elif message["content"] is None and message["refusal"] is None:
            message["content"] = ""
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return {**self._head, "choices": [choice], "usage": self._usage}


def _deltas(tokens: Iterable[token_pb2.Token]) -> Iterator[Chunk]:
    for token in tokens:
        if token.role not in _ASSISTANT:
            continue
        match token.WhichOneof("content"):
            case "text" if token.attributes.get(REFUSAL) == "true":
                yield {"refusal": token.text}
            case "text":
                yield {"content": token.text}
            case "reasoning":
                # Not OpenAI's: as llama.cpp, DeepSeek and SGLang have it.
                yield {"reasoning_content": token.reasoning}
            case "json":
                yield {"content": token.json}
            case "tool_call":
                yield {"tool_calls": [_tool_call(token.tool_call)]}


def _tool_call(fragment: token_pb2.ToolCall) -> Chunk:
    call: Chunk = {"index": fragment.index}
    function: Chunk = {"arguments": fragment.arguments}
    if fragment.id:
        call |= {"id": fragment.id, "type": "function"}
    if fragment.name:
        function["name"] = fragment.name
    return {**call, "function": function}


def _merged(deltas: Iterable[Chunk]) -> Iterator[Chunk]:
    name, pieces = "", list[str]()
    for delta in deltas:
        (own,) = delta
        if own != name or own == "tool_calls":
            if pieces:
                yield {name: "".join(pieces)}
            name, pieces = own, []
        if own == "tool_calls":
            yield delta
        else:
            pieces.append(delta[own])
    if pieces:
        yield {name: "".join(pieces)}


def _usage(usage: token_pb2.Usage) -> Chunk:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
