"""Runs several workers on one port: starts them, keeps them running, ends them, and holds what they share.

What they share is the port, the embedded Redis if there is one, and a directory for their private sockets. It serves
nothing itself and loads nothing that does, so that it stays small and has nothing to die of.
"""

import asyncio
import logging
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pydantic import SecretStr

from llmbridge.server.assignment import SOCKET_NAME, Assignment, Place
from llmbridge.server.ports import reserved
from llmbridge.server.run_directory import socket_directory
from llmbridge.server.signals import stopped_by_signals
from llmbridge.server.starting import CannotStart
from llmbridge.server.which_redis import which_redis
from llmbridge.server.workers import Worker
from llmbridge.settings import Settings

logger = logging.getLogger(__name__)


async def supervise(
    settings: Settings,
    command: Sequence[str],
    announce: Callable[[int], None],
    announce_http: Callable[[int], None] = lambda _: None,
) -> None:
    """Have `settings.workers` workers serve until SIGTERM or SIGINT, then drain them all.

    `command` starts a worker, which finds its assignment on standard input. `announce` gets the port and then
    `announce_http` that of HTTP as soon as all of them serve. SIGHUP starts them anew, one after the other, unless it
    tells that the terminal is gone. Raises CannotStart or EmbeddedRedisError.
    """
    with stopped_by_signals() as (stop, started), _hang_ups() as hang_up, ExitStack() as shared:
        port = _reserve(shared, "LLMBRIDGE_HOST, LLMBRIDGE_PORT", settings.host, settings.port)
        http_port = settings.http_port
        if http_port is not None:
            http_port = _reserve(shared, "LLMBRIDGE_HTTP_HOST, LLMBRIDGE_HTTP_PORT", settings.http_host, http_port)
        directory = shared.enter_context(socket_directory(SOCKET_NAME.format(settings.workers)))

        def begin() -> None:
            announce(port)
            if http_port is not None:
                announce_http(http_port)

        async with which_redis(settings, stop) as redis_url:
            started()
            told = settings.model_copy(update={"port": port, "http_port": http_port, "workers": 1})
            if settings.redis_location is None:
                told = told.model_copy(update={"redis_url": SecretStr(redis_url)})
            await _Workers(command, told, settings.workers, str(directory)).run(stop, hang_up, begin)


class _Workers:
    def __init__(self, command: Sequence[str], settings: Settings, count: int, directory: str) -> None:
        instance_id = secrets.token_hex(8)
        self._workers = [
            Worker(
                command,
                Assignment(Place(number, count, instance_id, directory), settings),
                self._tell,
            )
            for number in range(1, count + 1)
        ]
        self._told: int | None = None
        self._stopping = False

    async def run(self, stop: asyncio.Event, hang_up: asyncio.Event, begin: Callable[[], None]) -> None:
        """Keep them until `stop`; call `begin` when all serve."""
        async with asyncio.TaskGroup() as keeping:
            for worker in self._workers:
                keeping.create_task(worker.keep(), name=f"worker {worker.number}")
            serving = keeping.create_task(self._serve(hang_up, begin), name="workers")
            await stop.wait()
            serving.cancel()
            self._stopping = True
            logger.info("draining: %d workers", len(self._workers))
            for worker in self._workers:
                worker.stop()

    async def _serve(self, hang_up: asyncio.Event, begin: Callable[[], None]) -> None:
        # One that was ready may have died by now, and come back last.
        while missing := [worker for worker in self._workers if not worker.is_ready.is_set()]:
            await missing[0].is_ready.wait()
        begin()
        while True:
            await hang_up.wait()
            hang_up.clear()
            for worker in self._workers:
                logger.info("starting worker %d anew", worker.number)
                await worker.renew()

    def _tell(self) -> None:
        serving = sum(worker.is_serving for worker in self._workers)
        if serving != self._told and not self._stopping:
            level = logging.INFO if serving == len(self._workers) or self._told is None else logging.WARNING
            logger.log(level, "%d of %d workers serve", serving, len(self._workers))
            self._told = serving


def _reserve(shared: ExitStack, named: str, host: str, port: int) -> int:
    try:
        return shared.enter_context(reserved(host, port))
    except OSError as error:
        raise CannotStart(f"{named}: {error}") from None


@contextmanager
def _hang_ups() -> Iterator[asyncio.Event]:
    """Give an event that SIGHUP sets."""
    hang_up = asyncio.Event()
    # In a terminal it comes when that is closed, and ends the process; nohup has it ignored.
    in_terminal = sys.stdin is not None and sys.stdin.isatty()
    if in_terminal or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        yield hang_up
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, hang_up.set)
    try:
        yield hang_up
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
