"""What a benchmark's token says, and the check that a reader got every token of its stream, in order, once.

A token's text names its stream, its sequence and the moment it was sent, so that a reader can check it and tell its age
without talking to the producer. Knows nothing of transports.
"""

import time

MonotonicNs = int
"""Nanoseconds of CLOCK_MONOTONIC, which all processes of one host share."""


class DeliveryError(Exception):
    """A reader got something else than the next token, or a stream ended at the wrong place."""


def token_text(stream: str, sequence: int, sent: MonotonicNs) -> str:
    """The text of a token."""
    return f"{stream}:{sequence}:{sent:x}"


class DeliveryCheck:
    """Follows one reader of one stream of which the length is known."""

    __slots__ = ("_expected_total", "_prefix", "_received", "_stream")

    def __init__(self, stream: str, expected_total: int) -> None:
        self._stream = stream
        self._prefix = f"{stream}:"
        self._expected_total = expected_total
        self._received = 0

    def take(self, text: str) -> MonotonicNs:
        """Takes the next token and returns when it was sent. Raises DeliveryError if it is not the next one."""
        self._received += 1
        stream_and_sequence, _, sent = text.rpartition(":")
        if stream_and_sequence != f"{self._prefix}{self._received}":
            raise DeliveryError(f"stream {self._stream}: expected token {self._received}, received {text!r}")
        return int(sent, 16)

    def end(self) -> None:
        """To be called when the stream has ended. Raises DeliveryError if tokens are missing or too many came."""
        if self._received != self._expected_total:
            raise DeliveryError(
                f"stream {self._stream}: ended after {self._received} tokens, {self._expected_total} were sent"
            )


def now() -> MonotonicNs:
    """The current moment."""
    return time.monotonic_ns()
