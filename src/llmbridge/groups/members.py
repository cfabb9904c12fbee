"""Attaches members to the groups of streams, in the registry of connections."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from llmbridge.groups.bells import Bells
from llmbridge.groups.member import Member, Membership
from llmbridge.groups.places import GroupPlaces
from llmbridge.hub.connections import Attachment, Caller, Connections
from llmbridge.hub.fanout import Fanout
from llmbridge.log.groups import GroupLog
from llmbridge.log.reading import LogReader
from llmbridge.model.names import StreamName
from llmbridge.model.wire import Wire

CONSUMER_BYTES = 8


def named(consumer: str) -> str:
    """Give a member that has no name a random one."""
    return consumer or secrets.token_hex(CONSUMER_BYTES)


class Members:
    """Makes members and attaches them."""

    def __init__(
        self,
        connections: Connections,
        groups: GroupLog,
        bells: Bells,
        fanout: Fanout,
        log_reader: LogReader,
        places: GroupPlaces,
        wire: Wire,
        heartbeat_ms: int,
        poll_ms: int,
    ) -> None:
        self._connections = connections
        self._groups = groups
        self._bells = bells
        self._fanout = fanout
        self._log_reader = log_reader
        self._places = places
        self._wire = wire
        self._heartbeat_seconds = heartbeat_ms / 1000
        self._poll_seconds = poll_ms / 1000

    @asynccontextmanager
    async def attach(self, name: StreamName, membership: Membership, caller: Caller) -> AsyncIterator[Member]:
        """Attach a member for as long as the context lasts; then what it has not settled goes back to its group.

        Raises what Connections.attach does, and what Member.attach does.
        """
        membership = replace(membership, consumer=named(membership.consumer))
        member = Member(
            self._places.of_stream(name, membership.group),
            membership,
            self._groups,
            self._bells,
            self._fanout,
            self._log_reader,
            self._wire,
            self._heartbeat_seconds,
            self._poll_seconds,
        )
        attachment = Attachment(name, caller, membership.group, membership.consumer)
        async with self._connections.attach(member, attachment):
            await member.attach()
            yield member
