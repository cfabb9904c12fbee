"""`llmbridge gateway`: serve a bridge over HTTP, as a process of its own."""

import asyncio
import logging
from typing import Annotated

import typer

from llmbridge.cli.options import DEFAULT_ADDRESS, check_address
from llmbridge.cli.serve import EXIT_BAD_SETTING, EXIT_CANNOT_START, fail, http_url, loop_factory
from llmbridge.cli.standard_streams import announce
from llmbridge.server.http import HttpCannotStart, run_gateway
from llmbridge.settings import Settings, SettingsError


def gateway(
    target: Annotated[
        str,
        typer.Option(
            "--target",
            envvar="LLMBRIDGE_ADDRESS",
            callback=check_address,
            help="The bridge: host:port, or several ip:port divided by commas.",
        ),
    ] = DEFAULT_ADDRESS,
    http_port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one [env LLMBRIDGE_HTTP_PORT, 8080].")
    ] = None,
    http_host: Annotated[
        str | None, typer.Option(help="Address to listen on [env LLMBRIDGE_HTTP_HOST, 127.0.0.1].")
    ] = None,
) -> None:
    """Serve a bridge over HTTP until SIGTERM or Ctrl-C.

    All other settings come from the environment; docs/operations.md lists them. The first line on standard output says
    where it listens. It starts without its bridge too, and answers 503 until that is there. Exit codes: 2 for a bad
    setting, 3 when it can't start.
    """
    try:
        settings = Settings.load(http_host=http_host, http_port=http_port)
    except SettingsError as error:
        raise fail(str(error), EXIT_BAD_SETTING) from None
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def announce_http(port: int) -> None:
        announce(f"llmbridge serves HTTP at {http_url(settings.http_host, port)}")

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run_gateway(settings, target, announce_http))
    except HttpCannotStart as error:
        raise fail(str(error), EXIT_CANNOT_START) from None
