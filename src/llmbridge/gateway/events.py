"""What browsers get of a stream: the four events that SSE and WebSocket share, as JSON. Knows nothing of either.

    connected  sessionId, modelId, responseId
    token      one or more tokens: content (their text, together); role, sequence and timestamp of the last one;
               isComplete (false); and each by itself in tokens: sequence, role, timestamp, one of content, reasoning,
               toolCall and json, and attributes and generation where there are any
    complete   the end: finishReason, and errorMessage, usage and attributes where there are any; isComplete is true
    error      an end without a completion: code and status (gRPC's), reason, message; earliestCursor where history
               is lost

`sequence` is a number. `timestamp` is in ms since the Unix epoch: when the producer made the token or, where it did not
say, when it was stored. Every event has its own name as `type`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict

from llmbridge.client.errors import ClientClosed, ClientError, HistoryLost, InvalidRequest, LimitExceeded, Unavailable
from llmbridge.client.values import FinishReason
from llmbridge.gateway.problems import Problem, invalid_field, problem_of
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import ROLE_SYSTEM, ROLE_TOOL, ROLE_USER, Completion, Token

CONNECTED = "connected"
TOKEN = "token"  # noqa: S105 - not that kind of token
COMPLETE = "complete"
ERROR = "error"
HEARTBEAT = "heartbeat"

_ROLES = {ROLE_USER: "user", ROLE_SYSTEM: "system", ROLE_TOOL: "tool"}
_ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `place` is where a reader that has it goes on; empty where that did not change.

    A heartbeat has no data, and its place is where the reader stands. `frame` is all of it as it goes over the wire,
    where that is the same for all who read the stream.
    """

    name: str
    data: str = ""
    place: str = ""
    frame: bytes = b""


def dump(fields: Mapping[str, Any]) -> str:
    """Write JSON on one line. Everything but control characters, quotes and backslashes stays as it is."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def connected_fields(stream: StreamRef) -> dict[str, Any]:
    """Say what is read."""
    return {
        "type": CONNECTED,
        "sessionId": stream.session_id,
        "modelId": stream.model_id,
        "responseId": stream.response_id,
    }


def token_fields(message: SubscribeResponse) -> dict[str, Any]:
    """Say what the tokens of a message are; it must have some."""
    first, stored = message.first_sequence, message.appended_ms
    tokens = [_one_token(token, first + index, stored) for index, token in enumerate(message.tokens)]
    last = tokens[-1]
    return {
        "type": TOKEN,
        "content": "".join(token["content"] for token in tokens if "content" in token),
        "role": last["role"],
        "sequence": last["sequence"],
        "timestamp": last["timestamp"],
        "isComplete": False,
        "tokens": tokens,
    }


def complete_fields(message: SubscribeResponse) -> dict[str, Any]:
    """Say how the stream ended; the message has its completion."""
    completion: Completion = message.completion
    fields: dict[str, Any] = {
        "type": COMPLETE,
        "content": "",
        "role": _ASSISTANT,
        "sequence": message.first_sequence + len(message.tokens),
        "timestamp": message.appended_ms,
        "isComplete": True,
        "finishReason": FinishReason.of(completion).name.lower(),
    }
    if completion.error_message:
        fields["errorMessage"] = completion.error_message
    if completion.HasField("usage"):
        usage = completion.usage
        fields["usage"] = {
            "promptTokens": usage.prompt_tokens,
            "completionTokens": usage.completion_tokens,
            "totalTokens": usage.total_tokens,
            "reasoningTokens": usage.reasoning_tokens,
            "cachedTokens": usage.cached_tokens,
        }
    if completion.attributes:
        fields["attributes"] = dict(completion.attributes)
    return fields


def error_fields(error: ClientError | Problem) -> dict[str, Any]:
    """Say what ended the reading."""
    problem = reading_problem(error) if isinstance(error, ClientError) else error
    fields: dict[str, Any] = {
        "type": ERROR,
        "code": problem.code.value[0],
        "status": problem.code.name,
        "message": problem.message,
    }
    for detail in problem.details:
        if "reason" in detail:
            fields["reason"] = str(detail["reason"]).removeprefix("ERROR_REASON_")
            if "field" in detail["metadata"]:
                fields["field"] = detail["metadata"]["field"]
    if isinstance(error, HistoryLost):
        fields["earliestCursor"] = error.earliest_cursor
    return fields


def reading_problem(error: ClientError) -> Problem:
    """Translate what reading raised, with the field's name that browsers know."""
    if isinstance(error, InvalidRequest) and error.field == "after_cursor":
        return invalid_field("cursor", error.message.replace("after_cursor", "cursor", 1))
    problem = problem_of(error, passes=passes(error))
    if isinstance(error, HistoryLost):
        problem.message = problem.message.replace("after_cursor", "cursor")
    return problem


def passes(error: ClientError) -> bool:
    """Whether coming back helps, here or at another instance."""
    return isinstance(error, (Unavailable, LimitExceeded, ClientClosed))


def _one_token(token: Token, sequence: int, stored_ms: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "sequence": sequence,
        "role": _ROLES.get(token.role, _ASSISTANT),
        "timestamp": token.timestamp_ms or stored_ms,
    }
    match token.WhichOneof("content"):
        case "reasoning":
            fields["reasoning"] = token.reasoning
        case "tool_call":
            call = token.tool_call
            fields["toolCall"] = {"index": call.index, "id": call.id, "name": call.name, "arguments": call.arguments}
        case "json":
            fields["json"] = token.json
        case _:
            fields["content"] = token.text
    if token.attributes:
        fields["attributes"] = dict(token.attributes)
    if token.HasField("generation"):
        fields["generation"] = MessageToDict(token.generation)
    return fields
