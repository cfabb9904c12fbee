"""When readers are told to come back: in a second at the soonest, and not all at the same moment."""

import asyncio
import json

import pytest

from tests.support.calls import PATIENCE_SECONDS
from tests.support.event_stream import events_path, read_to_end
from tests.support.running_gateway import running_gateway

NOWHERE = "127.0.0.1:1"
READERS = 20


def apart(times_ms: list[int]) -> None:
    assert len(times_ms) == READERS
    assert min(times_ms) >= 1_000
    assert max(times_ms) <= 3_000
    # By chance they are the same once in 2,000 to the power of 19.
    assert len(set(times_ms)) > 1


async def test_of_event_sources() -> None:
    async with running_gateway(NOWHERE) as gateway:
        pages = [await read_to_end(gateway.http, events_path()) for _ in range(READERS)]
    # One that has to wait for the bridge is told a time at once, and another at the end.
    apart([page.retries[-1] for page in pages])


async def test_of_a_websockets_subscriptions() -> None:
    websockets = pytest.importorskip("websockets", reason="websockets is not installed")
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        running_gateway(NOWHERE) as gateway,
        websockets.connect(f"ws://127.0.0.1:{gateway.port}/v1/websocket", proxy=None) as socket,
    ):
        for number in range(READERS):
            frame = {"type": "subscribe", "id": str(number), "sessionId": "s", "modelId": "m"}
            await socket.send(json.dumps(frame))
        frames = [json.loads(await socket.recv()) for _ in range(READERS)]
    apart([frame["retryMs"] for frame in frames])
