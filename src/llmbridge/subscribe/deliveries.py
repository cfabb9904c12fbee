"""What one response to many subscriptions is made of, and who encodes it: generated code stays under `rpc`."""

from collections.abc import Iterable
from typing import Protocol

RESPONSE_BYTES = 65_536
"""A response is sent when it has so many bytes, or sooner when nothing more is ready. One larger message goes alone."""


class Deliveries(Protocol):
    """Encodes the deliveries of a SubscribeManyResponse, which is nothing but these, one after the other."""

    def recipients(self, numbers: Iterable[int]) -> bytes:
        """Encode whom a delivery is for: the form in which the other methods take it."""

    def head(self, recipients: bytes, size: int) -> bytes:
        """Encode what comes before a message of so many bytes; the message's own bytes follow as they are."""

    def attached(self, recipients: bytes) -> bytes:
        """Encode that subscriptions are attached."""

    def end(self, recipients: bytes, error: Exception | None) -> bytes:
        """Encode that subscriptions have ended: with an error, or OK."""
