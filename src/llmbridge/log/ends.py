"""Tells producers, without an append of theirs, that their stream was sealed or taken over, at whichever bridge.

The scripts publish it, rarely: one channel a partition, listened to only while it has producers here. What is
published may be lost at any time: a producer's next append is told for certain.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmbridge.errors import Completed, Fenced
from llmbridge.log.keys import StreamKeys
from llmbridge.log.wakeups import Channels, Subscription
from llmbridge.model.records import Producer

OnEnd = Callable[[Completed | Fenced], None]


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """Who is to be told, and of what."""

    stream: StreamKeys
    producer: Producer
    on_end: OnEnd


Listeners = dict[bytes, list[Listener]]
"""Those of one partition, by their stream's member in the indexes."""


class Ends:
    """Listens on behalf of producers."""

    def __init__(self, wake_ups: Channels) -> None:
        self._wake_ups = wake_ups
        self._channels: dict[str, tuple[Subscription, Listeners]] = {}

    def listen(self, stream: StreamKeys, producer: Producer, on_end: OnEnd) -> Listener:
        """Have `on_end` called with whatever ends a producer's right to append, until told to `forget`."""
        if stream.ends not in self._channels:
            listeners: Listeners = {}
            self._channels[stream.ends] = (self._wake_ups.subscribe(stream.ends, _to(listeners)), listeners)
        _, listeners = self._channels[stream.ends]
        listener = Listener(stream, producer, on_end)
        listeners.setdefault(stream.open_member.encode(), []).append(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """Call it no more."""
        channel, member = listener.stream.ends, listener.stream.open_member.encode()
        subscription, listeners = self._channels[channel]
        listeners[member].remove(listener)
        if not listeners[member]:
            del listeners[member]
        if not listeners:
            del self._channels[channel]
            self._wake_ups.unsubscribe(subscription)


def _to(listeners: Listeners) -> Callable[[bytes | None], None]:
    def dispatch(message: bytes | None) -> None:
        try:
            member, end = _parse(message or b"")
        except ValueError:
            return  # Some may have been lost, see above; and anybody may publish.
        for listener in tuple(listeners.get(member, ())):
            if isinstance(end, Completed):
                listener.on_end(end)
            elif _is_fenced(listener.producer, end):
                listener.on_end(Fenced(end.epoch))

    return dispatch


def _parse(message: bytes) -> tuple[bytes, Completed | Producer]:
    """Tell whose stream it is about, and how it was sealed or who took it over. Raises ValueError."""
    what, member, first, second = message.split(b" ", 3)
    if what == b"completed":
        return member, Completed(first.decode(), second.decode())
    return member, Producer(int(first), second.decode())


def _is_fenced(producer: Producer, by: Producer) -> bool:
    return producer != by and producer.epoch <= by.epoch
