"""`llmbridge dead-letters …`: list, redrive and delete dead letters."""

from typing import Annotated

import typer

from llmbridge.cli.errors import ExitCode, fail, quiet_when_unread, say
from llmbridge.cli.messages import list_messages, moment
from llmbridge.cli.options import DEFAULT_ADDRESS, Address, AsJson, Response, Timeout, ask_bridge, check_text
from llmbridge.cli.printing import visible
from llmbridge.cli.tables import Column, print_lines
from llmbridge.client import StreamName
from llmbridge.v1 import group_service_pb2 as pb

app = typer.Typer(
    name="dead-letters",
    help="""List, redrive and delete dead letters: what no member of a group settled.

    They print tables on a terminal, else lines of tab-separated values, or JSON with --json.

    Exit codes: 0 done, 2 a field is refused, 4 no answer from the bridge, 5 a letter, its entry or its group is gone.
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _check_ids(ids: list[str]) -> list[str]:
    for one in ids:
        check_text(one)
    return ids


Ids = Annotated[list[str], typer.Argument(metavar="ID...", callback=_check_ids, help="Which letters, from `list`.")]


@app.command("list")
def list_(
    session: Annotated[str, typer.Argument(metavar="[SESSION]", callback=check_text, help="Only of this…")] = "",
    model: Annotated[str, typer.Argument(metavar="[MODEL]", callback=check_text, help="… stream.")] = "",
    response: Response = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """List dead letters, of one stream or of all, oldest first within a session.

    In a pipe: a line each with the tab-separated columns id, session, model, response (empty for the lifecycle feed),
    group, cursor, attempts, reason, first and last delivered (ms), consumer.
    """
    if bool(session) is not bool(model) or (response and not session):
        raise fail("give both SESSION and MODEL, or neither", ExitCode.USAGE)
    stream = StreamName(session, model, response) if session else None
    list_messages(
        address,
        timeout,
        lambda client, page_size: client.groups.dead_letters(stream, page_size=page_size),
        _COLUMNS,
        limit=limit,
        as_json=as_json,
        none="there is no dead letter",
    )


@app.command()
def redrive(ids: Ids, address: Address = DEFAULT_ADDRESS, timeout: Timeout = 10.0) -> None:
    """Give dead letters back to their groups, to be delivered at once, their attempts counted anew.

    Prints the ids of those that are gone: the entry, its stream, its group or the letter does not exist any more.
    """
    results = ask_bridge(address, timeout, lambda client: client.groups.redrive(ids))
    gone = [letter for letter, done in zip(ids, results, strict=True) if not done]
    with quiet_when_unread():
        print_lines(gone)
    say(f"redriven: {len(ids) - len(gone)} of {len(ids)}")
    if gone:
        raise typer.Exit(ExitCode.NOT_FOUND)


@app.command()
def delete(ids: Ids, address: Address = DEFAULT_ADDRESS, timeout: Timeout = 10.0) -> None:
    """Delete dead letters."""
    deleted = ask_bridge(address, timeout, lambda client: client.groups.delete_dead_letters(ids))
    say(f"deleted: {deleted} of {len(ids)}")


def _reason(letter: pb.DeadLetter) -> str:
    """The reason in one line: unlike names it may hold anything."""
    return visible(" ".join(letter.reason.split()))


_COLUMNS: tuple[Column[pb.DeadLetter], ...] = (
    Column("id", lambda one: one.id),
    Column("session", lambda one: one.group.stream.session_id, folds=True),
    Column("model", lambda one: one.group.stream.model_id, folds=True),
    Column("response", lambda one: one.group.stream.response_id, folds=True),
    Column("group", lambda one: one.group.name, folds=True),
    Column("cursor", lambda one: one.cursor, brief=False),
    Column("attempts", lambda one: one.attempts, right=True),
    Column("reason", _reason, folds=True),
    Column("first", lambda one: one.first_delivered_ms, lambda one: moment(one.first_delivered_ms), brief=False),
    Column("last", lambda one: one.last_delivered_ms, lambda one: moment(one.last_delivered_ms)),
    Column("consumer", lambda one: one.consumer, brief=False),
)
