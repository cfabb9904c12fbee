"""`llmbridge streams …`: list, inspect, create, trim, delete and cancel streams."""

from collections.abc import AsyncIterator
from typing import Annotated

import typer

from llmbridge.cli.errors import ExitCode, fail, say
from llmbridge.cli.messages import duration, list_messages, moment, show_messages, word_of
from llmbridge.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    Model,
    Response,
    Session,
    Timeout,
    ask_bridge,
    check_text,
    path_of,
)
from llmbridge.cli.tables import Column
from llmbridge.client import Client, FinishReason, Sealer, StreamName
from llmbridge.client.values import stream_ref
from llmbridge.model.records import MAX_SEQUENCE
from llmbridge.v1.bridge_service_pb2 import CancelResponse
from llmbridge.v1.stream_admin_service_pb2 import TrimStreamResponse
from llmbridge.v1.stream_pb2 import STREAM_STATE_SEALED, StreamInfo, StreamRef

app = typer.Typer(
    name="streams",
    help="""List, inspect, create, trim, delete and cancel streams.

    They print tables on a terminal, else lines of tab-separated values, or JSON with --json.

    Exit codes: 0 done, 2 a field is refused, 4 no answer from the bridge, 5 no such stream, 6 it exists already, 7 the
    cursor is of another stream.
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("list")
def list_(
    session: Annotated[str | None, typer.Option(callback=check_text, help="This session's, newest first.")] = None,
    all_open: Annotated[bool, typer.Option("--open", help="All open ones, of all sessions, in no order.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """List a session's streams, or all that are open.

    In a pipe: a line each with the tab-separated columns session, model, response, state, finish reason, sealer, first
    and last sequence, producer epoch, entries, bytes, created (ms), appended (ms), time to live (ms), cursor.
    """
    if (session is None) is not all_open:
        raise fail("give either --session or --open", ExitCode.USAGE)

    def listed(client: Client, page_size: int) -> AsyncIterator[StreamInfo]:
        if session is None:
            return client.streams.open(page_size=page_size)
        return client.streams.of_session(session, page_size=page_size)

    list_messages(
        address, timeout, listed, _STREAM_COLUMNS, limit=limit, as_json=as_json, none="there is no such stream"
    )


@app.command()
def get(
    session: Session,
    model: Model,
    response: Response = "",
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """Show a stream's state; in a pipe, in the columns of `list`."""
    stream = StreamName(session, model, response)
    info = ask_bridge(address, timeout, lambda client: client.streams.get(stream))
    show_messages([info], _STREAM_COLUMNS, as_json=as_json, single=True)


@app.command()
def create(
    session: Session,
    model: Model,
    response: Response = "",
    retention_ms: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEQUENCE, help="Keep it so long after its last record; 0: the bridge's setting."),
    ] = 0,
    max_length: Annotated[
        int, typer.Option(min=0, max=MAX_SEQUENCE, help="Keep at most so many tokens; 0: the bridge's setting.")
    ] = 0,
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """Create an empty stream; without --response, with a response id made for it.

    In a pipe: session, model, response.
    """
    stream = StreamName(session, model, response)
    created = ask_bridge(
        address,
        timeout,
        lambda client: client.streams.create(stream, retention_ms=retention_ms, max_length=max_length),
    )
    show_messages([stream_ref(created)], _NAME_COLUMNS, as_json=as_json, single=True)


@app.command()
def trim(
    session: Session,
    model: Model,
    response: Response = "",
    keep: Annotated[
        int | None, typer.Option(min=1, max=MAX_SEQUENCE, help="Keep so many of the newest tokens.")
    ] = None,
    through: Annotated[
        str | None, typer.Option(callback=check_text, metavar="CURSOR", help="Drop this record and all before it.")
    ] = None,
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """Drop a stream's oldest records. Whole batches are dropped, as they were produced; the last always stays.

    In a pipe: the first sequence that is left, the number of batches dropped.
    """
    if (keep is None) is (through is None):
        raise fail("give either --keep or --through", ExitCode.USAGE)
    stream = StreamName(session, model, response)
    answer = ask_bridge(
        address, timeout, lambda client: client.streams.trim(stream, keep_tokens=keep, through_cursor=through)
    )
    show_messages([answer], _TRIM_COLUMNS, as_json=as_json, single=True)


@app.command()
def delete(
    session: Session,
    model: Model,
    response: Response = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """Delete a stream at once, whoever reads or writes it."""
    stream = StreamName(session, model, response)
    ask_bridge(address, timeout, lambda client: client.streams.delete(stream))
    say(f"deleted {path_of(stream)}")


@app.command()
def cancel(
    session: Session,
    model: Model,
    response: Response = "",
    reason: Annotated[str, typer.Option(callback=check_text, help="Why, for those who read the stream.")] = "",
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
) -> None:
    """Stop a generation: readers see the end, the producer is told. A stream that has its end already keeps it.

    In a pipe: the finish reason, the sealer, the last sequence, the end's cursor.
    """
    stream = StreamName(session, model, response)
    answer = ask_bridge(address, timeout, lambda client: client.cancel(stream, reason=reason))
    show_messages([answer], _CANCEL_COLUMNS, as_json=as_json, single=True)
    if not answer.sealed_now:
        say(f"{path_of(stream)} had its end already")


def _state(info: StreamInfo) -> str:
    return "sealed" if info.state == STREAM_STATE_SEALED else "open"


def _finish(info: StreamInfo) -> str:
    return word_of(FinishReason, info.finish_reason)


_NAME_COLUMNS: tuple[Column[StreamRef], ...] = (
    Column("session", lambda ref: ref.session_id),
    Column("model", lambda ref: ref.model_id),
    Column("response", lambda ref: ref.response_id),
)

_STREAM_COLUMNS: tuple[Column[StreamInfo], ...] = (
    Column("session", lambda info: info.stream.session_id, folds=True),
    Column("model", lambda info: info.stream.model_id, folds=True),
    Column("response", lambda info: info.stream.response_id, folds=True),
    Column("state", _state, brief=False),
    Column("finish reason", _finish, lambda info: _finish(info) or "none yet"),
    Column("sealer", lambda info: word_of(Sealer, info.sealer), brief=False),
    Column("first", lambda info: info.first_sequence, brief=False),
    Column("last", lambda info: info.last_sequence, right=True),
    Column("epoch", lambda info: info.producer_epoch, brief=False),
    Column("entries", lambda info: info.entries, brief=False),
    Column("bytes", lambda info: info.bytes, brief=False),
    Column("created", lambda info: info.created_ms, lambda info: moment(info.created_ms)),
    Column("appended", lambda info: info.appended_ms, lambda info: moment(info.appended_ms), brief=False),
    Column("expires in", lambda info: info.time_to_live_ms, lambda info: duration(info.time_to_live_ms)),
    Column("cursor", lambda info: info.cursor, brief=False),
)

_TRIM_COLUMNS: tuple[Column[TrimStreamResponse], ...] = (
    Column("first", lambda answer: answer.first_sequence),
    Column("batches dropped", lambda answer: answer.entries_dropped),
)

_CANCEL_COLUMNS: tuple[Column[CancelResponse], ...] = (
    Column("finish reason", lambda answer: word_of(FinishReason, answer.finish_reason)),
    Column("sealer", lambda answer: word_of(Sealer, answer.sealer)),
    Column("last", lambda answer: answer.last_sequence),
    Column("cursor", lambda answer: answer.cursor),
)
