"""The members' channels: what one member, or whoever settles for it, lets the others of its group know at once.

A channel is shared by all who listen to it in this process. What a bell says may be lost at any time: members look by
themselves, too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from llmbridge.log.wakeups import Channels, Subscription


class Ring(Enum):
    """What happened. LOOK: something may have."""

    SETTLED = b"settled"
    REQUEUED = b"requeued"
    LOOK = b""


@dataclass(frozen=True, slots=True)
class Bell:
    """A message to the members: what happened to which entries, by their ids."""

    ring: Ring
    ids: tuple[bytes, ...]

    @classmethod
    def parse(cls, message: bytes | None) -> "Bell":
        """Decode what the scripts publish; whatever else comes means: look."""
        what, *ids = (message or b"").split(b" ")
        for ring in (Ring.SETTLED, Ring.REQUEUED):
            if what == ring.value:
                return cls(ring, tuple(ids))
        return cls(Ring.LOOK, ())


Listener = Callable[[Bell], None]


class Bells:
    """Listens to channels on behalf of members."""

    def __init__(self, wake_ups: Channels) -> None:
        self._wake_ups = wake_ups
        self._channels: dict[str, tuple[Subscription, list[Listener]]] = {}

    @contextmanager
    def listen(self, channel: str, listener: Listener) -> Iterator[None]:
        """Have a listener called with each bell of a channel while the context lasts."""
        if channel not in self._channels:
            listeners: list[Listener] = []
            self._channels[channel] = (self._wake_ups.subscribe(channel, _to_all(listeners)), listeners)
        subscription, listeners = self._channels[channel]
        listeners.append(listener)
        try:
            yield
        finally:
            listeners.remove(listener)
            if not listeners:
                del self._channels[channel]
                self._wake_ups.unsubscribe(subscription)


def _to_all(listeners: list[Listener]) -> Callable[[bytes | None], None]:
    def dispatch(message: bytes | None) -> None:
        bell = Bell.parse(message)
        for listener in tuple(listeners):
            listener(bell)

    return dispatch
