"""The JSON events of docs/http.md, which Server-Sent Events and WebSocket share, as the contract's messages.

Knows the events, and nothing of how they come.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from llmbridge.v1.bridge_service_pb2 import (
    POSITION_UNSPECIFIED,
    Position,
    SubscribeRequest,
    SubscribeResponse,
)
from llmbridge.v1.token_pb2 import FinishReason, Role, Token
from tests.conformance.transport import CallFailed, Refusal

CODES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
"""The names of gRPC's statuses, by their numbers."""

_BEFORE_THE_FIRST = "0"
"""The place of a reader of nothing but what comes, on a stream without a record; the contract's is empty."""

_CURSOR_TOLD = "DISCONNECTED", "DRAINING"
"""Errors that tell the reader's place. Here the reader keeps it itself, by the events' ids."""


_NAMES = {
    "cursor": "after_cursor",
    "sessionId": "stream.session_id",
    "modelId": "stream.model_id",
    "responseId": "stream.response_id",
}
"""The contract's names of fields that have other ones here."""


def cursor_of(place: str) -> str:
    """Give the contract's cursor of a place that an event names."""
    return "" if place == _BEFORE_THE_FIRST else place


def position_of(request: SubscribeRequest) -> str:
    """Name the position to begin at; empty where none is asked for."""
    if request.position == POSITION_UNSPECIFIED:
        return ""
    known = request.position in Position.values()
    return Position.Name(request.position).removeprefix("POSITION_").lower() if known else str(request.position)


def message_of(fields: Mapping[str, Any], place: str) -> SubscribeResponse:
    """Make the message of a `token` or `complete` event; `place` is where the reader stands with it."""
    message = SubscribeResponse(cursor=place, appended_ms=fields["timestamp"])
    if fields["type"] == "token":
        message.tokens.extend(_token(token) for token in fields["tokens"])
        first, last = fields["tokens"][0], fields["tokens"][-1]
        message.first_sequence = first["sequence"]
        assert fields["sequence"] == last["sequence"] == first["sequence"] + len(message.tokens) - 1
        assert fields["content"] == "".join(token.text for token in message.tokens)
        assert fields["isComplete"] is False
        return message
    message.first_sequence = fields["sequence"]
    assert fields["isComplete"] is True
    completion = message.completion
    completion.finish_reason = FinishReason.Value(f"FINISH_REASON_{fields['finishReason'].upper()}")
    completion.error_message = fields.get("errorMessage", "")
    completion.attributes.update(fields.get("attributes", {}))
    if "usage" in fields:
        completion.usage.SetInParent()
        ParseDict(fields["usage"], completion.usage)
    return message


def error_of(fields: Mapping[str, Any], place: str, retry_ms: int | None = None) -> CallFailed:
    """Make the failure that an `error` event tells to a reader that stands at `place`."""
    reason, metadata = fields.get("reason", ""), {}
    assert CODES[fields["code"]] == fields["status"]
    if "field" in fields:
        metadata["field"] = fields["field"]
    if "earliestCursor" in fields:
        metadata["earliest_cursor"] = fields["earliestCursor"]
    if reason in _CURSOR_TOLD:
        metadata["cursor"] = place
    domain, trailer = ("llmbridge" if reason else ""), (place if reason == "DRAINING" else None)
    refusal = Refusal(fields["status"], fields["message"], domain, reason, metadata, retry_ms, trailer)
    return as_the_contract_names_it(CallFailed(refusal))


def as_the_contract_names_it(failed: CallFailed) -> CallFailed:
    """Give a field that has another name here its name in the contract."""
    field = failed.refusal.metadata.get("field", "")
    if field not in _NAMES:
        return failed
    name = _NAMES[field]
    message = failed.refusal.message.replace(field, name, 1)
    return CallFailed(replace(failed.refusal, message=message, metadata={"field": name}))


def _token(fields: Mapping[str, Any]) -> Token:
    token = Token(role=Role.Value(f"ROLE_{fields['role'].upper()}"), timestamp_ms=fields["timestamp"])
    match fields:
        case {"reasoning": text}:
            token.reasoning = text
        case {"toolCall": call}:
            token.tool_call.SetInParent()
            ParseDict(call, token.tool_call)
        case {"json": text}:
            token.json = text
        case {"content": text}:
            token.text = text
    token.attributes.update(fields.get("attributes", {}))
    if "generation" in fields:
        token.generation.SetInParent()
        ParseDict(fields["generation"], token.generation)
    return token
