"""Serves the gateway's application over HTTP/1.1, in whatever event loop it is started, until it is told to stop.

Knows uvicorn; knows nothing of signals, which belong to the process.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import ceil

import uvicorn

from llmbridge.gateway.app import create_app
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.options import Options
from llmbridge.gateway.protocol import limited_protocol

BACKLOG = 2_048

logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell when it is done."""
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield


@asynccontextmanager
async def serving(gateway: Gateway, listener: socket.socket | None = None) -> AsyncIterator[int]:
    """Serve while the block lasts, and give the port; at its end drain.

    Draining: no new connections; readers end so that browsers reconnect, elsewhere or later; requests and the
    upstream's answers under way finish, for at most `drain_timeout_ms`.

    `listener` is made by `listen`, as here when it is not given, and closed at the end.
    """
    options = gateway.options
    listener = listener or listen(options)
    try:
        port: int = listener.getsockname()[1]
        config = uvicorn.Config(
            create_app(gateway),
            http=limited_protocol(options.http_max_connections, options.http_max_header_bytes),
            ws="websockets-sansio",
            ws_max_size=options.http_max_body_bytes,
            lifespan="on",
            # Logging is set up by the process; a line for every request would cost more than the request.
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, ceil(options.drain_timeout_ms / 1000)),
        )
        server = _Server(config)
        running = asyncio.create_task(server.serve([listener]), name="HTTP server")
        try:
            started = asyncio.create_task(server.ready.wait(), name="HTTP start")
            await asyncio.wait((started, running), return_when=asyncio.FIRST_COMPLETED)
            started.cancel()
            yield port
        finally:
            # Readers first: until they end, the server waits for them.
            gateway.link.drain()
            server.should_exit = True
            await running
            # Those that had to be cut have been cancelled by now.
            if server.server_state.tasks:
                await asyncio.wait(set(server.server_state.tasks))
    finally:
        listener.close()


def listen(options: Options) -> socket.socket:
    """Take the address. Raises OSError where it can't be had."""
    name, port = options.http_host.strip("[]"), options.http_port
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Connections inherit it. Without it, whatever is written in two pieces waits 40 ms for the other side's ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.shares_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((name, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(f"can't listen on {options.http_host}:{port}, is it taken? ({error})") from None
    return listener
