"""The HTTP gateway for a bridge, in its process or in one of its own: made of the settings, loaded when it is wanted.

Knows nothing of what the gateway serves.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from llmbridge.gateway.instance import Instance
from llmbridge.server.run_directory import socket_directory
from llmbridge.server.signals import stopped_by_signals
from llmbridge.settings import Settings

__all__ = ["DEFAULT_HTTP_PORT", "HttpCannotStart", "http_gateway", "private_socket", "run_gateway"]

DEFAULT_HTTP_PORT = 8080
"""Of a gateway that is a process of its own."""

logger = logging.getLogger(__name__)


class HttpCannotStart(Exception):
    """The gateway can't start; the message says what to change."""


@asynccontextmanager
async def private_socket() -> AsyncIterator[str]:
    """Give the address of a Unix socket that only this user can reach, for the gateway in the bridge's own process."""
    with socket_directory("bridge.sock") as directory:
        yield f"unix:{directory / 'bridge.sock'}"


@asynccontextmanager
async def http_gateway(
    settings: Settings, target: str, drain_timeout_ms: int, instance: Instance | None = None
) -> AsyncIterator[int]:
    """Serve HTTP for the bridge at `target` while the block lasts, and give the port; at its end drain.

    `instance`: what the bridge's workers know together; without it the gateway is a process of its own. Raises
    HttpCannotStart.
    """
    try:
        from llmbridge.gateway.access import OpenAccess
        from llmbridge.gateway.context import Gateway
        from llmbridge.gateway.link import Link
        from llmbridge.gateway.options import Options
        from llmbridge.gateway.server import listen, serving
        from llmbridge.gateway.upstream import UpstreamNotInstalled, check_installed
    except ImportError as error:
        raise HttpCannotStart(
            f"the HTTP gateway needs the package {error.name!r}; run: pip install 'llmbridge[gateway]'"
        ) from None
    options = Options(
        http_host=settings.http_host,
        http_port=DEFAULT_HTTP_PORT if settings.http_port is None else settings.http_port,
        shares_port=instance is not None and instance.workers > 1,
        http_cors_origins=settings.cors_origins,
        http_max_body_bytes=settings.http_max_body_bytes,
        http_max_header_bytes=settings.http_max_header_bytes,
        http_max_connections=settings.http_max_connections,
        drain_timeout_ms=drain_timeout_ms,
        upstream_url=settings.upstream_url,
        upstream_key=settings.upstream_key.get_secret_value(),
        upstream_model=settings.upstream_model,
        max_chats=settings.max_chats,
    )
    if options.upstream_url:
        try:
            check_installed()
        except UpstreamNotInstalled as error:
            raise HttpCannotStart(str(error)) from None
    try:
        listener = listen(options)
    except OSError as error:
        raise HttpCannotStart(f"LLMBRIDGE_HTTP_HOST, LLMBRIDGE_HTTP_PORT: {error}") from None
    async with Link.open(target) as link:
        gateway = Gateway(link, options, OpenAccess(), instance or Instance())
        async with serving(gateway, listener) as port:
            yield port


async def run_gateway(settings: Settings, target: str, announce: Callable[[int], None]) -> None:
    """Serve HTTP for the bridge at `target` until SIGTERM or SIGINT, then drain. `announce` gets the port.

    Raises HttpCannotStart; ValueError for a target that is none.
    """
    with stopped_by_signals() as (stop, started):
        async with http_gateway(settings, target, settings.drain_timeout_ms) as port:
            started()
            announce(port)
            await stop.wait()
            logger.info("draining")
