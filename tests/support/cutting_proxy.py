"""A TCP proxy on loopback that can cut its connections, refuse new ones, and change where they lead."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.support.tcp_server import tcp_server

_CHUNK_BYTES = 65_536
# SO_LINGER with no time: closing throws away what is unsent and answers with RST.
_LINGER_NONE = struct.pack("ii", 1, 0)


class CuttingProxy:
    """Passes everything on to 127.0.0.1:`target`; while `target` is 0, connections are reset as soon as they come."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.accepted = 0
        """How many connections came, ever."""
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset what is open, on both sides."""
        for writer in self._writers:
            _reset(writer)

    async def carry(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if not self.target:
            _reset(near)
            return
        far_reader, far = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {near, far}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far))
                group.create_task(_pump(far_reader, near))
        finally:
            self._writers -= {near, far}
            far.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    writer.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(_CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
    # One side's end is the connection's: HTTP needs no half-open ones.
    sink.close()


@asynccontextmanager
async def cutting_proxy(target: int) -> AsyncIterator[CuttingProxy]:
    proxy = CuttingProxy(target)
    async with tcp_server(proxy.carry) as proxy.port:
        try:
            yield proxy
        finally:
            proxy.cut()
