"""What a wake-up says: the entry that a script has stored. Knows nothing of how it comes here."""

from typing import NamedTuple


class WakeUp(NamedTuple):
    """The entry that a script stored, as it tells it. A tuple, because there is one for each token.

    `previous_checksum` is that of the entry before it; None where it is the first of its stream.
    """

    incarnation: int
    first: int
    last: int
    checksum: str
    previous_checksum: str | None
    appended_ms: int
    sealed: bool
    fragment: bytes

    @classmethod
    def parse(cls, message: bytes) -> "WakeUp | None":
        """Decode a message; None where it says no more than that there is something to see. Raises ValueError."""
        head, separator, fragment = message.partition(b"\n")
        if not separator:
            return None
        # Text, whose numbers are read in a third of the time that bytes take.
        incarnation, first, last, appended_ms, checksum, previous, sealed = head.decode().split(" ")
        # Not by the class's own constructor, which is Python and takes longer than all of this.
        return tuple.__new__(
            cls,
            (
                int(incarnation),
                int(first),
                int(last),
                checksum,
                None if previous == "-" else previous,
                int(appended_ms),
                sealed == "1",
                fragment,
            ),
        )
