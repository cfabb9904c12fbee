"""What a way of talking to a bridge must offer so that every case can be run over it.

The messages of protos/llmbridge/v1 are the values on both sides, whatever they are on the wire: a transport that speaks
JSON parses into them. Knows no transport, and nothing of any case.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest, SubscribeResponse
from llmbridge.v1.lifecycle_service_pb2 import WatchStreamsRequest, WatchStreamsResponse

MessageT_co = TypeVar("MessageT_co", bound=Message, covariant=True)


PASSES = "PASSES"
"""The reason of a refusal that says no more than that coming back helps, and when: what an EventSource is told."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call failed, as docs/protocol.md tells errors."""

    code: str
    """The name of the status: ABORTED."""
    message: str
    """For people."""
    domain: str
    """`llmbridge`; empty when the other side said nothing but a status, as when a connection breaks."""
    reason: str
    """The name of the reason without its prefix: SEQUENCE_GAP; or PASSES."""
    metadata: dict[str, str]
    retry_ms: int | None
    """How long to wait before the same request is sent again; None where that does not help."""
    trailing_cursor: str | None
    """What a bridge that drains says beside the status (`llmbridge-cursor`)."""

    @property
    def short(self) -> tuple[str, str, dict[str, str]]:
        return self.code, self.reason, self.metadata


class CallFailed(Exception):
    """A call ended with another status than OK."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code} {refusal.reason} {refusal.metadata}: {refusal.message}")
        self.refusal = refusal


class NotOffered(Exception):
    """This transport has no such call, or can't do it this way; the message is the reason that a skipped case shows."""


class Incoming(Protocol[MessageT_co]):
    """The messages of one call, as they come."""

    async def attached(self) -> None:
        """Return as soon as the bridge says that the call is attached. Raises CallFailed."""

    async def read(self) -> MessageT_co | None:
        """Wait for the next message, heartbeats included; None when the call ended OK. Raises CallFailed."""

    async def cancel(self) -> None:
        """Give the call up, and return when this side is over. Harmless after the end."""


class Transport(Protocol):
    """One connection to one bridge. Making one raises NotOffered where the instance can't be reached this way."""

    shows_heartbeats: bool
    """Whether a reader gets them as messages."""
    tells_what_was_not_said: bool
    """Whether a token's role and time reach the reader as unsaid where they were; if not, as what that means."""
    buffered_bytes: int
    """How much may be on its way to a reader that takes nothing: what comes then is held back."""

    async def call(self, request: Message, timeout: float) -> Any:
        """Send a request, which by its type names its method, and return the method's response.

        `timeout` in seconds is the deadline of the call. Raises CallFailed, NotOffered.
        """

    async def call_with_garbage(self) -> None:
        """Produce, with bytes in place of a request that can't be read as one. Raises CallFailed, NotOffered."""

    def subscribe(self, request: SubscribeRequest) -> Incoming[SubscribeResponse]:
        """Begin to read. Raises NotOffered."""

    def watch(self, request: WatchStreamsRequest) -> Incoming[WatchStreamsResponse]:
        """Begin to watch the lifecycle feed. Raises NotOffered."""

    async def close(self) -> None:
        """End the connection, and every call that is left with it, as a process that dies does."""
