"""A network line that can be cut: a relay of TCP connections on the loopback, for `llmbridge demo`.

It carries bytes between those who connect to it and one target, and knows nothing of what they mean.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["CuttableLine", "cuttable_line"]

_PIECE_BYTES = 65536
# SO_LINGER on with no time: closing sends a reset, as a real fault does, and what was under way is lost.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class CuttableLine:
    """Carries connections to a target until it is cut; then it is down for a while, and carries new ones after that."""

    def __init__(self, group: asyncio.TaskGroup, host: str, port: int) -> None:
        self.connected_at: list[float] = []
        """When each connection began to be carried, by time.monotonic()."""
        self.port = 0
        """Where to connect to, on 127.0.0.1."""
        self._group = group
        self._target = (host, port)
        self._ends: set[asyncio.StreamWriter] = set()
        self._down_until = 0.0

    def cut(self, down_seconds: float) -> None:
        """Resets all connections, in both directions, and every new one for `down_seconds` from now."""
        self._down_until = time.monotonic() + down_seconds
        for end in tuple(self._ends):
            _reset(end)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if time.monotonic() < self._down_until:
            _reset(writer)
        else:
            self._group.create_task(self._carry(reader, writer))

    async def _carry(self, near: asyncio.StreamReader, near_end: asyncio.StreamWriter) -> None:
        try:
            far, far_end = await asyncio.open_connection(*self._target)
        except OSError:
            # What the target's absence looks like on a real line, too.
            _reset(near_end)
            return
        self.connected_at.append(time.monotonic())
        ends = {near_end, far_end}
        self._ends |= ends
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_copy(near, far_end))
                directions.create_task(_copy(far, near_end))
        finally:
            self._ends -= ends
            for end in ends:
                end.close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while piece := await source.read(_PIECE_BYTES):
            sink.write(piece)
            await sink.drain()
    except ConnectionError:
        # One end is gone, by a cut or by itself: the other learns it by the close below.
        pass
    finally:
        sink.close()


def _reset(end: asyncio.StreamWriter) -> None:
    # One that is closing may have given its socket back already.
    if not end.is_closing():
        connection: socket.socket = end.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    end.transport.abort()


@asynccontextmanager
async def cuttable_line(host: str, port: int) -> AsyncIterator[CuttableLine]:
    """Opens a line to `host`:`port` on a free port of 127.0.0.1, and resets what it still carries at the end."""
    async with asyncio.TaskGroup() as group:
        line = CuttableLine(group, host, port)
        server = await asyncio.start_server(line._accept, "127.0.0.1", 0)
        line.port = server.sockets[0].getsockname()[1]
        try:
            yield line
        finally:
            server.close()
            line.cut(0)
