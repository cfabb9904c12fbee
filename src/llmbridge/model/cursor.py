"""Cursors: the only thing a reader has to keep. Opaque to clients; parsed nowhere else."""

import re
from typing import NamedTuple

from llmbridge.model.records import MAX_SEQUENCE, Run

_FORM = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})-([0-9a-f]{8})")


class Cursor(NamedTuple):
    """Names a record: the stream's incarnation, the record's sequence, the checksum of the log up to its entry.

    The incarnation tells a re-created stream from its predecessor, the checksum a log that lost its tail and was
    written anew from the one the reader saw. Sequence 0 stands before the first record. A tuple, as Run is.
    """

    incarnation: int
    sequence: int
    checksum: str

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read what `str()` wrote. Raises ValueError on anything else."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError("not a cursor")
        incarnation, sequence = int(match[1]), int(match[2])
        if sequence > MAX_SEQUENCE or incarnation > MAX_SEQUENCE:
            raise ValueError("a number in the cursor is too large")
        return cls(incarnation, sequence, match[3])

    @classmethod
    def after(cls, run: Run) -> "Cursor":
        """Name the last record of a run."""
        return cls(run.incarnation, run.last, run.checksum)

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.sequence}-{self.checksum}"


NO_CHECKSUM = "00000000"
"""Stands for an entry that holds no bytes (the header) or is no longer there; also the CRC-32 of nothing."""
