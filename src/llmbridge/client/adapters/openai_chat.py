"""The chunks of an OpenAI-compatible chat completion as a response.

What other servers than OpenAI's add to the format (reasoning, other words for the finish reason) or leave out of it is
allowed for, since all of them are read with OpenAI's SDK. Knows nothing of how the chunks are fetched.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llmbridge.client.adapters.failures import SourceError
from llmbridge.client.adapters.fields import count_of, field, index_of, items_of, text_of
from llmbridge.client.adapters.translator import Translator, error_completion
from llmbridge.v1 import token_pb2
from llmbridge.v1.token_pb2 import Completion, Token, Usage

__all__ = ["ChatTranslator"]

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

# Places of calls that have no index.
_DEPRECATED_CALL = -1
_UNNUMBERED = -2


@dataclass(slots=True)
class _Call:
    """A tool call that may get more arguments."""

    index: int
    identifier: str
    name: str


class ChatTranslator(Translator):
    """Makes a token for each thing that a chunk says, in the order reasoning, text, refusal, tool calls.

    Takes chunks (`stream=True`) and the events of the helper `chat.completions.stream()`. The completion comes last
    because the usage comes after the finish reason. A finish reason that is not known, or none at all, as when a relay
    cuts the answer short without an error, is FINISH_REASON_ERROR. Several choices are refused with SourceError.
    """

    def __init__(self) -> None:
        super().__init__()
        self._finish_reason = ""
        self._usage: Usage | None = None
        # By the server's index, which several calls may share: the latest of each.
        self._calls: dict[int, _Call] = {}
        self._call_count = 0
        self._last_place = _UNNUMBERED

    def tokens(self, event: object) -> Iterator[Token]:
        """See Translator; SourceError for several choices."""
        # The helper's events repeat what its chunk events carry.
        chunk = field(event, "chunk") or event
        self.model = self.model or text_of(chunk, "model")
        usage = field(chunk, "usage")
        if usage is not None:
            self._usage = _usage(usage)
        choices = list(items_of(chunk, "choices"))
        if len(choices) > 1 or (choices and index_of(choices[0], "index")):
            raise SourceError("the response has several choices; a stream carries one: ask with n=1")
        # Chunks without a choice carry usage, moderation or nothing (keep-alive).
        for choice in choices:
            self._finish_reason = text_of(choice, "finish_reason") or self._finish_reason
            delta = field(choice, "delta")
            self.role = _ROLES.get(text_of(delta, "role"), self.role)
            yield from self._delta(delta)

    def completion(self) -> Completion:
        """See Translator."""
        if not self._finish_reason:
            return error_completion("the model's stream ended without a finish reason", self._usage)
        known = _FINISH_REASONS.get(self._finish_reason)
        if known is None:
            return error_completion(f"the model server's finish reason is {self._finish_reason[:100]!a}", self._usage)
        return Completion(finish_reason=known, usage=self._usage)

    def _delta(self, delta: object) -> Iterator[Token]:
        # Not in OpenAI's format: llama.cpp, DeepSeek and SGLang say `reasoning_content`, OpenRouter and Ollama
        # `reasoning`, and a server that says both says the same twice; so the first that says something counts.
        yield from self._reasoning(text_of(delta, "reasoning_content") or text_of(delta, "reasoning"))
        yield from self._text(text_of(delta, "content"))
        # Mistral's reasoning models send a list of parts.
        for part in items_of(delta, "content"):
            for thought in items_of(part, "thinking"):
                yield from self._reasoning(text_of(thought, "text"))
            yield from self._text(text_of(part, "text"))
        yield from self._refusal(text_of(delta, "refusal"))
        for call in items_of(delta, "tool_calls"):
            yield from self._fragment(index_of(call, "index"), text_of(call, "id"), field(call, "function"))
        # The deprecated single call: still what some older servers send.
        function = field(delta, "function_call")
        if function is not None:
            yield from self._fragment(_DEPRECATED_CALL, "", function)

    def _fragment(self, place: int | None, identifier: str, function: object) -> Iterator[Token]:
        name, arguments = text_of(function, "name"), text_of(function, "arguments")
        if not (identifier or name or arguments):
            return
        if place is None:
            # Some servers leave the index out when they send whole calls.
            place = _UNNUMBERED - self._call_count if identifier or name else self._last_place
        self._last_place = place
        call = self._calls.get(place)
        # Some give all parallel calls the same index; and some give each fragment another id, but a name once only.
        if call is None or (name and identifier and identifier != call.identifier):
            call = _Call(self._call_count, identifier, name)
            self._calls[place] = call
            self._call_count += 1
            yield from self._call(call.index, identifier, name, arguments)
        elif (identifier and not call.identifier) or (name and not call.name):
            late_identifier, late_name = "" if call.identifier else identifier, "" if call.name else name
            call.identifier, call.name = call.identifier or identifier, call.name or name
            yield from self._call(call.index, late_identifier, late_name, arguments)
        else:
            yield from self._arguments(call.index, arguments)


def _usage(usage: object) -> Usage:
    return Usage(
        prompt_tokens=count_of(usage, "prompt_tokens"),
        completion_tokens=count_of(usage, "completion_tokens"),
        total_tokens=count_of(usage, "total_tokens"),
        reasoning_tokens=count_of(usage, "completion_tokens_details", "reasoning_tokens"),
        cached_tokens=count_of(usage, "prompt_tokens_details", "cached_tokens"),
    )
