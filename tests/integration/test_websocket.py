"""Many streams over one WebSocket, with the client library `websockets`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from llmbridge.v1.bridge_service_pb2 import ProduceRequest
from llmbridge.v1.connection_service_pb2 import (
    CONNECTION_STATE_HELD,
    TRANSPORT_WEBSOCKET,
    ListConnectionsRequest,
)
from llmbridge.v1.stream_admin_service_pb2 import TrimStreamRequest
from llmbridge.v1.token_pb2 import Token
from tests.support.calls import PATIENCE_SECONDS, STOP, produce, ref, until
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge
from tests.support.running_gateway import RunningGateway, running_gateway

websockets = pytest.importorskip("websockets", reason="websockets is not installed")


@dataclass
class Page:
    """A page with one socket; frames are kept by subscription."""

    socket: Any
    frames: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    async def send(self, **fields: Any) -> None:
        await self.socket.send(json.dumps(fields))

    async def subscribe(self, id_: str, response: str, **fields: str) -> None:
        await self.send(type="subscribe", id=id_, sessionId="s", modelId="m", responseId=response, **fields)

    async def take(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            frame: dict[str, Any] = json.loads(await self.socket.recv())
        self.frames.setdefault(frame.get("id", ""), []).append(frame)
        return frame

    async def until(self, id_: str, type_: str) -> dict[str, Any]:
        """Read until that subscription's newest frame has this type."""
        while not self.of(id_) or self.of(id_)[-1]["type"] != type_:
            await self.take()
        return self.of(id_)[-1]

    def of(self, id_: str) -> list[dict[str, Any]]:
        return self.frames.get(id_, [])

    def types(self, id_: str) -> list[str]:
        return [frame["type"] for frame in self.of(id_)]

    def text(self, id_: str) -> str:
        return "".join(frame["content"] for frame in self.of(id_) if frame["type"] == "token")


@asynccontextmanager
async def open_page(gateway: RunningGateway, **options: Any) -> AsyncIterator[Page]:
    url = f"ws://127.0.0.1:{gateway.port}/v1/websocket"
    async with websockets.connect(url, proxy=None, **options) as socket:
        yield Page(socket)


@pytest.fixture
async def page(gateway: RunningGateway) -> AsyncIterator[Page]:
    async with open_page(gateway) as opened:
        yield opened


async def test_many_streams_on_one_socket(bridge: RunningBridge, page: Page) -> None:
    responses = [f"r{number}" for number in range(20)]
    for response in responses:
        await page.subscribe(response, response)
    for response in responses:
        await page.until(response, "connected")
    found = (await bridge.connections.ListConnections(ListConnectionsRequest())).connections
    assert {connection.transport for connection in found} == {TRANSPORT_WEBSOCKET}
    assert len(found) == len(responses)
    for number in range(1, 4):
        for response in responses:
            await produce(bridge.bridge, ref(response), f"{response}-{number} ", first=number)
    for response in responses:
        await produce(bridge.bridge, ref(response), first=4, completion=STOP)
    for response in responses:
        complete = await page.until(response, "complete")
        assert page.text(response) == "".join(f"{response}-{number} " for number in range(1, 4))
        assert (complete["finishReason"], complete["sequence"]) == ("stop", 4)
        assert complete["cursor"]
    await until(lambda: bridge.core.idle)


async def test_resuming_from_every_frame(bridge: RunningBridge, page: Page) -> None:
    await page.subscribe("live", "r")
    await page.until("live", "connected")
    await produce(bridge.bridge, ref("r"), "a", first=1)
    await page.until("live", "token")
    await produce(bridge.bridge, ref("r"), "b", "c", first=2, completion=STOP)
    await page.until("live", "complete")
    await page.subscribe("replay", "r")
    await page.until("replay", "complete")
    for seen in (page.of("live"), page.of("replay")):
        for number, frame in enumerate(seen[1:-1], 1):
            id_ = f"resumed {frame['cursor']} {number}"
            await page.subscribe(id_, "r", cursor=frame["cursor"])
            await page.until(id_, "complete")
            had = "".join(before["content"] for before in seen[1 : number + 1])
            assert had + page.text(id_) == "abc"
        await page.subscribe("over", "r", cursor=seen[-1]["cursor"])
        await page.until("over", "ended")
        assert set(page.types("over")) == {"ended"}


async def test_an_id_is_free_after_its_last_frame(bridge: RunningBridge, page: Page) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1, completion=STOP)
    for _ in range(20):
        await page.subscribe("a", "r")
        await page.until("a", "complete")
        page.frames.clear()


