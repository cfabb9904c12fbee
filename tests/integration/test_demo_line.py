"""The line that the demo cuts: real connections, really reset."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llmbridge.cli.demo_line import CuttableLine, cuttable_line
from tests.support.tcp_server import tcp_server


@asynccontextmanager
async def echo_line() -> AsyncIterator[CuttableLine]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1024):
            writer.write(piece)

    async with asyncio.timeout(10), tcp_server(echo) as port, cuttable_line("127.0.0.1", port) as line:
        yield line


async def talk(line: CuttableLine) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    return reader, writer


async def test_bytes_go_both_ways_on_many_connections() -> None:
    async with echo_line() as line:
        pairs = [await talk(line) for _ in range(3)]
        assert len(line.connected_at) == 3
        for _, writer in pairs:
            writer.close()


async def test_a_cut_resets_every_connection() -> None:
    async with echo_line() as line:
        pairs = [await talk(line) for _ in range(2)]
        line.cut(0)
        for reader, writer in pairs:
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()


async def test_it_is_down_after_a_cut_and_then_carries_again() -> None:
    async with echo_line() as line:
        _, first = await talk(line)
        line.cut(0.3)
        first.close()
        refused = 0
        while True:
            try:
                _, writer = await talk(line)
            except (ConnectionError, AssertionError):
                refused += 1
                await asyncio.sleep(0.02)
            else:
                break
        assert refused > 0
        assert len(line.connected_at) == 2
        assert line.connected_at[1] - line.connected_at[0] >= 0.3
        writer.close()


async def test_the_target_sees_the_end_when_a_reader_leaves() -> None:
    ended = asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()

    async with asyncio.timeout(10), tcp_server(wait_for_end) as port, cuttable_line("127.0.0.1", port) as line:
        _, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.close()
        await ended.wait()


async def test_nobody_at_the_other_end_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    async with asyncio.timeout(10), cuttable_line("127.0.0.1", port) as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert line.connected_at == []
        writer.close()


async def test_connections_left_open_do_not_keep_it_open() -> None:
    async with echo_line() as line:
        reader, writer = await talk(line)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_cut_finds_no_fault_with_connections_that_are_just_closing() -> None:
    async with echo_line() as line:
        _, writer = await talk(line)
        writer.close()
        # As many turns of the event loop as it takes for every step of the closing to have a cut in between.
        for _ in range(50):
            line.cut(0)
            await asyncio.sleep(0)
