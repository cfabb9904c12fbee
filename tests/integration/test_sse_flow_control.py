"""A browser that does not read is held by backpressure all the way to the bridge, and holds nobody else."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmbridge.v1.bridge_service_pb2 import ProduceRequest
from llmbridge.v1.connection_service_pb2 import CONNECTION_STATE_HELD, ListConnectionsRequest
from llmbridge.v1.token_pb2 import Token
from tests.support.calls import PATIENCE_SECONDS, ref, until
from tests.support.event_stream import EventStream, events_path, reading
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway

TOKEN_BYTES = 32_768
TOKENS_PER_REQUEST = 7
REQUESTS = 150
TOKENS = TOKENS_PER_REQUEST * REQUESTS
"""34 MB: more than all buffers on the way together."""


@asynccontextmanager
async def stalled(gateway: RunningGateway, path: str) -> AsyncIterator[socket.socket]:
    """A client that sends its request and reads nothing until it is told to; small buffers of its own."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", gateway.port))
        await loop.sock_sendall(client, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        yield client


async def fill(bridge: RunningBridge) -> None:
    tokens = [Token(text="x" * TOKEN_BYTES)] * TOKENS_PER_REQUEST
    for number in range(REQUESTS):
        await bridge.bridge.Produce(
            ProduceRequest(stream=ref("big"), tokens=tokens, first_sequence=1 + number * TOKENS_PER_REQUEST)
        )


async def held(bridge: RunningBridge) -> str:
    """Wait until the bridge says that the reader is held, and its place stays; give that."""
    cursor = ""
    async with asyncio.timeout(20):
        while True:
            found = await bridge.connections.ListConnections(ListConnectionsRequest(session_id="s"))
            for connection in found.connections:
                if connection.state == CONNECTION_STATE_HELD and connection.cursor == cursor:
                    assert connection.lag > TOKENS / 2, "too much was on its way"
                    return cursor
                cursor = connection.cursor
            await asyncio.sleep(0.3)


async def test_a_browser_that_does_not_read_is_held(bridge: RunningBridge, gateway: RunningGateway) -> None:
    await fill(bridge)
    async with stalled(gateway, events_path("big")) as client:
        await held(bridge)
        # Through the same gateway, and the same connection to the bridge.
        async with reading(gateway.http, events_path("other", session="t")) as other:
            await bridge.bridge.Produce(ProduceRequest(stream=ref("other", session="t"), tokens=[Token(text="hello")]))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await other.until(lambda: other.text == "hello")
        # When it reads again, nothing is missing.
        got = EventStream()
        async with asyncio.timeout(40):
            got.feed(dechunked(await received(client, f'"sequence":{TOKENS},"role"'.encode())))
        assert got.sequences == list(range(1, TOKENS + 1))


async def received(client: socket.socket, marker: bytes) -> bytes:
    """Read until a marker has come, and then the end of its event."""
    loop, pieces, tail = asyncio.get_running_loop(), [], b""
    while marker not in tail or not tail.endswith(b"\n\n\r\n"):
        piece = await loop.sock_recv(client, 1 << 20)
        assert piece, "the connection ended"
        pieces.append(piece)
        tail = (tail + piece)[-2 * TOKENS_PER_REQUEST * TOKEN_BYTES :]
    return b"".join(pieces)


def dechunked(response: bytes) -> bytes:
    """Take a response's whole chunks out of it."""
    at, pieces = response.index(b"\r\n\r\n") + 4, []
    while at < len(response):
        end = response.index(b"\r\n", at)
        size = int(response[at:end], 16)
        pieces.append(response[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(pieces)


async def test_a_stalled_tab_that_is_closed_frees_everything(bridge: RunningBridge, gateway: RunningGateway) -> None:
    await fill(bridge)
    async with stalled(gateway, events_path("big")):
        await held(bridge)
    await until(lambda: gateway.core.link.reads == 0 and bridge.core.idle)
