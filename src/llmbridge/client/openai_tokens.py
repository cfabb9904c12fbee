"""Turns the stream of an OpenAI-compatible chat completion into records of the bridge.

It takes the chunks that the `openai` SDK yields (`stream=True`) and knows nothing of how they are fetched or where the
records go: no network, no writer, and at run time not even the `openai` package. What other servers than OpenAI's add
to the format (reasoning, other words for the finish reason) or leave out of it is allowed for, since all of them are
read with that SDK, which enforces neither its types nor its required fields: a missing one is an AttributeError.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import TYPE_CHECKING

from llmbridge.v1 import token_pb2

if TYPE_CHECKING:
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletionChunk
    from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta, ChoiceDeltaToolCall

__all__ = ["openai_records"]

# OpenAI documents the first five. The others are what text-generation-inference, Mistral, vLLM and relays of other
# vendors' models put there.
_FINISH_REASONS = {
    "stop": token_pb2.FINISH_REASON_STOP,
    "length": token_pb2.FINISH_REASON_LENGTH,
    "tool_calls": token_pb2.FINISH_REASON_TOOL_CALLS,
    "function_call": token_pb2.FINISH_REASON_TOOL_CALLS,
    "content_filter": token_pb2.FINISH_REASON_CONTENT_FILTER,
    "eos": token_pb2.FINISH_REASON_STOP,
    "eos_token": token_pb2.FINISH_REASON_STOP,
    "stop_sequence": token_pb2.FINISH_REASON_STOP,
    "end_turn": token_pb2.FINISH_REASON_STOP,
    "max_tokens": token_pb2.FINISH_REASON_LENGTH,
    "model_length": token_pb2.FINISH_REASON_LENGTH,
    "tool_use": token_pb2.FINISH_REASON_TOOL_CALLS,
    "abort": token_pb2.FINISH_REASON_CANCELLED,
    "cancelled": token_pb2.FINISH_REASON_CANCELLED,
}

_ROLES = {
    "user": token_pb2.ROLE_USER,
    "system": token_pb2.ROLE_SYSTEM,
    "developer": token_pb2.ROLE_SYSTEM,
    "tool": token_pb2.ROLE_TOOL,
}


async def openai_records(
    chunks: AsyncIterable[ChatCompletionChunk],
    *,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> AsyncIterator[token_pb2.Token | token_pb2.Completion]:
    """Yields a response's tokens as they come and, when `chunks` has ended, its completion.

    A chunk becomes one token for each thing it says, in the order reasoning, text, refusal, tool calls; one that says
    nothing becomes none. `timestamp_ms` is when the chunk arrived here. The first token tells how the response is
    generated: the model's name as the server gives it, and `temperature` and `max_tokens` as the caller asked for them.
    A refusal is text with the attribute `refusal`, since it is what the person is to read.

    The completion comes last because the usage comes after the finish reason. A finish reason that is not known, or
    none at all, as when a relay cuts the answer short without an error, is FINISH_REASON_ERROR.

    What `chunks` raises passes through, without a completion: the caller knows whether to try again or to seal the
    stream with an error. ValueError when there is more than one choice, as a stream carries one response. Closing
    `chunks` is left to the caller, who opened it.
    """
    first = True
    role = token_pb2.ROLE_UNSPECIFIED
    finish_reason: str | None = None
    usage: token_pb2.Usage | None = None
    async for chunk in chunks:
        now_ms = time.time_ns() // 1_000_000
        if chunk.usage is not None:
            usage = _usage(chunk.usage)
        choice = _only_choice(chunk)
        if choice is None:
            continue
        finish_reason = choice.finish_reason or finish_reason
        delta: ChoiceDelta | None = getattr(choice, "delta", None)
        if delta is None:
            continue
        role = _ROLES.get(delta.role or "", role)
        for token in _tokens(delta):
            token.timestamp_ms = now_ms
            token.role = role
            if first:
                model = getattr(chunk, "model", None) or ""
                token.generation.CopyFrom(
                    token_pb2.Generation(model=model, temperature=temperature, max_tokens=max_tokens)
                )
                first = False
            yield token
    yield _completion(finish_reason, usage)


def _only_choice(chunk: ChatCompletionChunk) -> Choice | None:
    # Chunks without a choice carry usage, moderation or nothing (keep-alive).
    choices: list[Choice] | None = getattr(chunk, "choices", None)
    if not choices:
        return None
    choice = choices[0]
    index: int | None = getattr(choice, "index", None)
    if len(choices) > 1 or index:
        raise ValueError("the response has several choices; a stream carries one: ask with n=1")
    return choice


def _tokens(delta: ChoiceDelta) -> Iterator[token_pb2.Token]:
    reasoning = _reasoning(delta)
    if reasoning:
        yield token_pb2.Token(reasoning=reasoning)
    if delta.content:
        yield token_pb2.Token(text=delta.content)
    if delta.refusal:
        yield token_pb2.Token(text=delta.refusal, attributes={"refusal": "true"})
    for position, call in enumerate(delta.tool_calls or ()):
        yield token_pb2.Token(tool_call=_tool_call(call, position))
    # The deprecated single call: still what some older servers send.
    if delta.function_call is not None:
        function = delta.function_call
        yield token_pb2.Token(
            tool_call=token_pb2.ToolCall(name=function.name or "", arguments=function.arguments or "")
        )


def _reasoning(delta: ChoiceDelta) -> str:
    # Not in OpenAI's format: llama.cpp, DeepSeek and SGLang say `reasoning_content`, OpenRouter and Ollama `reasoning`,
    # and a server that says both says the same twice; so the first that says something counts.
    extra = delta.model_extra or {}
    for name in ("reasoning_content", "reasoning"):
        value = extra.get(name)
        if value and isinstance(value, str):
            return value
    return ""


def _tool_call(call: ChoiceDeltaToolCall, position: int) -> token_pb2.ToolCall:
    # Some servers leave the index out when they send whole calls.
    index: int | None = getattr(call, "index", None)
    function = call.function
    return token_pb2.ToolCall(
        index=position if index is None else index,
        id=call.id or "",
        name=(function.name or "") if function else "",
        arguments=(function.arguments or "") if function else "",
    )


def _usage(usage: CompletionUsage) -> token_pb2.Usage:
    completion = usage.completion_tokens_details
    prompt = usage.prompt_tokens_details
    return token_pb2.Usage(
        prompt_tokens=getattr(usage, "prompt_tokens", None) or 0,
        completion_tokens=getattr(usage, "completion_tokens", None) or 0,
        total_tokens=getattr(usage, "total_tokens", None) or 0,
        reasoning_tokens=(completion.reasoning_tokens or 0) if completion else 0,
        cached_tokens=(prompt.cached_tokens or 0) if prompt else 0,
    )


def _completion(finish_reason: str | None, usage: token_pb2.Usage | None) -> token_pb2.Completion:
    if finish_reason is None:
        return token_pb2.Completion(
            finish_reason=token_pb2.FINISH_REASON_ERROR,
            error_message="the model's stream ended without a finish reason",
            usage=usage,
        )
    known = _FINISH_REASONS.get(finish_reason)
    if known is None:
        return token_pb2.Completion(
            finish_reason=token_pb2.FINISH_REASON_ERROR,
            error_message=f"the model server's finish reason is {finish_reason!r}",
            usage=usage,
        )
    return token_pb2.Completion(finish_reason=known, usage=usage)
