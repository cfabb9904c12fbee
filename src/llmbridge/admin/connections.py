"""List the connections of an instance, page by page: of one process, and of several workers' pages one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Generic, Protocol, TypeVar

from llmbridge.admin.page_tokens import foreign_page_token, make_page_token, parse_page_token
from llmbridge.hub.connections import Connection, Connections
from llmbridge.hub.serials import serial_of


class Named(Protocol):
    """What has a connection's id. Ids are in the order in which the connections came."""

    @property
    def id(self) -> str:
        """The id."""


_Named = TypeVar("_Named", bound=Named)


@dataclass(frozen=True, slots=True)
class Page(Generic[_Named]):
    """Some connections, and the token of the next page ('' after the last)."""

    connections: tuple[_Named, ...]
    next_page_token: str


def list_connections(connections: Connections, session_id: str, page_size: int, token: str) -> Page[Connection]:
    """List the connections of a session at this process, or all where `session_id` is empty, oldest first.

    Raises InvalidField for a token that is not of this listing and this instance.
    """
    after = _parse(token, session_id, connections.instance_id) if token else 0
    wanted = (
        connection
        for connection in connections.after(after)
        if not session_id or (connection.stream is not None and connection.stream.session_id == session_id)
    )
    # One more than is given, to know whether there is another page.
    found = tuple(islice(wanted, page_size + 1))
    return _page(found[:page_size], len(found) > page_size, session_id, connections.instance_id)


def one_page(pages: Sequence[Page[_Named]], session_id: str, page_size: int, instance_id: str) -> Page[_Named]:
    """Make one page of those that workers gave for the same place in the same listing."""
    found = tuple(merge(*(page.connections for page in pages), key=lambda connection: connection.id))
    more = len(found) > page_size or any(page.next_page_token for page in pages)
    return _page(found[:page_size], more, session_id, instance_id)


def _page(connections: Iterable[_Named], more: bool, session_id: str, instance_id: str) -> Page[_Named]:
    given = tuple(connections)
    token = make_page_token("connections", session_id, 0, f"{instance_id}/{given[-1].id}") if more else ""
    return Page(given, token)


def _parse(token: str, session_id: str, instance_id: str) -> int:
    _, place = parse_page_token(token, "connections", session_id)
    its_instance, _, last_id = place.partition("/")
    serial = serial_of(last_id)
    if its_instance != instance_id or serial is None:
        raise foreign_page_token()
    return serial
