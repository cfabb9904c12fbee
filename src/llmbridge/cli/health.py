"""`llmbridge health`: ask a bridge whether it serves. Starts fast, as containers' health checks run it all the time."""

from typing import Annotated

import typer

from llmbridge.cli.errors import ExitCode, quiet_when_unread
from llmbridge.cli.options import DEFAULT_ADDRESS, Address, Timeout, ask_bridge, check_text


def health(
    service: Annotated[
        str, typer.Option(callback=check_text, help="Of one service, as llmbridge.v1.BridgeService; empty: of all.")
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 3.0,
) -> None:
    """Ask a bridge whether it serves.

    Prints SERVING or NOT_SERVING. It does not serve while it can't reach Redis and while it is shutting down. Exit
    codes: 0 serving, 1 not serving, 4 no answer, 5 no such service.
    """
    serving = ask_bridge(address, timeout, lambda client: client.is_serving(service))
    with quiet_when_unread():
        typer.echo("SERVING" if serving else "NOT_SERVING")
    raise typer.Exit(ExitCode.DONE if serving else ExitCode.FAILED)
