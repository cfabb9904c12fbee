"""`llmbridge serve`: run a bridge."""

import asyncio
import logging
import sys
from typing import Annotated

import typer

from llmbridge.log.partitions import PartitionMismatch
from llmbridge.server.bridge import CannotStart
from llmbridge.server.embedded_redis import EmbeddedRedisError
from llmbridge.server.http import HttpCannotStart
from llmbridge.server.run import run
from llmbridge.settings import Settings, SettingsError
from llmbridge.telemetry.tracing import TracingNotInstalled

EXIT_BAD_SETTING = 2
EXIT_CANNOT_START = 3

_CANNOT_START = (CannotStart, EmbeddedRedisError, HttpCannotStart, PartitionMismatch, TracingNotInstalled)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [env LLMBRIDGE_HOST, 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [env LLMBRIDGE_PORT, 50051].")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis to use [env REDIS_URL]; without, an own one.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Where the embedded Redis keeps its data.")] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Serve HTTP too, on this port; 0 takes a free one [env LLMBRIDGE_HTTP_PORT].")
    ] = None,
) -> None:
    """Run a bridge until SIGTERM or Ctrl-C.

    All other settings come from the environment; docs/operations.md lists them. The first line on standard output says
    where it listens, the second where it serves HTTP, if so. Exit codes: 2 for a bad setting, 3 when it can't start.
    """
    try:
        settings = Settings.load(host=host, port=port, redis_url=redis_url, data_dir=data_dir, http_port=http_port)
    except SettingsError as error:
        raise fail(str(error), EXIT_BAD_SETTING) from None
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def announce(port: int) -> None:
        print(f"llmbridge is listening on {settings.host}:{port}", flush=True)

    def announce_http(port: int) -> None:
        print(f"llmbridge serves HTTP at {http_url(settings.http_host, port)}", flush=True)

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run(settings, announce, announce_http))
    except* _CANNOT_START as group:
        raise fail(str(_first(group)), EXIT_CANNOT_START) from None


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """The event loop of servers; None: Python's own."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.Loop


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def fail(message: str, code: int) -> typer.Exit:
    """Tell why a server does not start; raise what this gives."""
    typer.echo(f"llmbridge: {message}", err=True)
    return typer.Exit(code)


def http_url(host: str, port: int) -> str:
    """Write an address as people open it."""
    return f"http://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"http://{host}:{port}"
