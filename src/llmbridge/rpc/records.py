"""Decodes the records of an append, for Produce and ProduceMany alike: the same checks, and the same bytes stored.

Done for each token, so in one pass with few operations.
"""

import json

from llmbridge.errors import InvalidField, LimitExceeded
from llmbridge.model.records import MAX_SEQUENCE, Append, FinishReason, Producer
from llmbridge.rpc import limits as check
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.protobuf import LENGTH, VARINT, tag
from llmbridge.v1 import token_pb2
from llmbridge.v1.bridge_service_pb2 import ProduceRequest, SubscribeResponse, WriterAppend

_ROLES = frozenset(token_pb2.Role.values())
_FINISH_REASONS = {
    number: FinishReason[name.removeprefix("FINISH_REASON_")]
    for name, number in token_pb2.FinishReason.items()
    if number != token_pb2.FINISH_REASON_UNSPECIFIED
}
_NOT_RECORDS = {
    message: tuple(name for name in message.DESCRIPTOR.fields_by_name if name not in ("tokens", "completion"))
    for message in (ProduceRequest, WriterAppend)
}

_TOKENS = tag(SubscribeResponse.TOKENS_FIELD_NUMBER, LENGTH)[0]
_TEXT = tag(token_pb2.Token.TEXT_FIELD_NUMBER, LENGTH)[0]
_ROLE = tag(token_pb2.Token.ROLE_FIELD_NUMBER, VARINT)[0]
_TIMESTAMP_MS = tag(token_pb2.Token.TIMESTAMP_MS_FIELD_NUMBER, VARINT)[0]
_ALL_CONTINUE = 0x80_80_80_80_80


def decode_records(message: ProduceRequest | WriterAppend, producer: Producer, limits: Limits) -> Append:
    """Check the records of a message and take them over; consumes the message.

    Raises InvalidField or LimitExceeded.
    """
    tokens = message.tokens
    count = len(tokens)
    completes = message.HasField("completion")
    if not count and not completes:
        raise InvalidField("tokens", "is empty and there is no completion: send at least one record")
    if count > limits.max_tokens_per_request:
        raise LimitExceeded("max_tokens_per_request", limits.max_tokens_per_request, count, "send several requests")
    first = message.first_sequence
    if first + count > MAX_SEQUENCE:
        check.check_number("first_sequence", first + count + completes - 1)
    if count == 1 and not completes:
        encoded = message.SerializeToString()
        if is_plain_text(encoded):
            # Nearly all are. The same bytes as below, in half the time, which is also why Append is made like this.
            fragment = encoded[: encoded[1] + 2]
            if len(fragment) > limits.max_token_bytes:
                _check_sizes(message, limits)
            return tuple.__new__(Append, (first, 1, None, producer, fragment, b""))
    # In the fragment they could pose as SubscribeResponse's own.
    message.DiscardUnknownFields()
    for place in range(count):
        token = tokens[place]
        # Nearly all are text of no particular role.
        if token.role or not token.HasField("text"):
            _check_token(place, token)
    finish_reason = _finish_reason(message.completion) if completes else None
    for field in _NOT_RECORDS[type(message)]:
        message.ClearField(field)  # type: ignore[arg-type]  # a field of this very message
    # What is stored: `tokens` and `completion` have the same numbers as in SubscribeResponse. Deterministic, so that a
    # retry that encodes a map in another order has the same checksum.
    fragment = message.SerializeToString(deterministic=True)
    if len(fragment) > limits.max_token_bytes:
        _check_sizes(message, limits)
    completion = _completion(message, fragment) if completes else b""
    return Append(first, count, finish_reason, producer, fragment, completion)


def is_plain_text(encoded: bytes) -> bool:
    """Tell whether the first field of a message is a token of a short text, with a role and a time at most.

    The time has six bytes from 1971 to 2109; for any other the answer is no.
    """
    if len(encoded) < 4 or encoded[0] != _TOKENS or encoded[1] > 0x7F or encoded[2] != _TEXT:
        return False
    place = 4 + encoded[3]
    rest = encoded[1] + 2 - place
    if rest in (2, 9) and encoded[place] == _ROLE and encoded[place + 1] in _ROLES:
        place, rest = place + 2, rest - 2
    if rest == 7 and encoded[place] == _TIMESTAMP_MS:
        return int.from_bytes(encoded[place + 1 : place + 6]) & _ALL_CONTINUE == _ALL_CONTINUE
    return rest == 0


def _check_token(place: int, token: token_pb2.Token) -> None:
    kind = token.WhichOneof("content")
    if kind is None:
        raise InvalidField(f"tokens[{place}].content", "is not set: set one of text, reasoning, tool_call or json")
    if kind == "json":
        _check_json(f"tokens[{place}].json", token.json)
    if token.role not in _ROLES:
        raise InvalidField(f"tokens[{place}].role", f"{token.role} is not a role that this bridge knows")


def _check_sizes(message: ProduceRequest | WriterAppend, limits: Limits) -> None:
    for place, token in enumerate(message.tokens):
        if (size := token.ByteSize()) > limits.max_token_bytes:
            raise LimitExceeded(
                "max_token_bytes", limits.max_token_bytes, size, f"split tokens[{place}] into several tokens"
            )


def _completion(message: ProduceRequest | WriterAppend, fragment: bytes) -> bytes:
    """Encode the completion alone, as a fragment."""
    if not message.tokens:
        return fragment
    message.ClearField("tokens")
    return message.SerializeToString(deterministic=True)


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
