"""A TCP proxy of our own that does to connections what networks do. Commanded from the test, in the test's event loop.

Knows bytes and connections, and nothing of what is said over them.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tests.support.ports import hold_port

Address = tuple[str, int]

NOWHERE: Address = ("127.0.0.1", 0)
"""A target that never listens: connections are accepted and then reset."""

_CHUNK_BYTES = 65_536
_CONNECT_SECONDS = 5.0
# SO_LINGER with no time: closing throws away what is unsent and answers with RST.
_LINGER_NONE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Link:
    """One connection and its counterpart."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    swallowing: bool = False
    cut: bool = False

    def reset(self) -> None:
        for writer in self.writers():
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            writer.transport.abort()
        self.cut = True

    def finish(self) -> None:
        for writer in self.writers():
            writer.close()
        self.cut = True

    def writers(self) -> list[asyncio.StreamWriter]:
        """The near side, and the far one once there is one."""
        return [writer for writer in (self.near, self.far) if writer is not None]


class Proxy:
    """Listens on a port of 127.0.0.1 that stays the same, and passes everything on to `target`.

    `target` may be changed at any time and counts for the connections that come afterwards. Where the target does not
    listen, the connection is accepted and then reset.
    """

    def __init__(self, target: Address) -> None:
        self.target = target
        self.port = 0
        self.accepted = 0
        """How many connections came, ever."""
        self._delay = 0.0
        self._trickle_pause: float | None = None
        self._calm = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._held: socket.socket | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens, for what speaks HTTP."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    async def start(self) -> None:
        self._held = hold_port()
        self.port = self._held.getsockname()[1]
        await self.accept()

    async def stop(self) -> None:
        """Reset what is open and wait until every connection has been dealt with. Raises what went wrong in one."""
        self.refuse()
        self.reset_all()
        if self._held is not None:
            self._held.close()
        tasks = list(self._tasks)
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks)

    async def accept(self) -> None:
        """Take connections (again), on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port, reuse_address=True)

    def refuse(self) -> None:
        """Have the kernel refuse new connections. Those that are open stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def reset_all(self) -> None:
        """Cut every connection on both sides by RST; what is on its way is lost."""
        for link in self._links:
            link.reset()

    def finish_all(self) -> None:
        """Cut every connection on both sides by FIN, behind what was passed on so far."""
        for link in self._links:
            link.finish()

    def half_open(self) -> None:
        """Swallow silently, from now on and for good, whatever the open connections say; new ones are not touched.

        Neither side is told anything, not even that the other has hung up.
        """
        for link in self._links:
            link.swallowing = True

    def delay(self, seconds: float) -> None:
        """Pass everything on that much later, in both directions; 0 ends it."""
        self._delay = seconds

    def trickle(self, pause_seconds: float = 0.0) -> None:
        """Pass everything on byte by byte, each in a segment of its own, with a pause between."""
        self._trickle_pause = pause_seconds
        self._calm.clear()

    def flow(self) -> None:
        """End a trickle."""
        self._trickle_pause = None
        self._calm.set()

    async def heal(self) -> None:
        """Be a good network again. Connections that are half-open stay so."""
        self.delay(0.0)
        self.flow()
        await self.accept()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        # One that failed is kept, for `stop` to raise.
        if not task.cancelled() and task.exception() is None:
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(near)
        self._links.add(link)
        try:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    far_reader, link.far = await asyncio.open_connection(*self.target)
            except OSError:
                link.reset()
                return
            if link.cut:
                link.reset()
                return
            for writer in link.writers():
                writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, link.far, link))
                group.create_task(self._pump(far_reader, near, link))
        finally:
            self._links.discard(link)
            link.finish()
            for writer in link.writers():
                with suppress(OSError):
                    await writer.wait_closed()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, link: _Link) -> None:
        """Pass on what comes, until an end or an error, which is passed on as well; unless all is swallowed."""
        try:
            while data := await source.read(_CHUNK_BYTES):
                if not link.swallowing and self._delay:
                    await asyncio.sleep(self._delay)
                if not link.swallowing:
                    await self._pass_on(data, sink)
            if not link.swallowing and sink.can_write_eof() and not sink.is_closing():
                sink.write_eof()
        except OSError:
            if not link.swallowing:
                link.reset()

    async def _pass_on(self, data: bytes, sink: asyncio.StreamWriter) -> None:
        done = 0
        while done < len(data):
            pause = self._trickle_pause
            end = len(data) if pause is None else done + 1
            sink.write(data[done:end])
            await sink.drain()
            done = end
            if pause is not None:
                await self._breathe(pause)

    async def _breathe(self, seconds: float) -> None:
        if not seconds:
            await asyncio.sleep(0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calm.wait()


@asynccontextmanager
async def proxy_to(target: Address) -> AsyncIterator[Proxy]:
    """Run a proxy for the time of the context."""
    proxy = Proxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


def local(port: int) -> Address:
    """Name a port of this machine."""
    return "127.0.0.1", port
