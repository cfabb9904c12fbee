"""Where a reader begins."""

from enum import Enum

from llmbridge.model.cursor import Cursor


class Position(Enum):
    """A place that needs no cursor."""

    BEGINNING = "beginning"
    EARLIEST = "earliest"
    LATEST = "latest"


Start = Cursor | Position
