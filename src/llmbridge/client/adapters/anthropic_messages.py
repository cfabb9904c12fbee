"""The events of Anthropic's Messages API as a response. Knows nothing of how they are fetched."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from llmbridge.client.adapters.failures import SourceError, in_one_line
from llmbridge.client.adapters.fields import count_of, field, index_of, text_of
from llmbridge.client.adapters.translator import LARGEST_PIECE, Translator, error_completion, whole_text
from llmbridge.v1 import token_pb2
from llmbridge.v1.token_pb2 import Completion, Token, Usage

__all__ = ["MessagesTranslator"]

_STOP_REASONS = {
    "end_turn": token_pb2.FINISH_REASON_STOP,
    "stop_sequence": token_pb2.FINISH_REASON_STOP,
    # A long turn with Anthropic's own tools: what there is is whole, and sending it back goes on with it.
    "pause_turn": token_pb2.FINISH_REASON_STOP,
    "max_tokens": token_pb2.FINISH_REASON_LENGTH,
    "model_context_window_exceeded": token_pb2.FINISH_REASON_LENGTH,
    "tool_use": token_pb2.FINISH_REASON_TOOL_CALLS,
    "refusal": token_pb2.FINISH_REASON_CONTENT_FILTER,
}
_COUNTS = (
    ("input_tokens",),
    ("cache_creation_input_tokens",),
    ("cache_read_input_tokens",),
    ("output_tokens",),
    ("output_tokens_details", "thinking_tokens"),
)
# In characters, and of base64, so also in bytes: below the bridge's limit for a token.
_LARGEST_NOTE = 32_768
# Told by the finish reason alone.
_PLAIN_STOP_REASONS = frozenset({"end_turn", "max_tokens", "tool_use"})


@dataclass(slots=True)
class _Call:
    """A tool call that may get more arguments."""

    index: int
    first_input: object
    has_arguments: bool = False


class MessagesTranslator(Translator):
    """Makes text, reasoning (thinking blocks) and tool calls of the events that carry their pieces.

    Takes events (`stream=True`) and those of the helper `messages.stream()`. What Anthropic needs to have back for
    going on after a tool call, a thinking block's signature and redacted thinking, is the attribute `signature` or
    `redacted_thinking` of an empty reasoning token. Tools that Anthropic runs itself are no tool calls here. Where the
    contract's finish reason says less than the stop reason, the completion has the attribute `stop_reason`, and
    `stop_sequence` or `refusal` where given. Without a stop reason, or with one not known, it is FINISH_REASON_ERROR.
    """

    def __init__(self) -> None:
        super().__init__()
        # By the content block's index; the calls alone are counted.
        self._calls: dict[int | None, _Call] = {}
        self._call_count = 0
        self._stop_reason = ""
        self._attributes: dict[str, str] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    def tokens(self, event: object) -> Iterator[Token]:
        """See Translator; SourceError for an error among bare events."""
        match text_of(event, "type"):
            case "message_start":
                self.model = text_of(event, "message", "model")
                self._note_usage(field(event, "message", "usage"))
            case "content_block_start":
                yield from self._block(index_of(event, "index"), field(event, "content_block"))
            case "content_block_delta":
                yield from self._delta(index_of(event, "index"), field(event, "delta"))
            case "content_block_stop":
                yield from self._block_end(index_of(event, "index"))
            case "message_delta":
                self._note_usage(field(event, "usage"))
                self._note_stop(field(event, "delta"))
            case "message_stop":
                self.finished = True
            case "error":
                # The SDK raises these itself; relays of the bare events don't.
                said = text_of(event, "error", "message") or text_of(event, "error", "type")
                raise SourceError(in_one_line(f"the model endpoint failed: {said or 'it did not say why'}"))
            case _:
                # What the helper repeats in other words, pings, and what this version does not know.
                pass

    def completion(self) -> Completion:
        """See Translator."""
        usage = self._usage()
        if not self._stop_reason:
            return error_completion("the model's stream ended without a stop reason", usage, self._attributes)
        known = _STOP_REASONS.get(self._stop_reason)
        if known is None:
            return error_completion(f"the model's stop reason is {self._stop_reason[:100]!a}", usage, self._attributes)
        return Completion(finish_reason=known, usage=usage, attributes=self._attributes)

    def _block(self, place: int | None, block: object) -> Iterator[Token]:
        match text_of(block, "type"):
            case "text":
                yield from self._text(text_of(block, "text"))
            case "thinking":
                yield from self._reasoning(text_of(block, "thinking"))
            case "redacted_thinking":
                yield from _note("redacted_thinking", text_of(block, "data"))
            case "tool_use":
                call = self._calls[place] = _Call(self._call_count, field(block, "input"))
                self._call_count += 1
                yield from self._call(call.index, text_of(block, "id"), text_of(block, "name"))

    def _delta(self, place: int | None, delta: object) -> Iterator[Token]:
        match text_of(delta, "type"):
            case "text_delta":
                yield from self._text(text_of(delta, "text"))
            case "thinking_delta":
                yield from self._reasoning(text_of(delta, "thinking"))
            case "signature_delta":
                yield from _note("signature", text_of(delta, "signature"))
            case "input_json_delta":
                arguments, call = text_of(delta, "partial_json"), self._calls.get(place)
                if call is not None and arguments:
                    call.has_arguments = True
                    yield from self._arguments(call.index, arguments)

    def _block_end(self, place: int | None) -> Iterator[Token]:
        # A call without pieces of arguments has none, or had them at its beginning; readers get valid JSON anyway.
        call = self._calls.pop(place, None)
        if call is not None and not call.has_arguments:
            given = call.first_input if isinstance(call.first_input, dict) else {}
            yield from self._arguments(call.index, json.dumps(given))

    def _note_stop(self, delta: object) -> None:
        reason = text_of(delta, "stop_reason")
        if not reason:
            return
        self._stop_reason = reason
        refusal = text_of(delta, "stop_details", "explanation") or text_of(delta, "stop_details", "category")
        told = {
            "stop_reason": "" if reason in _PLAIN_STOP_REASONS else in_one_line(reason),
            "stop_sequence": whole_text(text_of(delta, "stop_sequence")[:LARGEST_PIECE]),
            "refusal": in_one_line(refusal),
        }
        self._attributes = {name: text for name, text in told.items() if text}

    def _note_usage(self, usage: object) -> None:
        # All counts are cumulative, and those that did not change may be left out.
        for path in _COUNTS:
            if field(usage, *path) is not None:
                self._counts[path] = count_of(usage, *path)

    def _usage(self) -> Usage | None:
        if not self._counts:
            return None
        fresh, written, cached, generated, thought = (self._counts.get(path, 0) for path in _COUNTS)
        # Anthropic counts the prompt in three parts.
        prompt = fresh + written + cached
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=generated,
            total_tokens=prompt + generated,
            reasoning_tokens=thought,
            cached_tokens=cached,
        )


def _note(name: str, value: str) -> Iterator[Token]:
    # Larger than any that was seen: not worth failing for.
    if value and len(value) <= _LARGEST_NOTE:
        yield Token(reasoning="", attributes={name: whole_text(value)})
