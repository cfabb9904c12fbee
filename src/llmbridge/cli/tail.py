"""`llmbridge tail`: print a stream as it arrives, from wherever one left off."""

import asyncio
from enum import StrEnum
from typing import Annotated

import typer

from llmbridge.cli.errors import ExitCode, exit_code_of, fail, reporting, say
from llmbridge.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    Model,
    Response,
    RetryFor,
    Session,
    bridge_client,
    check_text,
    path_of,
    tell_if_not_serving,
    words_of,
)
from llmbridge.cli.printing import Printer, make_printer
from llmbridge.client import (
    Client,
    ClientError,
    Completion,
    FinishReason,
    HistoryLost,
    Position,
    StreamName,
    Subscription,
)

_HINTS: dict[type[ClientError], str] = {HistoryLost: "--from earliest reads what is left"}


class Start(StrEnum):
    """Where to begin."""

    BEGINNING = "beginning"
    EARLIEST = "earliest"
    LATEST = "latest"


def tail(
    session: Session,
    model: Model,
    response: Response = "",
    after: Annotated[
        str, typer.Option(callback=check_text, metavar="CURSOR", help="Go on after this cursor; empty: the beginning.")
    ] = "",
    start: Annotated[
        Start | None,
        typer.Option(
            "--from", help="The first record ever (the default), the earliest that is left, or only new ones."
        ),
    ] = None,
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    retry_for: RetryFor = 30.0,
) -> None:
    """Print a stream as it arrives, until its end.

    A stream that does not exist yet is waited for. A terminal shows text, and dimmed reasoning and tool calls; anything
    else gets exactly the text. With --json each line is a SubscribeResponse. How the stream ended, and the cursor to go
    on from, go to standard error. A broken connection is resumed, nothing lost or repeated.

    Exit codes: 0 a good end, 4 no answer from the bridge, 7 history is lost, 8 the response ended with an error, 9 it
    was cancelled, 130 Ctrl-C.
    """
    if after and start is not None:
        raise fail("give either --after or --from, not both", ExitCode.USAGE)
    printer = make_printer(as_json=as_json)
    stream = StreamName(session, model, response)
    with reporting(address, _HINTS):
        code = asyncio.run(_run(stream, after, start, printer, address, retry_for))
    raise typer.Exit(code)


async def _run(
    stream: StreamName, after: str, start: Start | None, printer: Printer, address: str, retry_for: float
) -> ExitCode:
    position = None if start is None else Position[start.name]
    async with bridge_client(address, retry_for) as client:
        await tell_if_not_serving(client, retry_for)
        subscription = client.subscribe(stream, after_cursor=after, position=position, retry_for=retry_for)
        async with subscription:
            await _print_all(subscription, printer)
        return await _tell_end(client, subscription, printer)


async def _print_all(subscription: Subscription, printer: Printer) -> None:
    try:
        async for message in subscription:
            printer.show(message)
    except (ClientError, asyncio.CancelledError) as error:
        printer.close()
        place = f"--after {subscription.cursor} goes on from here"
        if not subscription.cursor:
            place = "nothing had arrived"
        if isinstance(error, asyncio.CancelledError):
            say(f"interrupted; {place}")
        elif not isinstance(error, HistoryLost):
            error.add_note(place)
        raise
    printer.close()


async def _tell_end(client: Client, subscription: Subscription, printer: Printer) -> ExitCode:
    completion = subscription.completion
    if completion is None:
        # The cursor was the completion's own: there was nothing to print, but how it ended is still to be told.
        info = await client.streams.get(subscription.stream)
        completion = Completion(finish_reason=info.finish_reason)
    finish_reason = FinishReason.of(completion)
    parts = [f"{path_of(subscription.stream)}: {words_of(finish_reason)}"]
    if completion.error_message:
        parts.append(completion.error_message)
    if printer.left_out:
        parts.append(f"tokens that are no text, left out: {printer.left_out} (--json shows them)")
    parts.append(f"cursor {subscription.cursor}")
    say("; ".join(parts))
    return exit_code_of(finish_reason)