async def test_unsubscribing(bridge: RunningBridge, page: Page) -> None:
    await page.subscribe("a", "r")
    await page.subscribe("b", "r")
    await page.until("a", "connected")
    await page.until("b", "connected")
    await page.send(type="unsubscribe", id="a")
    await page.until("a", "ended")
    await produce(bridge.bridge, ref("r"), "x", first=1, completion=STOP)
    await page.until("b", "complete")
    assert page.types("a") == ["connected", "ended"]
    await page.subscribe("a", "r")
    await page.until("a", "complete")


async def test_cancelling(bridge: RunningBridge, page: Page) -> None:
    await page.subscribe("a", "r")
    await page.until("a", "connected")
    await produce(bridge.bridge, ref("r"), "x", first=1)
    await page.send(type="cancel", id="a", reason="enough")
    while not {"cancelled", "complete"} <= set(page.types("a")):
        await page.take()
    [cancelled] = [frame for frame in page.of("a") if frame["type"] == "cancelled"]
    assert cancelled == {
        "type": "cancelled",
        "id": "a",
        "finishReason": "cancelled",
        "sealer": "cancel",
        "sealedNow": True,
    }
    [complete] = [frame for frame in page.of("a") if frame["type"] == "complete"]
    assert (complete["finishReason"], complete["errorMessage"]) == ("cancelled", "enough")


async def test_ping(page: Page) -> None:
    await page.send(type="ping", id="7")
    assert await page.take() == {"type": "pong", "id": "7"}


async def test_errors_are_their_subscriptions_own(bridge: RunningBridge, page: Page) -> None:
    for number in range(1, 4):
        await produce(bridge.bridge, ref("trimmed"), str(number), first=number)
    await bridge.admin.TrimStream(TrimStreamRequest(stream=ref("trimmed"), keep_tokens=1))
    await page.subscribe("good", "r")
    await page.subscribe("lost", "trimmed")
    await page.subscribe("long", "x" * 1000)
    await page.subscribe("wrong", "r", cursor="1-2-3")
    lost = await page.until("lost", "error")
    assert (lost["reason"], "retryMs" in lost) == ("TRIMMED", False)
    assert (await page.until("long", "error"))["field"] == "stream.response_id"
    assert (await page.until("wrong", "error"))["field"] == "cursor"
    await page.subscribe("lost", "trimmed", cursor=lost["earliestCursor"])
    await page.until("lost", "token")
    assert page.text("lost") == "3"
    await produce(bridge.bridge, ref("r"), "x", first=1, completion=STOP)
    await page.until("good", "complete")


async def test_bad_frames_name_the_field_and_end_nothing(bridge: RunningBridge, page: Page) -> None:
    await page.subscribe("a", "r")
    await page.until("a", "connected")
    for text, field_ in (
        ("{", "frame"),
        ('{"type":"x"}', "type"),
        ('{"type":"subscribe","sessionId":"s","modelId":"m"}', "id"),
        ('{"type":"subscribe","id":"a","sessionId":"s","modelId":"m"}', "id"),
        ('{"type":"unsubscribe","id":"nobody"}', "id"),
        ('{"type":"cancel","id":"nobody"}', "id"),
        # What can't be sent back is not.
        ('{"type":"ping","id":"\\ud800"}', "id"),
        ('{"type":"ping","\\ud800":"x"}', "?"),
        ('{"type":"ping","id":"a","id":"a"}', "id"),
    ):
        await page.socket.send(text)
        frame = await page.take()
        assert (frame["type"], frame["code"], frame["field"], frame.get("id")) == ("error", 3, field_, None)
    await produce(bridge.bridge, ref("r"), "x", first=1, completion=STOP)
    await page.until("a", "complete")


async def test_limits(gateway: RunningGateway, page: Page) -> None:
    for number in range(100):
        await page.subscribe(str(number), f"r{number}")
    await page.subscribe("one more", "r")
    error = await page.until("one more", "error")
    assert (error["code"], error["reason"]) == (8, "LIMIT_EXCEEDED")
    await page.send(type="unsubscribe", id="7")
    await page.until("7", "ended")
    await page.subscribe("one more", "r")
    await page.until("one more", "connected")
    for data, code in ((" " * 65_537, 1009), (b"bytes", 1003), (" " * 2_000_000, 1009)):
        async with open_page(gateway) as other:
            with pytest.raises(websockets.ConnectionClosed):  # noqa: PT012 - already while it is sent, where it is long
                await other.socket.send(data)
                await other.take()
            assert other.socket.close_code == code


