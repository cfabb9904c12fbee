"""Where a browser's reader stands: what the `id:` of an event says, and what comes back in `Last-Event-ID` or `cursor`.

Knows the form and nothing of transports. Mostly a place is the bridge's cursor, as it is. What a cursor can't say:

    <cursor>~   right before this record, which is the completion: tokens that the bridge sends together with it are an
                event of their own, and have no cursor
    0           before the first record: what "latest" means on a stream that has none
    end         nothing is to come any more: after an error that coming back does not help
"""

import re
from dataclasses import dataclass

from llmbridge.gateway.problems import invalid_field
from llmbridge.v1.bridge_service_pb2 import (
    POSITION_BEGINNING,
    POSITION_EARLIEST,
    POSITION_LATEST,
    POSITION_UNSPECIFIED,
    Position,
)

BEGINNING = "0"
END = "end"

_FORM = re.compile(r"[0-9a-zA-Z_-]{0,256}")
_BEFORE = "~"
_POSITIONS = {
    "": POSITION_UNSPECIFIED,
    "beginning": POSITION_BEGINNING,
    "earliest": POSITION_EARLIEST,
    "latest": POSITION_LATEST,
}


@dataclass(frozen=True, slots=True)
class Start:
    """Where reading begins: after a cursor; if that is empty, at a position.

    `completion`, if not empty, is the cursor of the completion that alone is missing; the position is then the latest.
    """

    after_cursor: str = ""
    position: Position.ValueType = POSITION_UNSPECIFIED
    completion: str = ""

    @property
    def is_latest(self) -> bool:
        """Whether the bridge will first say what "now" means."""
        return not self.after_cursor and self.position == POSITION_LATEST


def start_of(place: str, position: str) -> Start | None:
    """Read a place and a position (`beginning`, `earliest`, `latest`); either may be empty, and the place goes before.

    None where nothing is to come. Raises Problem naming `cursor` or `position`.
    """
    at = _POSITIONS.get(position.removeprefix("POSITION_").lower())
    if at is None:
        raise invalid_field("position", f"position: {position[:64]!r} is not one of beginning, earliest and latest")
    if place == END:
        return None
    cursor = place.removesuffix(_BEFORE)
    if _FORM.fullmatch(cursor) is None or (cursor != place and not cursor):
        raise invalid_field("cursor", "cursor: this is not one that the gateway or the bridge gave")
    if cursor != place:
        return Start(position=POSITION_LATEST, completion=cursor)
    if cursor == BEGINNING:
        return Start(position=POSITION_BEGINNING)
    return Start(cursor, at)


def before_completion(cursor: str) -> str:
    """Name the place right before the completion with this cursor."""
    return cursor + _BEFORE
