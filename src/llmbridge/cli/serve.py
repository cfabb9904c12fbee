"""`llmbridge serve`: run a bridge."""

import asyncio
import logging
import sys
from typing import Annotated

import typer

from llmbridge.log.partitions import PartitionMismatch
from llmbridge.server.bridge import CannotStart
from llmbridge.server.embedded_redis import EmbeddedRedisError
from llmbridge.server.run import run
from llmbridge.settings import Settings, SettingsError
from llmbridge.telemetry.tracing import TracingNotInstalled

EXIT_BAD_SETTING = 2
EXIT_CANNOT_START = 3

_CANNOT_START = (CannotStart, EmbeddedRedisError, PartitionMismatch, TracingNotInstalled)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [env LLMBRIDGE_HOST, 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [env LLMBRIDGE_PORT, 50051].")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis to use [env REDIS_URL]; without, an own one.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Where the embedded Redis keeps its data.")] = None,
) -> None:
    """Run a bridge until SIGTERM or Ctrl-C.

    All other settings come from the environment; docs/operations.md lists them. The first line on standard output says
    where it listens. Exit codes: 2 for a bad setting, 3 when it can't start.
    """
    try:
        settings = Settings.load(host=host, port=port, redis_url=redis_url, data_dir=data_dir)
    except SettingsError as error:
        raise _fail(str(error), EXIT_BAD_SETTING) from None
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def announce(port: int) -> None:
        print(f"llmbridge is listening on {settings.host}:{port}", flush=True)

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run(settings, announce))
    except* _CANNOT_START as group:
        raise _fail(str(_first(group)), EXIT_CANNOT_START) from None


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.Loop


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(message: str, code: int) -> typer.Exit:
    typer.echo(f"llmbridge: {message}", err=True)
    return typer.Exit(code)
