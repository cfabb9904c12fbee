"""The frames that a page sends over a WebSocket, read and checked. Knows nothing of sockets.

    {"type": "subscribe", "id": "a", "sessionId": "…", "modelId": "…", "responseId": "…", "cursor": "…",
     "position": "latest"}
    {"type": "unsubscribe", "id": "a"}
    {"type": "cancel", "id": "a", "reason": "…"}
    {"type": "ping", "id": "…"}

`id` is the page's name for a subscription. `responseId`, `cursor`, `position`, `reason` and a ping's `id` may be left
out.
"""

import json
from dataclasses import dataclass

from llmbridge.gateway.bodies import shown, unique_fields
from llmbridge.gateway.places import Start, start_of
from llmbridge.gateway.problems import Problem, invalid_field
from llmbridge.v1.stream_pb2 import StreamRef

MAX_ID_CHARACTERS = 128

_REQUIRED = {
    "subscribe": ("id", "sessionId", "modelId"),
    "unsubscribe": ("id",),
    "cancel": ("id",),
    "ping": (),
}
_OPTIONAL = {
    "subscribe": ("responseId", "cursor", "position"),
    "unsubscribe": (),
    "cancel": ("reason",),
    "ping": ("id",),
}


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Read a stream. `start` is None for a place behind which nothing comes."""

    id: str
    stream: StreamRef
    start: Start | None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Read it no more."""

    id: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the generation that a subscription reads."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a pong."""

    id: str


Frame = Subscribe | Unsubscribe | Cancel | Ping


class BadFrame(Exception):
    """A frame that can't be served. `id` is that of the subscription it means, if it says so."""

    def __init__(self, problem: Problem, id_: str = "") -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.id = id_


def read_frame(text: str) -> Frame:
    """Read a frame. Raises BadFrame, naming the field."""
    try:
        fields = json.loads(text, object_pairs_hook=unique_fields)
    except Problem as problem:
        raise BadFrame(problem) from None
    except (ValueError, RecursionError):
        raise BadFrame(invalid_field("frame", "frame: this is not JSON")) from None
    if not isinstance(fields, dict):
        raise BadFrame(invalid_field("frame", "frame: must be a JSON object"))
    given = fields.get("id")
    # One that can't be sent back is not.
    id_ = given if isinstance(given, str) and len(given) <= MAX_ID_CHARACTERS and _is_unicode(given) else ""
    try:
        return _decode(fields)
    except Problem as problem:
        raise BadFrame(problem, id_) from None


def _decode(fields: dict[str, object]) -> Frame:
    kind = fields.pop("type", None)
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise invalid_field("type", f"type: must be one of {', '.join(_REQUIRED)}")
    texts: dict[str, str] = {}
    for name, value in fields.items():
        if name not in _REQUIRED[kind] + _OPTIONAL[kind]:
            raise invalid_field(shown(name), f"{shown(name)}: {kind} has no such field")
        if not isinstance(value, str):
            raise invalid_field(name, f"{name}: must be a string")
        texts[name] = value
    for name in _REQUIRED[kind]:
        if not texts.get(name):
            raise invalid_field(name, f"{name}: must be given")
    for name, value in texts.items():
        if not _is_unicode(value):
            raise invalid_field(name, f"{name}: has half of a surrogate pair")
    id_ = texts.get("id", "")
    if len(id_) > MAX_ID_CHARACTERS:
        raise invalid_field("id", f"id: may have at most {MAX_ID_CHARACTERS} characters")
    match kind:
        case "subscribe":
            stream = StreamRef(
                session_id=texts["sessionId"], model_id=texts["modelId"], response_id=texts.get("responseId", "")
            )
            return Subscribe(id_, stream, start_of(texts.get("cursor", ""), texts.get("position", "")))
        case "unsubscribe":
            return Unsubscribe(id_)
        case "cancel":
            return Cancel(id_, texts.get("reason", ""))
        case _:
            return Ping(id_)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
