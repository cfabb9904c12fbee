"""What writers handed over and were told is stored, and what each reader got: noted as it happens, judged elsewhere.

Every token's text names its stream and its number, so that what arrives speaks for itself.
"""

import re
import time
from dataclasses import dataclass, field

_TEXT = re.compile(r"<(\S+) (\d+)>")


def token_text(stream: str, number: int) -> str:
    """What the token of this number says."""
    return f"<{stream} {number}>"


@dataclass(slots=True)
class ReaderLedger:
    """What one reader got, over as many calls as it took. Numbers are those in the tokens' texts."""

    name: str
    began: float = 0.0
    received: list[int] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    """What is not of this stream, came under another number than it carries, or behind the end."""
    finish: str = ""
    """The completion's finish reason; empty while there was none."""
    finish_number: int = 0
    error: str = ""
    """The name of the error that its client raised, and the bridge's reason; empty if there was none."""
    hung: bool = False
    longest_wait: float = 0.0
    """The longest time, in seconds, from a token's handing over (or this reader's beginning) to its arrival."""


@dataclass(slots=True)
class StreamLedger:
    """One stream: its writer, and its readers."""

    name: str
    sent_at: list[float] = field(default_factory=list)
    """When each token was handed to the writer, in seconds of the monotonic clock."""
    acknowledged: int = 0
    """So many tokens, from the first, did the client say are stored."""
    completed: str = ""
    """The finish reason that the client said is stored."""
    error: str = ""
    hung: bool = False
    exposed: bool = False
    """Whether Redis lost data, as its setting allows, while this stream lived."""
    readers: list[ReaderLedger] = field(default_factory=list)

    def send(self) -> str:
        """Note that the next token is handed over; returns its text."""
        self.sent_at.append(time.monotonic())
        return token_text(self.name, len(self.sent_at))

    def acknowledge(self, last_sequence: int) -> None:
        """Note what the client says is the last record that is stored. That may fall, when it fills a log again."""
        self.acknowledged = max(self.acknowledged, min(last_sequence, len(self.sent_at)))

    def receive(self, reader: ReaderLedger, text: str, sequence: int) -> None:
        """Note a token that came under this sequence."""
        found = _TEXT.fullmatch(text)
        if found is None or found[1] != self.name or int(found[2]) != sequence:
            reader.foreign.append(f"{text} as {sequence}")
            return
        if reader.finish:
            reader.foreign.append(f"{sequence} behind the end")
        reader.received.append(sequence)
        if sequence <= len(self.sent_at):
            since = max(self.sent_at[sequence - 1], reader.began)
            reader.longest_wait = max(reader.longest_wait, time.monotonic() - since)

    def receive_end(self, reader: ReaderLedger, finish: str, sequence: int) -> None:
        """Note a completion with this finish reason that came under this sequence."""
        if reader.finish:
            reader.foreign.append(f"{finish} behind {reader.finish}")
        reader.finish, reader.finish_number = finish, sequence
