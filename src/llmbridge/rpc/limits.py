"""What a request may look like: the limits, and the checks of what all requests have in common."""

import re
from dataclasses import dataclass

from llmbridge.errors import InvalidField, LimitExceeded
from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import MAX_SEQUENCE, Producer
from llmbridge.v1.stream_pb2 import StreamRef

MAX_PRODUCER_ID_BYTES = 64
MAX_REASON_BYTES = 1_024
MAX_SHARED_MESSAGE_BYTES = 3 * 1024 * 1024
"""Of a request message on a call that many share; gRPC itself takes 4 MiB here, and refuses more without a reason."""
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000

_CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of this bridge; names as the settings'."""

    max_request_bytes: int
    max_token_bytes: int
    max_tokens_per_request: int
    max_id_bytes: int
    max_retention_ms: int
    consumer_group: str
    """The group of those who name none."""


def check_size(raw: bytes, max_bytes: int) -> None:
    """Refuse a request over the size limit before it is parsed. Raises LimitExceeded."""
    if len(raw) > max_bytes:
        raise LimitExceeded("max_request_bytes", max_bytes, len(raw), "send fewer tokens in one request")


def check_count(what: str, count: int, maximum: int) -> None:
    """Refuse a message of a shared call with too many of something. Raises LimitExceeded."""
    if count > maximum:
        raise LimitExceeded(what, maximum, count, "send several messages")


def stream_name(ref: StreamRef, limits: Limits, field: str = "stream") -> StreamName:
    """Decode a stream's name. Raises InvalidField."""
    for part, text, required in (
        ("session_id", ref.session_id, True),
        ("model_id", ref.model_id, True),
        ("response_id", ref.response_id, False),
    ):
        check_id(f"{field}.{part}", text, required, limits)
    return StreamName(ref.session_id, ref.model_id, ref.response_id)


def check_id(field: str, text: str, required: bool, limits: Limits) -> None:
    """Check one part of a name. Raises InvalidField."""
    if required and not text:
        raise InvalidField(field, "is empty: it is required")
    # A character takes at most 4 bytes, so most ids need no encoding to be measured.
    if len(text) * 4 > limits.max_id_bytes and (size := len(text.encode())) > limits.max_id_bytes:
        raise InvalidField(field, f"has {size} bytes, at most {limits.max_id_bytes} are allowed: shorten it")
    if _CONTROL_CHARACTERS.search(text):
        raise InvalidField(field, "has a control character: remove it")


def producer(epoch: int, producer_id: str) -> Producer:
    """Decode who produces. Raises InvalidField."""
    check_number("producer_epoch", epoch)
    if (size := len(producer_id.encode())) > MAX_PRODUCER_ID_BYTES:
        raise InvalidField("producer_id", f"has {size} bytes, at most {MAX_PRODUCER_ID_BYTES} are allowed: shorten it")
    return Producer(epoch, producer_id)


def check_number(field: str, number: int) -> None:
    """Check a sequence or epoch. Raises InvalidField."""
    if number > MAX_SEQUENCE:
        raise InvalidField(field, f"is {number}, at most 2^53 - 1 is allowed")


def page_size(field: str, number: int) -> int:
    """Decode how many to list, 0 being the default. Raises InvalidField."""
    if number > MAX_PAGE_SIZE:
        raise InvalidField(field, f"is {number}, at most {MAX_PAGE_SIZE} is allowed")
    return number or DEFAULT_PAGE_SIZE


def cursor(field: str, text: str) -> Cursor:
    """Decode a cursor that a client gives back. Raises InvalidField."""
    try:
        return Cursor.parse(text)
    except ValueError as error:
        raise InvalidField(field, f"{error}: give back a cursor of this bridge unchanged, or leave it empty") from None
