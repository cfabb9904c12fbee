"""BridgeService.Produce."""

import json

from llmbridge.errors import InvalidField, LimitExceeded
from llmbridge.model.records import Append, FinishReason
from llmbridge.produce.append import Produce
from llmbridge.rpc import limits as check
from llmbridge.rpc.limits import Limits
from llmbridge.v1 import token_pb2
from llmbridge.v1.bridge_service_pb2 import ProduceRequest, ProduceResponse

_ROLES = frozenset(token_pb2.Role.values())
_FINISH_REASONS = {
    number: FinishReason[name.removeprefix("FINISH_REASON_")]
    for name, number in token_pb2.FinishReason.items()
    if number != token_pb2.FINISH_REASON_UNSPECIFIED
}


class ProduceMethod:
    """Decodes, appends, encodes."""

    def __init__(self, produce: Produce, limits: Limits) -> None:
        self._produce = produce
        self._limits = limits

    async def __call__(self, request: ProduceRequest) -> ProduceResponse:
        """Serve one call."""
        name = check.stream_name(request.stream, self._limits)
        appended = await self._produce.append(name, decode_append(request, self._limits))
        return ProduceResponse(
            cursor=str(appended.cursor), last_sequence=appended.cursor.sequence, duplicate=appended.duplicate
        )


def decode_append(request: ProduceRequest, limits: Limits) -> Append:
    """Check the records of a request and take them over; consumes the request. Raises InvalidField, LimitExceeded."""
    tokens = len(request.tokens)
    completes = request.HasField("completion")
    if not tokens and not completes:
        raise InvalidField("tokens", "is empty and there is no completion: send at least one record")
    if tokens > limits.max_tokens_per_request:
        raise LimitExceeded("max_tokens_per_request", limits.max_tokens_per_request, tokens, "send several requests")
    first = request.first_sequence
    check.check_number("first_sequence", first + tokens + completes - 1 if first else 0)
    _check_tokens(request, limits)
    finish_reason = _finish_reason(request.completion) if completes else None
    producer = check.producer(request.producer_epoch, request.producer_id)
    fragment = _fragment(request)
    return Append(first, tokens, finish_reason, producer, fragment, _completion(request, fragment))


def _fragment(request: ProduceRequest) -> bytes:
    """Encode what is stored: ProduceRequest and SubscribeResponse give `tokens` and `completion` the same numbers.

    Deterministic, so that a retry that encodes a map in another order has the same checksum. Unknown fields are
    dropped: at the top they could pose as SubscribeResponse's own.
    """
    request.DiscardUnknownFields()
    for field in ("stream", "first_sequence", "producer_epoch", "producer_id"):
        request.ClearField(field)
    return request.SerializeToString(deterministic=True)


def _completion(request: ProduceRequest, fragment: bytes) -> bytes:
    """Encode the completion alone, as a fragment."""
    if not request.HasField("completion") or not request.tokens:
        return fragment if request.HasField("completion") else b""
    request.ClearField("tokens")
    return request.SerializeToString(deterministic=True)


def _check_tokens(request: ProduceRequest, limits: Limits) -> None:
    measure = request.ByteSize() > limits.max_token_bytes
    for i, token in enumerate(request.tokens):
        kind = token.WhichOneof("content")
        if kind is None:
            raise InvalidField(f"tokens[{i}].content", "is not set: set one of text, reasoning, tool_call or json")
        if kind == "json":
            _check_json(f"tokens[{i}].json", token.json)
        if token.role not in _ROLES:
            raise InvalidField(f"tokens[{i}].role", f"{token.role} is not a role that this bridge knows")
        if measure and (size := token.ByteSize()) > limits.max_token_bytes:
            raise LimitExceeded(
                "max_token_bytes", limits.max_token_bytes, size, f"split tokens[{i}] into several tokens"
            )


def _check_json(field: str, text: str) -> None:
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidField(field, f"is not one JSON value ({error}): pieces of JSON belong into text") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finish_reason(completion: token_pb2.Completion) -> FinishReason:
    reason = _FINISH_REASONS.get(completion.finish_reason)
    if reason is None:
        raise InvalidField("completion.finish_reason", "is unspecified or unknown: say why the stream ended")
    return reason
