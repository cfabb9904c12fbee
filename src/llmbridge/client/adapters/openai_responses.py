"""The events of OpenAI's Responses API as a response. Knows nothing of how they are fetched."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmbridge.client.adapters.failures import in_one_line
from llmbridge.client.adapters.fields import count_of, field, index_of, text_of
from llmbridge.client.adapters.translator import Translator, error_completion
from llmbridge.v1 import token_pb2
from llmbridge.v1.token_pb2 import Completion, Token, Usage

__all__ = ["ResponsesTranslator"]

_PREFIX = "response."
_INCOMPLETE_REASONS = {
    "max_output_tokens": token_pb2.FINISH_REASON_LENGTH,
    "max_messages": token_pb2.FINISH_REASON_LENGTH,
    "content_filter": token_pb2.FINISH_REASON_CONTENT_FILTER,
}
# The calls that the asker is to carry out, and where their arguments are. Those that OpenAI carries out itself (web
# search, code interpreter, MCP) are none of the model's requests to the asker.
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}


@dataclass(slots=True)
class _Call:
    """A tool call that may get more arguments."""

    index: int
    has_arguments: bool = False


class ResponsesTranslator(Translator):
    """Makes text, refusals, reasoning (and its summary) and tool calls of the events that carry their pieces.

    Takes events (`stream=True`) and those of the helper `responses.stream()`. The completion is what the last event
    says: completed (with `tool_calls` if there are any), incomplete, failed, or an error; without one of these it is
    FINISH_REASON_ERROR.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int | None, _Call] = {}
        self._completion = error_completion("the model's stream ended without a finish reason", None)

    def tokens(self, event: object) -> Iterator[Token]:
        """See Translator."""
        kind = text_of(event, "type")
        delta = text_of(event, "delta")
        match kind.removeprefix(_PREFIX):
            case "output_text.delta":
                yield from self._text(delta)
            case "refusal.delta":
                yield from self._refusal(delta)
            case "reasoning_text.delta" | "reasoning_summary_text.delta":
                yield from self._reasoning(delta)
            case "function_call_arguments.delta" | "custom_tool_call_input.delta":
                yield from self._more_of_call(event, delta)
            case "output_item.added" | "output_item.done":
                yield from self._item(event, done=kind.endswith("done"))
            case "created" | "in_progress":
                self.model = self.model or text_of(event, "response", "model")
            case "completed" | "incomplete" | "failed" | "cancelled":
                self._end(kind.removeprefix(_PREFIX), field(event, "response"))
            case "error":
                self._fail(event, None)
            case _:
                # What is carried already (…done), what is not for readers, and what this version does not know.
                pass

    def completion(self) -> Completion:
        """See Translator."""
        return self._completion

    def _item(self, event: object, *, done: bool) -> Iterator[Token]:
        item = field(event, "item")
        arguments_field = _CALLS.get(text_of(item, "type"))
        if arguments_field is None:
            return
        arguments = text_of(item, arguments_field)
        place = index_of(event, "output_index")
        call = self._calls.get(place)
        if call is None:
            call = self._calls[place] = _Call(len(self._calls), bool(arguments))
            yield from self._call(call.index, text_of(item, "call_id"), text_of(item, "name"), arguments)
        elif done and not call.has_arguments:
            # A server that sends no pieces.
            yield from self._more_of_call(event, arguments)

    def _more_of_call(self, event: object, arguments: str) -> Iterator[Token]:
        call = self._calls.get(index_of(event, "output_index"))
        if call is not None and arguments:
            call.has_arguments = True
            yield from self._arguments(call.index, arguments)

    def _end(self, status: str, response: object) -> None:
        self.finished = True
        found = field(response, "usage")
        usage = None if found is None else _usage(found)
        match status:
            case "completed":
                reason = token_pb2.FINISH_REASON_TOOL_CALLS if self._calls else token_pb2.FINISH_REASON_STOP
                self._completion = Completion(finish_reason=reason, usage=usage)
            case "cancelled":
                self._completion = Completion(finish_reason=token_pb2.FINISH_REASON_CANCELLED, usage=usage)
            case "incomplete":
                said = text_of(response, "incomplete_details", "reason")
                known = _INCOMPLETE_REASONS.get(said)
                if known is None:
                    self._completion = error_completion(f"the response is incomplete: {said[:100]!a}", usage)
                else:
                    self._completion = Completion(finish_reason=known, usage=usage)
            case _:
                self._fail(field(response, "error"), usage)

    def _fail(self, error: object, usage: Usage | None) -> None:
        self.finished = True
        said = text_of(error, "message") or text_of(error, "code") or "it did not say why"
        self._completion = error_completion(in_one_line(f"the model endpoint failed: {said}"), usage)


def _usage(usage: object) -> Usage:
    return Usage(
        prompt_tokens=count_of(usage, "input_tokens"),
        completion_tokens=count_of(usage, "output_tokens"),
        total_tokens=count_of(usage, "total_tokens"),
        reasoning_tokens=count_of(usage, "output_tokens_details", "reasoning_tokens"),
        cached_tokens=count_of(usage, "input_tokens_details", "cached_tokens"),
    )
