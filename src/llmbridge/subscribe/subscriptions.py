"""The readers of this process: admits them, counts them, keeps their heartbeats, and sends them off when it drains."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmbridge.errors import Draining, LimitExceeded
from llmbridge.hub.fanout import Fanout
from llmbridge.log.keys import Keys
from llmbridge.log.reading import LogReader
from llmbridge.model.names import StreamName
from llmbridge.model.wire import Wire
from llmbridge.subscribe.reader import Reader
from llmbridge.subscribe.start import Start

LONGEST_TICK_SECONDS = 1.0


class Subscriptions:
    """Attaches readers. `run` must be running."""

    def __init__(
        self, fanout: Fanout, log_reader: LogReader, keys: Keys, wire: Wire, heartbeat_ms: int, max_readers: int
    ) -> None:
        self._fanout = fanout
        self._log_reader = log_reader
        self._keys = keys
        self._wire = wire
        self._heartbeat_seconds = heartbeat_ms / 1000
        self._max_readers = max_readers
        self._readers: set[Reader] = set()
        self._draining = False

    @property
    def readers(self) -> int:
        """How many readers are attached or attaching."""
        return len(self._readers)

    @asynccontextmanager
    async def attach(self, name: StreamName, start: Start) -> AsyncIterator[Reader]:
        """Attach a reader for as long as the context lasts.

        Raises Draining, LimitExceeded, RedisUnavailable, or a HistoryGone where the log does not continue from `start`.
        """
        if self._draining:
            raise Draining
        if len(self._readers) >= self._max_readers:
            raise LimitExceeded(
                "max_readers", self._max_readers, len(self._readers) + 1, "subscribe at another instance"
            )
        reader = Reader(
            self._keys.stream(name).log, self._fanout, self._log_reader, self._wire, self._heartbeat_seconds
        )
        self._readers.add(reader)
        try:
            await reader.attach(start)
            yield reader
        finally:
            self._readers.discard(reader)
            await reader.detach()

    def drain(self) -> None:
        """Admit no more readers, and end those that are here with Draining and their cursor."""
        self._draining = True
        for reader in self._readers:
            reader.drain()

    async def run(self) -> None:
        """Keep heartbeats until cancelled."""
        while True:
            await asyncio.sleep(min(self._heartbeat_seconds / 4, LONGEST_TICK_SECONDS))
            for reader in self._readers:
                reader.beat()
