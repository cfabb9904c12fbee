"""List the connections of this process, page by page."""

from dataclasses import dataclass
from itertools import islice

from llmbridge.admin.page_tokens import foreign_page_token, make_page_token, parse_page_token
from llmbridge.hub.connections import Connection, Connections


@dataclass(frozen=True, slots=True)
class ConnectionPage:
    """Some connections, and the token of the next page ('' after the last)."""

    connections: tuple[Connection, ...]
    next_page_token: str


def list_connections(connections: Connections, session_id: str, page_size: int, token: str) -> ConnectionPage:
    """List the connections of a session, or of all where `session_id` is empty, oldest first.

    Raises InvalidField for a token that is not of this listing and this process.
    """
    serial, process_id = parse_page_token(token, "connections", session_id) if token else (0, connections.process_id)
    if process_id != connections.process_id:
        raise foreign_page_token()
    wanted = (
        connection
        for connection in connections.after(serial)
        if not session_id or (connection.stream is not None and connection.stream.session_id == session_id)
    )
    # One more than is given, to know whether there is another page.
    found = tuple(islice(wanted, page_size + 1))
    page = found[:page_size]
    more = len(found) > page_size
    return ConnectionPage(
        page, make_page_token("connections", session_id, page[-1].serial, connections.process_id) if more else ""
    )
