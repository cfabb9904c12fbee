"""What the proxy does to connections is what its commands say."""

import asyncio
import itertools
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.support.calls import until
from tests.support.proxy import Proxy, proxy_to
from tests.support.tcp_server import tcp_server

SOON = 20.0


@dataclass
class Far:
    """The other end: sends everything back, and notes what came and how each connection ended."""

    pieces: list[bytes] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.pieces.append(data)
                writer.write(data)
                await writer.drain()
            self.ends.append("FIN")
        except ConnectionResetError:
            self.ends.append("RST")


@dataclass
class Near:
    """A client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        async with asyncio.timeout(SOON):
            return await self.reader.readexactly(len(data))

    async def end(self) -> str:
        """Wait for the connection's end and tell how it was told."""
        async with asyncio.timeout(SOON):
            try:
                return "FIN" if await self.reader.read(1) == b"" else "data"
            except ConnectionResetError:
                return "RST"


@dataclass
class Wire:
    proxy: Proxy
    far: Far

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Near]:
        near = Near(*await asyncio.open_connection("127.0.0.1", self.proxy.port))
        try:
            yield near
        finally:
            near.writer.transport.abort()


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    far = Far()
    async with tcp_server(far.handle) as port, proxy_to(("127.0.0.1", port)) as proxy:
        yield Wire(proxy, far)
    assert proxy.connections == 0


async def test_it_passes_everything_on(wire: Wire) -> None:
    data = bytes(itertools.islice(itertools.cycle(range(256)), 1_000_000))
    async with wire.connected() as near:
        assert await near.ask(data) == data
        near.writer.write_eof()
        assert await near.end() == "FIN"
    assert wire.far.ends == ["FIN"]


@pytest.mark.parametrize("how", ["RST", "FIN"])
async def test_a_cut_is_told_on_both_sides_and_the_next_connection_works(wire: Wire, how: str) -> None:
    async with wire.connected() as near, wire.connected() as other:
        await near.ask(b"a")
        await other.ask(b"b")
        if how == "RST":
            wire.proxy.reset_all()
        else:
            wire.proxy.finish_all()
        assert [await near.end(), await other.end()] == [how, how]
        await until(lambda: wire.far.ends == [how, how])
        async with wire.connected() as again:
            assert await again.ask(b"c") == b"c"


async def test_it_refuses_and_accepts_again_on_the_same_port(wire: Wire) -> None:
    async with wire.connected() as near:
        await near.ask(b"a")
        wire.proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            async with wire.connected():
                pass
        assert await near.ask(b"b") == b"b", "an open connection stays"
    await wire.proxy.accept()
    async with wire.connected() as again:
        assert await again.ask(b"c") == b"c"


async def test_a_delay_is_kept_and_ends(wire: Wire) -> None:
    clock = asyncio.get_running_loop().time
    async with wire.connected() as near:
        await near.ask(b"a")
        wire.proxy.delay(0.1)
        began = clock()
        await near.ask(b"b")
        assert clock() - began >= 0.2, "there and back"
        wire.proxy.delay(0.0)
        took = []
        for _ in range(5):
            began = clock()
            await near.ask(b"c")
            took.append(clock() - began)
        # On a busy machine not each time.
        assert min(took) < 0.1


async def test_a_half_open_connection_says_nothing_any_more_and_new_ones_do(wire: Wire) -> None:
    async with wire.connected() as near:
        await near.ask(b"a")
        wire.proxy.half_open()
        near.writer.write(b"lost")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await near.reader.read(1)
        async with wire.connected() as again:
            assert await again.ask(b"b") == b"b"
        near.writer.write_eof()
        await until(lambda: len(wire.far.ends) >= 1 and wire.proxy.connections == 1)
        assert len(wire.far.ends) == 1, "only the other one's end was told"
    assert wire.far.pieces == [b"a", b"b"]


async def test_a_trickle_is_byte_by_byte_and_ends_in_the_middle(wire: Wire) -> None:
    async with wire.connected() as near:
        wire.proxy.trickle(pause_seconds=0.005)
        assert await near.ask(b"0123456789") == b"0123456789"
        assert max(map(len, wire.far.pieces)) == 1
        wire.proxy.trickle(pause_seconds=60)
        near.writer.write(b"abc" * 1000)
        await until(lambda: wire.far.pieces[-1] == b"a")
        wire.proxy.flow()
        async with asyncio.timeout(SOON):
            assert await near.reader.readexactly(3000) == b"abc" * 1000


async def test_a_target_that_does_not_listen_is_a_reset(wire: Wire) -> None:
    async with tcp_server(wire.far.handle) as closed:
        pass
    wire.proxy.target = ("127.0.0.1", closed)
    async with wire.connected() as near:
        assert await near.end() == "RST"


async def test_the_far_sides_reset_is_passed_on(wire: Wire) -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        linger_none = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
        writer.transport.abort()

    async with tcp_server(slam) as port:
        wire.proxy.target = ("127.0.0.1", port)
        async with wire.connected() as near:
            near.writer.write(b"x")
            assert await near.end() == "RST"
