"""The HTTP gateway inside the test's event loop, on loopback, in front of a bridge."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from llmbridge.gateway.access import Access, OpenAccess
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.link import Link
from llmbridge.gateway.options import Options
from llmbridge.gateway.server import serving
from tests.support.calls import PATIENCE_SECONDS


@dataclass
class RunningGateway:
    """A gateway that serves, with an HTTP client for it."""

    url: str
    port: int
    core: Gateway
    http: httpx.AsyncClient


@asynccontextmanager
async def running_gateway(
    target: str, *, access: Access | None = None, **options: Any
) -> AsyncIterator[RunningGateway]:
    """Serve a bridge's streams over HTTP; at the end drain, and check that no read was left."""
    async with Link.open(target) as link:
        gateway = Gateway(link, Options(http_port=0, **options), access or OpenAccess())
        async with serving(gateway) as port:
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
                yield RunningGateway(url, port, gateway, http)
        assert link.reads == 0, "reads were left"


@asynccontextmanager
async def connection(gateway: RunningGateway) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection to it, for what no HTTP client would send; the block has limited time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield reader, writer
    finally:
        writer.close()
