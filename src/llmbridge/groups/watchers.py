"""Attaches watchers to the groups of the lifecycle feed, in the registry of connections."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from llmbridge.groups.bells import Bells
from llmbridge.groups.members import named
from llmbridge.groups.places import GroupPlaces
from llmbridge.groups.watcher import FeedWire, Watch, Watcher
from llmbridge.hub.connections import Attachment, Caller, Connections
from llmbridge.log.feed import FeedLog
from llmbridge.log.groups import GroupLog


class Watchers:
    """Makes watchers and attaches them."""

    def __init__(
        self,
        connections: Connections,
        groups: GroupLog,
        feed: FeedLog,
        bells: Bells,
        places: GroupPlaces,
        wire: FeedWire,
        heartbeat_ms: int,
        poll_ms: int,
    ) -> None:
        self._connections = connections
        self._groups = groups
        self._feed = feed
        self._bells = bells
        self._places = places
        self._wire = wire
        self._heartbeat_seconds = heartbeat_ms / 1000
        self._poll_seconds = poll_ms / 1000

    @asynccontextmanager
    async def attach(self, watch: Watch, caller: Caller) -> AsyncIterator[Watcher]:
        """Attach a watcher for as long as the context lasts; then what it has not settled goes back to its group.

        Raises what Connections.attach does, and what Watcher.attach does.
        """
        watch = replace(watch, consumer=named(watch.consumer))
        watcher = Watcher(
            [self._places.of_feed(partition, watch.group) for partition in range(self._places.partitions)],
            watch,
            self._groups,
            self._feed,
            self._bells,
            self._wire,
            self._heartbeat_seconds,
            self._poll_seconds,
        )
        async with self._connections.attach(watcher, Attachment(None, caller, watch.group, watch.consumer)):
            await watcher.attach()
            yield watcher