async def test_a_page_that_does_not_read_holds_only_itself(bridge: RunningBridge, gateway: RunningGateway) -> None:
    tokens = [Token(text="x" * 32_768)] * 7
    for number in range(100):
        await bridge.bridge.Produce(ProduceRequest(stream=ref("big"), tokens=tokens, first_sequence=1 + 7 * number))
    async with (
        open_page(gateway, max_queue=1, compression=None, close_timeout=0.1) as slow,
        open_page(gateway) as page,
    ):
        for id_ in ("one", "two"):
            await slow.subscribe(id_, "big")
        await _held(bridge, 2)
        await page.subscribe("a", "other")
        await produce(bridge.bridge, ref("other"), "x", first=1, completion=STOP)
        await page.until("a", "complete")
        # The page reads again: nothing is missing.
        for id_ in ("one", "two"):
            while not any(frame.get("sequence") == 700 for frame in slow.of(id_)):
                await slow.take()
            assert len(slow.text(id_)) == 700 * 32_768


async def _held(bridge: RunningBridge, count: int) -> None:
    before: list[str] = []
    async with asyncio.timeout(20):
        while True:
            found = await bridge.connections.ListConnections(ListConnectionsRequest(session_id="s"))
            cursors = [one.cursor for one in found.connections if one.state == CONNECTION_STATE_HELD]
            if len(cursors) == count and cursors == before:
                return
            before = cursors
            await asyncio.sleep(0.3)


async def test_a_closed_page_frees_everything_within_a_second(bridge: RunningBridge, gateway: RunningGateway) -> None:
    took = []
    for _ in range(3):
        async with open_page(gateway) as page:
            for number in range(5):
                await page.subscribe(str(number), f"r{number}")
                await page.until(str(number), "connected")
            assert gateway.core.link.reads == 5
            began = time.monotonic()
            page.socket.transport.abort()
            await until(lambda: gateway.core.link.reads == 0 and bridge.core.idle)
            took.append(time.monotonic() - began)
    # On a busy machine not each time.
    assert min(took) < 1


@pytest.mark.parametrize("who", ["bridge", "gateway"])
async def test_a_drain_closes_the_socket_so_that_pages_connect_again(
    shared_redis: RedisProcess, key_prefix: str, who: str
) -> None:
    async with (
        running_bridge(shared_redis.url, key_prefix=key_prefix) as bridge,
        running_gateway(bridge.address) as gateway,
        open_page(gateway) as page,
    ):
        for id_ in ("a", "b"):
            await page.subscribe(id_, "r")
            await page.until(id_, "connected")
        if who == "bridge":
            bridge.stop.set()
        else:
            gateway.core.link.drain()
        with pytest.raises(websockets.ConnectionClosed):
            await page.take()
        assert page.socket.close_code == 1012


async def test_a_bridge_that_is_away_says_when_to_try_again() -> None:
    async with running_gateway("127.0.0.1:1") as gateway, open_page(gateway) as page:
        await page.subscribe("a", "r")
        error = await page.until("a", "error")
        assert error["code"] == 14
        assert error["retryMs"] >= 1_000


@pytest.mark.parametrize(
    ("origins", "origin", "cookie", "status"),
    [
        ((), None, "", 101),
        ((), "http://evil.example", "", 403),
        (("http://good.example",), "http://good.example", "", 101),
        (("http://good.example",), "http://evil.example", "", 403),
        (("*",), "http://any.example", "", 101),
        (("*",), "http://any.example", "llmbridge_token=x", 403),
    ],
)
async def test_pages_of_other_origins(
    bridge: RunningBridge, origins: tuple[str, ...], origin: str | None, cookie: str, status: int
) -> None:
    headers = {"Cookie": cookie} if cookie else {}
    async with running_gateway(bridge.address, http_cors_origins=origins) as gateway:
        try:
            async with open_page(gateway, origin=origin, additional_headers=headers) as page:
                await page.send(type="ping")
                await page.take()
            found = 101
        except websockets.InvalidStatus as error:
            found = error.response.status_code
    assert found == status


async def test_a_page_of_the_gateways_own_origin(gateway: RunningGateway) -> None:
    async with open_page(gateway, origin=gateway.url) as page:
        await page.send(type="ping")
        assert (await page.take())["type"] == "pong"
