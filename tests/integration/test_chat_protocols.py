"""What holds for the AI SDK's and OpenAI's protocols whatever client reads them: cuts, cursors, closed tabs."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from llmbridge.v1.stream_admin_service_pb2 import TrimStreamRequest
from tests.support.calls import STOP, produce, ref, until
from tests.support.proxy import local, proxy_to
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway, running_gateway

STREAM = ref("r", session="s")
CHUNKS = "/v1/sessions/s/models/m/responses/r/chat.completion.chunks"
PATHS = ("/api/chat/s/stream", CHUNKS)


async def lines_until(lines: AsyncIterator[str], text: str) -> None:
    async with asyncio.timeout(20):
        async for line in lines:
            if text in line:
                return
    raise AssertionError(f"{text!r} did not come")


@pytest.mark.parametrize("path", PATHS)
async def test_an_outage_of_the_bridge_is_not_seen(bridge: RunningBridge, path: str) -> None:
    port = int(bridge.address.rpartition(":")[2])
    async with proxy_to(local(port)) as network, running_gateway(f"127.0.0.1:{network.port}") as gateway:
        await produce(bridge.bridge, STREAM, "one")
        async with gateway.http.stream("GET", path) as response:
            lines = response.aiter_lines()
            await lines_until(lines, "one")
            network.reset_all()
            await produce(bridge.bridge, STREAM, "two", completion=STOP)
            rest = [line async for line in lines if line]
    assert sum("two" in line for line in rest) == 1
    assert not any("one" in line for line in rest)
    assert rest[-1] == "data: [DONE]"


@pytest.mark.parametrize("path", PATHS)
async def test_a_closed_tab_frees_everything_at_once(bridge: RunningBridge, gateway: RunningGateway, path: str) -> None:
    await produce(bridge.bridge, STREAM, "one")
    async with gateway.http.stream("GET", path) as response:
        await lines_until(response.aiter_lines(), "one")
        assert gateway.core.link.reads == 1
    # Heartbeats, of which one might not arrive, come every 15 s.
    async with asyncio.timeout(5):
        await until(lambda: gateway.core.link.reads == 0)


@pytest.mark.parametrize("path", PATHS)
async def test_a_head_ends_at_once(bridge: RunningBridge, gateway: RunningGateway, path: str) -> None:
    await produce(bridge.bridge, STREAM, "one")
    response = await gateway.http.head(path)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


@pytest.mark.parametrize("path", PATHS)
async def test_history_that_is_lost_is_an_error(bridge: RunningBridge, gateway: RunningGateway, path: str) -> None:
    for text in ("one", "two", "three"):
        await produce(bridge.bridge, STREAM, text)
    await bridge.admin.TrimStream(TrimStreamRequest(stream=STREAM, keep_tokens=1))
    lines = [line for line in (await gateway.http.get(path)).text.splitlines() if line]
    assert any("error" in line for line in lines)
    assert not any("three" in line for line in lines)


@pytest.mark.parametrize("path", PATHS)
async def test_a_gateway_that_stops_breaks_the_connection_off_and_blames_nobody(
    bridge: RunningBridge, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    await produce(bridge.bridge, STREAM, "one")
    async with running_gateway(bridge.address) as gateway, gateway.http.stream("GET", path) as response:
        lines = response.aiter_lines()
        await lines_until(lines, "one")
        gateway.core.link.drain()
        with pytest.raises(httpx.RemoteProtocolError):
            await lines_until(lines, "never")
    # The server would take it for a mistake, and say so.
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_cursor_is_of_one_response_even_when_another_is_newer(
    bridge: RunningBridge, gateway: RunningGateway
) -> None:
    first = await produce(bridge.bridge, STREAM, "one")
    end = await produce(bridge.bridge, STREAM, "two", completion=STOP)
    await produce(bridge.bridge, ref("newer", session="s"), "other")
    rest = (await gateway.http.get("/api/chat/s/stream", params={"cursor": first.cursor})).text
    assert '"two"' in rest
    assert '"start"' not in rest
    assert "other" not in rest
    again = await gateway.http.get("/api/chat/s/stream", headers={"last-event-id": end.cursor})
    assert again.status_code == 204


async def test_cursors_that_lead_nowhere_are_told(bridge: RunningBridge, gateway: RunningGateway) -> None:
    stored = await produce(bridge.bridge, STREAM, "one")
    bad = await gateway.http.get("/api/chat/s/stream?cursor=nonsense")
    assert (bad.status_code, bad.json()["details"][0]["metadata"]) == (400, {"field": "cursor"})
    incarnation = stored.cursor.partition("-")[0]
    lost = await gateway.http.get(f"/api/chat/s/stream?cursor={incarnation}-99-00000000")
    assert (lost.status_code, lost.json()["details"][0]["reason"]) == (400, "ERROR_REASON_LOST")
    unknown = await gateway.http.get("/api/chat/s/stream?cursor=1-1-00000000")
    assert unknown.status_code == 204


async def test_the_model_is_chosen_by_name(bridge: RunningBridge, gateway: RunningGateway) -> None:
    await produce(bridge.bridge, ref("r", session="s", model="a"), "of a")
    await produce(bridge.bridge, ref("r", session="s", model="b"), "of b")
    async with gateway.http.stream("GET", "/api/chat/s/stream?modelId=a") as response:
        await lines_until(response.aiter_lines(), "of a")
    assert (await gateway.http.post("/api/chat/s/stop?modelId=a")).json() == {"success": True}
    # What is not JSON names no response, and nothing is open any more.
    assert (await gateway.http.post("/api/chat/s/stop?modelId=a", content=b"{")).json() == {"success": True}
    listed = (await gateway.http.get("/v1/sessions/s/streams")).json()["streams"]
    assert {one["stream"]["modelId"]: one["sealer"] for one in listed} == {
        "a": "SEALER_CANCEL",
        "b": "SEALER_UNSPECIFIED",
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "id"),
        ({"id": "s", "messages": []}, "messages"),
        ({"id": "s", "messages": [{"role": "user"}]}, "messages[0].parts"),
        ({"id": "s", "modelId": 1}, "modelId"),
    ],
)
async def test_what_is_wrong_in_a_question_is_named(bridge: RunningBridge, body: object, field: str) -> None:
    async with running_gateway(bridge.address, upstream_url="http://127.0.0.1:9/v1", upstream_model="m") as gateway:
        refused = await gateway.http.post("/api/chat", json=body)
    assert (refused.status_code, refused.json()["details"][0]["metadata"]) == (400, {"field": field})
