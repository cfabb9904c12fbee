"""`llmbridge groups …`: list, show and delete consumer groups, and list their consumers."""

from typing import Annotated

import typer

from llmbridge.cli.errors import ExitCode, fail, say
from llmbridge.cli.messages import duration, show_messages
from llmbridge.cli.options import DEFAULT_ADDRESS, Address, AsJson, Response, Timeout, ask_bridge, check_text, path_of
from llmbridge.cli.tables import Column
from llmbridge.client import GroupName, StreamName
from llmbridge.v1 import group_service_pb2 as pb

app = typer.Typer(
    name="groups",
    help="""List, show and delete consumer groups, and list their consumers.

    They print tables on a terminal, else lines of tab-separated values, or JSON with --json.

    Exit codes: 0 done, 2 a field is refused, 4 no answer from the bridge, 5 no such stream or group.
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Session = Annotated[str, typer.Argument(metavar="[SESSION]", callback=check_text, help="The conversation.")]
Model = Annotated[str, typer.Argument(metavar="[MODEL]", callback=check_text, help="The model that answers.")]
Lifecycle = Annotated[bool, typer.Option("--lifecycle", help="The lifecycle feed instead of a stream.")]
Group = Annotated[
    str, typer.Option("--group", callback=check_text, help="Which group; empty: the bridge's default (a setting).")
]


@app.command("list")
def list_(
    session: Session = "",
    model: Model = "",
    response: Response = "",
    lifecycle: Lifecycle = False,
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """List the groups of a stream, or of the lifecycle feed, by name.

    In a pipe: a line each with the tab-separated columns name, consumers, pending, lag, oldest pending (ms), idle (ms),
    deadline (ms), max deliveries, delivered sequence.
    """
    log = _log_of(session, model, response, lifecycle)
    found = ask_bridge(address, timeout, lambda client: client.groups.of_log(log))
    show_messages(found, _GROUP_COLUMNS, as_json=as_json)
    if not found:
        say("there is no group")


@app.command()
def show(
    session: Session = "",
    model: Model = "",
    response: Response = "",
    lifecycle: Lifecycle = False,
    group: Group = "",
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """Show how a group stands; in a pipe, in the columns of `list`."""
    name = GroupName(_log_of(session, model, response, lifecycle), group)
    info = ask_bridge(address, timeout, lambda client: client.groups.get(name))
    show_messages([info], _GROUP_COLUMNS, as_json=as_json, single=True)


@app.command()
def consumers(
    session: Session = "",
    model: Model = "",
    response: Response = "",
    lifecycle: Lifecycle = False,
    group: Group = "",
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """List a group's consumers.

    In a pipe: a line each with the tab-separated columns name, pending, idle (ms).
    """
    name = GroupName(_log_of(session, model, response, lifecycle), group)
    found = ask_bridge(address, timeout, lambda client: client.groups.consumers(name))
    show_messages(found, _CONSUMER_COLUMNS, as_json=as_json)
    if not found:
        say("the group has no consumer")


@app.command()
def delete(
    session: Session = "",
    model: Model = "",
    response: Response = "",
    lifecycle: Lifecycle = False,
    group: Group = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """Delete a group with all it remembers. Its members' calls end; the stream and the dead letters stay."""
    log = _log_of(session, model, response, lifecycle)
    ask_bridge(address, timeout, lambda client: client.groups.delete(GroupName(log, group)))
    say(f"deleted {group or 'the default group'} of {path_of(log) if log else 'the lifecycle feed'}")


def _log_of(session: str, model: str, response: str, lifecycle: bool) -> StreamName | None:
    named = bool(session and model)
    if lifecycle is named or (lifecycle and (session or response)):
        raise fail("give either SESSION and MODEL, or --lifecycle", ExitCode.USAGE)
    return StreamName(session, model, response) if named else None


_GROUP_COLUMNS: tuple[Column[pb.GroupInfo], ...] = (
    Column("name", lambda info: info.name, folds=True),
    Column("consumers", lambda info: info.consumers, right=True),
    Column("pending", lambda info: info.pending, right=True),
    Column("lag", lambda info: info.lag, right=True),
    Column("oldest", lambda info: info.oldest_pending_ms, lambda info: duration(info.oldest_pending_ms)),
    Column("idle", lambda info: info.idle_ms, lambda info: duration(info.idle_ms)),
    Column("deadline", lambda info: info.ack_deadline_ms, lambda info: f"{info.ack_deadline_ms} ms", brief=False),
    Column("max deliveries", lambda info: info.max_deliveries, brief=False),
    Column("delivered", lambda info: info.delivered_sequence, right=True),
)

_CONSUMER_COLUMNS: tuple[Column[pb.Consumer], ...] = (
    Column("name", lambda one: one.name, folds=True),
    Column("pending", lambda one: one.pending, right=True),
    Column("idle", lambda one: one.idle_ms, lambda one: duration(one.idle_ms)),
)
