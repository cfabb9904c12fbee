"""Attaches readers to streams, in the registry of connections, which counts, beats and ends them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmbridge.hub.connections import Attachment, Caller, Connections
from llmbridge.hub.fanout import Fanout
from llmbridge.log.keys import Keys
from llmbridge.log.reading import LogReader
from llmbridge.model.names import StreamName
from llmbridge.model.wire import Wire
from llmbridge.subscribe.deliveries import Deliveries
from llmbridge.subscribe.multiplexer import Multiplexer
from llmbridge.subscribe.place import Place
from llmbridge.subscribe.reader import Reader
from llmbridge.subscribe.start import Start


class Subscriptions:
    """Makes readers and attaches them."""

    def __init__(
        self,
        connections: Connections,
        fanout: Fanout,
        log_reader: LogReader,
        keys: Keys,
        wire: Wire,
        deliveries: Deliveries,
        heartbeat_ms: int,
    ) -> None:
        self._connections = connections
        self._fanout = fanout
        self._log_reader = log_reader
        self._keys = keys
        self._wire = wire
        self._deliveries = deliveries
        self._heartbeat_seconds = heartbeat_ms / 1000

    @asynccontextmanager
    async def attach(self, name: StreamName, start: Start, caller: Caller) -> AsyncIterator[Reader]:
        """Attach a reader for as long as the context lasts.

        Raises what Connections.attach does, RedisUnavailable, or a HistoryGone where the log does not continue from
        `start`.
        """
        reader = Reader(self._place(name), self._wire, self._heartbeat_seconds)
        async with self._connections.attach(reader, Attachment(name, caller)):
            await reader.attach(start)
            yield reader

    @asynccontextmanager
    async def share(self, caller: Caller) -> AsyncIterator[Multiplexer]:
        """Open a call that many subscriptions share, for as long as the context lasts."""
        multiplexer = Multiplexer(self._connections, self._place, self._deliveries, caller, self._heartbeat_seconds)
        with self._connections.share(multiplexer):
            async with multiplexer.open():
                yield multiplexer

    def _place(self, name: StreamName) -> Place:
        return Place(self._keys.stream(name).log, self._fanout, self._log_reader, self._wire)
