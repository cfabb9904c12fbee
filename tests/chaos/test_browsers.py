"""The chaos run's browsers do what pages do: they come back to where they were; what coming back can't help is told."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from llmbridge.v1.stream_admin_service_pb2 import DeleteStreamRequest
from tests.chaos.browsers import Browsers, browsers_of
from tests.chaos.ways import Arrived, Key, ReadingFailed
from tests.support.calls import PATIENCE_SECONDS, STOP, produce, ref
from tests.support.proxy import Proxy
from tests.support.running_bridge import RunningBridge

KEY: Key = ("s", "m", "r")
STREAM = ref("r")
SILENCE = 1.0

pytestmark = pytest.mark.parametrize("page", ["EventSource", "WebSocket"])


@pytest.fixture
async def browsers(network: Proxy) -> AsyncIterator[Browsers]:
    async with browsers_of([network.url], random.Random(), SILENCE) as known:
        yield known


async def read(browsers: Browsers, page: str, place: str = "") -> list[Arrived]:
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(browsers.pages[page].read(KEY, place)) as arriving:
        return [arrived async for arrived in arriving]


@pytest.mark.parametrize("hurt", [Proxy.reset_all, Proxy.half_open])
async def test_it_comes_back_to_where_it_was(
    bridge: RunningBridge, network: Proxy, browsers: Browsers, page: str, hurt: Callable[[Proxy], None]
) -> None:
    await produce(bridge.bridge, STREAM, "a", first=1)
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(browsers.pages[page].read(KEY, "")) as arriving:
        assert (await anext(arriving)).tokens == [(1, "a")]
        hurt(network)
        await produce(bridge.bridge, STREAM, "b", first=2)
        await produce(bridge.bridge, STREAM, first=3, completion=STOP)
        rest = [arrived async for arrived in arriving]
    assert [token for arrived in rest for token in arrived.tokens] == [(2, "b")]
    assert (rest[-1].finish, rest[-1].finish_number) == ("STOP", 3)
    assert browsers.comebacks > 0


async def test_it_goes_on_behind_a_place(bridge: RunningBridge, browsers: Browsers, page: str) -> None:
    first = await produce(bridge.bridge, STREAM, "a", first=1)
    last = await produce(bridge.bridge, STREAM, "b", first=2, completion=STOP)
    token, end = await read(browsers, page, first.cursor)
    assert (token.tokens, end.finish) == ([(2, "b")], "STOP")
    assert await read(browsers, page, token.place) == [end]
    assert await read(browsers, page, last.cursor) == []


async def test_lost_history_is_told(bridge: RunningBridge, browsers: Browsers, page: str) -> None:
    stored = await produce(bridge.bridge, STREAM, "a", first=1)
    await bridge.admin.DeleteStream(DeleteStreamRequest(stream=STREAM))
    with pytest.raises(ReadingFailed, match=r"^HistoryLost EXPIRED$"):
        await read(browsers, page, stored.cursor)


async def test_what_it_can_not_ask_is_told(browsers: Browsers, page: str) -> None:
    with pytest.raises(ReadingFailed, match="INVALID_FIELD"):
        await read(browsers, page, "!")
