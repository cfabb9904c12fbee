"""A far end that says what a test wants to have said, where Redis would be; and tests that run on either event loop."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from llmbridge.log.connections import Connector
from tests.support.tcp_server import tcp_server

PATIENCE_SECONDS = 20.0


def on_both_loops(test: Callable[[], Awaitable[None]]) -> Callable[..., None]:
    """Run a test on asyncio's own event loop and on the bridge's: each meets the end of a connection in its own way."""

    @pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await test()

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(bounded())

    run.__doc__ = test.__doc__
    return run


class Caller:
    """One connection that the bridge has made, as the far end sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.left = asyncio.Event()

    async def say(self, *pieces: bytes) -> None:
        """Send pieces, each of which arrives by itself."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            # Loopback hands over at once; the other side runs in this very loop.
            for _ in range(5):
                await asyncio.sleep(0)

    async def hear(self, size: int) -> bytes:
        """Take so many bytes."""
        return await self._reader.readexactly(size)

    async def hear_end(self) -> bytes:
        """Take what comes until the other side has closed or reset the connection."""
        try:
            return await self._reader.read()
        except ConnectionError:
            return b""

    def hang_up(self) -> None:
        """Close the connection."""
        self._writer.close()
        self.left.set()

    def reset(self) -> None:
        """Have the other side meet a reset."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self.left.set()


class Peer:
    """Answers `greeting` to CLIENT SETNAME, the only thing that is said when a connection is made."""

    def __init__(self) -> None:
        self.greeting = b"+OK\r\n"
        self.port = 0
        self.all_callers: list[Caller] = []
        self._callers: asyncio.Queue[Caller] = asyncio.Queue()

    def connector(self, timeout_seconds: float = PATIENCE_SECONDS) -> Connector:
        """Make what connects to it."""
        return Connector(f"redis://127.0.0.1:{self.port}", timeout_seconds)

    async def caller(self) -> Caller:
        """Wait for the next connection."""
        return await self._callers.get()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        await reader.readuntil(b"\r\nllmbridge-")
        await reader.readuntil(b"\r\n")
        writer.write(self.greeting)
        caller = Caller(reader, writer)
        self.all_callers.append(caller)
        self._callers.put_nowait(caller)
        await caller.left.wait()


@asynccontextmanager
async def redis_peer() -> AsyncIterator[Peer]:
    """Run one; at the end whoever is still connected is hung up on."""
    peer = Peer()
    async with tcp_server(peer.serve) as peer.port:
        try:
            yield peer
        finally:
            for caller in peer.all_callers:
                caller.left.set()
