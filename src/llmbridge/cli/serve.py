"""`llmbridge serve`: run a bridge, in this process or by workers of its own."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from llmbridge.cli.standard_streams import announce
from llmbridge.settings import Settings, SettingsError

EXIT_BAD_SETTING = 2
EXIT_CANNOT_START = 3

_Announce = Callable[[int], None]


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [env LLMBRIDGE_HOST, 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [env LLMBRIDGE_PORT, 50051].")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis to use [env REDIS_URL]; without, an own one.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Where the embedded Redis keeps its data.")] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Serve HTTP too, on this port; 0 takes a free one [env LLMBRIDGE_HTTP_PORT].")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share the port, about one per core [env LLMBRIDGE_WORKERS, 1].")
    ] = None,
) -> None:
    """Run a bridge until SIGTERM or Ctrl-C.

    All other settings come from the environment; docs/operations.md lists them. The first line on standard output says
    where it listens, the second where it serves HTTP, if so. Exit codes: 2 for a bad setting, 3 when it can't start.
    """
    try:
        settings = Settings.load(
            host=host, port=port, redis_url=redis_url, data_dir=data_dir, http_port=http_port, workers=workers
        )
    except SettingsError as error:
        raise fail(str(error), EXIT_BAD_SETTING) from None
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def announce_grpc(port: int) -> None:
        announce(f"llmbridge is listening on {settings.host}:{port}")

    def announce_http(port: int) -> None:
        announce(f"llmbridge serves HTTP at {http_url(settings.http_host, port)}")

    (_by_workers if settings.workers > 1 else _alone)(settings, announce_grpc, announce_http)


def _alone(settings: Settings, announce_grpc: _Announce, announce_http: _Announce) -> None:
    from llmbridge.server.run import run
    from llmbridge.server.worker import CANNOT_START

    _run(run(settings, announce_grpc, announce_http), CANNOT_START)


def _by_workers(settings: Settings, announce_grpc: _Announce, announce_http: _Announce) -> None:
    # Not together with the above, which loads all that workers need and a supervisor does not.
    from llmbridge.server.redis_binary import EmbeddedRedisError
    from llmbridge.server.starting import CannotStart
    from llmbridge.server.supervisor import supervise

    command = [sys.executable, "-m", "llmbridge.cli.worker"]
    _run(supervise(settings, command, announce_grpc, announce_http), (CannotStart, EmbeddedRedisError))


def _run(serving: Coroutine[Any, Any, None], cannot_start: tuple[type[Exception], ...]) -> None:
    from llmbridge.server.starting import first_of

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serving)
    except* cannot_start as group:
        raise fail(str(first_of(group)), EXIT_CANNOT_START) from None


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """The event loop of servers; None: Python's own."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.Loop


def fail(message: str, code: int) -> typer.Exit:
    """Tell why a server does not start; raise what this gives."""
    typer.echo(f"llmbridge: {message}", err=True)
    return typer.Exit(code)


def http_url(host: str, port: int) -> str:
    """Write an address as people open it."""
    return f"http://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"http://{host}:{port}"
