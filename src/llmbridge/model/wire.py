"""The one place where the core meets the encoding of messages.

An entry's `fragment` is the encoded `tokens` and `completion` fields of a SubscribeResponse and nothing else. So a
message for a reader is some fragments, one after the other, plus a few fields encoded once per message. The core
joins and stores fragments without opening them; the rare operations that must look inside are behind this protocol,
so that generated code stays under `rpc`.
"""

from collections.abc import Sequence
from typing import Protocol

from llmbridge.model.records import FinishReason


class Wire(Protocol):
    """Encodes what the bridge itself has to say, and slices what producers said."""

    def message(
        self,
        fragments: Sequence[bytes],
        first_sequence: int,
        cursor: str,
        appended_ms: int,
        ack_ids: Sequence[str] = (),
        delivery_attempt: int = 0,
    ) -> bytes:
        """Encode a SubscribeResponse with the fragments' records."""

    def heartbeat(self, cursor: str) -> bytes:
        """Encode a SubscribeResponse that says nothing but where the reader stands."""

    def completion(self, finish_reason: FinishReason, error_message: str) -> bytes:
        """Encode the fragment of a seal made by the bridge."""

    def skip(self, fragment: bytes, records: int) -> bytes:
        """Drop a fragment's first records (tokens, then the completion)."""

    def take(self, fragment: bytes, records: int) -> bytes:
        """Keep a fragment's first records only."""
