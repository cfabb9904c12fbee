"""`llmbridge connections …`: list, count and end the connections of a bridge."""

from typing import Annotated

import typer

from llmbridge.cli.errors import say
from llmbridge.cli.messages import list_messages, moment, show_messages
from llmbridge.cli.options import DEFAULT_ADDRESS, Address, AsJson, Timeout, ask_bridge, check_text
from llmbridge.cli.tables import Column
from llmbridge.v1 import connection_service_pb2 as pb

_MOST_SESSIONS = 1_000

app = typer.Typer(
    name="connections",
    help="""List, count and end the connections of one bridge.

    It answers for all of its workers; other bridges answer for themselves. They print tables on a terminal, else lines
    of tab-separated values, or JSON with --json.

    Exit codes: 0 done, 2 a field is refused, 4 no answer from the bridge, 5 no such connection.
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("list")
def list_(
    session: Annotated[str, typer.Option(callback=check_text, help="Only this session's.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """List connections, oldest first.

    In a pipe: a line each with the tab-separated columns id, session, model, response, transport, peer, since (ms),
    last activity (ms), state, cursor, lag, group, consumer.
    """
    list_messages(
        address,
        timeout,
        lambda client, page_size: client.connections.list(session, page_size=page_size),
        _COLUMNS,
        limit=limit,
        as_json=as_json,
        none="there is no connection",
    )


@app.command()
def count(
    limit: Annotated[int, typer.Option(min=1, max=_MOST_SESSIONS, help="At most so many sessions.")] = 100,
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """Count connections per session, those with the most first; the totals go to standard error.

    In a pipe: a line each with session and number. With --json one object has everything.
    """
    answer = ask_bridge(address, timeout, lambda client: client.connections.count(max_sessions=limit))
    if as_json:
        show_messages([answer], (), as_json=True)
        return
    show_messages(answer.sessions, _SESSION_COLUMNS, as_json=False)
    say(f"{answer.total} connections, {answer.members} of them members or watchers, in {answer.session_count} sessions")


@app.command()
def disconnect(
    connection_id: Annotated[str, typer.Argument(metavar="ID", callback=check_text, help="Which one, from `list`.")],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """End a connection, also one whose client takes nothing. Its client is told, and may come back."""
    ask_bridge(address, timeout, lambda client: client.connections.disconnect(connection_id))
    say(f"disconnected {connection_id}")


# Values that a newer bridge has added are not in these.
_TRANSPORTS: dict[int, str] = {number: name.removeprefix("TRANSPORT_").lower() for name, number in pb.Transport.items()}
_STATES: dict[int, str] = {
    number: name.removeprefix("CONNECTION_STATE_").replace("_", " ").lower()
    for name, number in pb.ConnectionState.items()
}

_COLUMNS: tuple[Column[pb.Connection], ...] = (
    Column("id", lambda one: one.id),
    Column("session", lambda one: one.stream.session_id, folds=True),
    Column("model", lambda one: one.stream.model_id, folds=True),
    Column("response", lambda one: one.stream.response_id, folds=True),
    Column("transport", lambda one: _TRANSPORTS.get(one.transport, ""), brief=False),
    Column("peer", lambda one: one.peer, brief=False),
    Column("since", lambda one: one.since_ms, lambda one: moment(one.since_ms)),
    Column("activity", lambda one: one.last_activity_ms, lambda one: moment(one.last_activity_ms), brief=False),
    Column("state", lambda one: _STATES.get(one.state, "")),
    Column("cursor", lambda one: one.cursor, brief=False),
    Column("lag", lambda one: one.lag, right=True),
    Column("group", lambda one: one.group, folds=True),
    Column("consumer", lambda one: one.consumer, brief=False),
)

_SESSION_COLUMNS: tuple[Column[pb.SessionConnections], ...] = (
    Column("session", lambda one: one.session_id, folds=True),
    Column("connections", lambda one: one.connections, right=True),
)
