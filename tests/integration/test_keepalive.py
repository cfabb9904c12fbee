"""How often clients may ask whether the bridge is still there: HTTP/2 pings, frame by frame."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.support.running_bridge import RunningBridge

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1
ENHANCE_YOUR_CALM = 11
INTERVAL_SECONDS = 5.0
MOST_TOO_EARLY = 2
"""So many pings that come too early are borne; the next one is not."""


def frame(kind: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + bytes(4) + payload


@dataclass
class Peer:
    """One end of an HTTP/2 connection without calls."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ping(self, times: int) -> int | None:
        """Send pings in one piece; returns the error code if the other side hangs up over them."""
        return await self.send(frame(PING, bytes(8)) * times)

    async def send(self, frames: bytes) -> int | None:
        """The same for any frames. That the settings behind them are acknowledged tells that they were all accepted."""
        self.writer.write(frames + frame(SETTINGS))
        async with asyncio.timeout(30):
            while True:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3]))
                if head[3] == GOAWAY:
                    return int.from_bytes(payload[4:8])
                if head[3:5] == bytes([SETTINGS, ACK]):
                    return None


@pytest.fixture
async def peer(bridge: RunningBridge) -> AsyncIterator[Peer]:
    host, _, port = bridge.address.rpartition(":")
    peer = Peer(*await asyncio.open_connection(host, int(port)))
    assert await peer.send(PREFACE) is None
    yield peer
    peer.writer.close()


async def test_pings_five_seconds_apart_are_welcome_even_without_calls(peer: Peer) -> None:
    assert await peer.ping(1 + MOST_TOO_EARLY) is None
    await asyncio.sleep(INTERVAL_SECONDS + 0.2)
    assert await peer.ping(1) is None


async def test_pings_without_a_pause_are_not(peer: Peer) -> None:
    assert await peer.ping(2 + MOST_TOO_EARLY) == ENHANCE_YOUR_CALM
