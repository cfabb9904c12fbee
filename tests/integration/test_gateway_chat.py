"""`POST /chat/start`: a prompt goes to a model server, its answer into a new stream, which always gets an end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from llmbridge.v1.bridge_service_pb2 import CancelRequest, SubscribeRequest
from llmbridge.v1.stream_pb2 import SEALER_CANCEL, StreamRef
from llmbridge.v1.token_pb2 import FINISH_REASON_ERROR, FINISH_REASON_STOP
from tests.support.calls import PATIENCE_SECONDS, Received
from tests.support.model_upstream import ModelUpstream, model_upstream
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway, running_gateway

pytest.importorskip("openai", reason="the extra 'openai' is not installed")

ASK = {"sessionId": "a/b", "modelId": "tiny", "prompt": "hello?"}


@asynccontextmanager
async def chatting(
    bridge: RunningBridge, upstream: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[RunningGateway, ModelUpstream]]:
    async with (
        model_upstream(**(upstream or {})) as model,
        running_gateway(bridge.address, upstream_url=model.url, **options) as gateway,
    ):
        yield gateway, model


def stream_of(body: dict[str, Any]) -> StreamRef:
    return StreamRef(session_id=body["sessionId"], model_id=body["modelId"], response_id=body["responseId"])


async def read(bridge: RunningBridge, body: dict[str, Any]) -> Received:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await Received().read(bridge.bridge.Subscribe(SubscribeRequest(stream=stream_of(body))))


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_it_answers_at_once_and_the_answer_streams(bridge: RunningBridge, prefix: str) -> None:
    async with chatting(bridge, upstream_key="k-1") as (gateway, model):
        started = await gateway.http.post(f"{prefix}/chat/start", json=ASK)
        body = started.json()
        assert started.status_code == 200
        assert not model.go_on.is_set()
        assert (body["sessionId"], body["modelId"], body["status"]) == ("a/b", "tiny", "started")
        assert body["connectionId"] == body["responseId"] != ""
        assert body["streamUrl"].startswith(f"{prefix}/sse/stream/a%2Fb?modelId=tiny&responseId=")
        model.go_on.set()
        received = await read(bridge, body)
        assert received.text == "Hello you"
        assert received.completion is not None
        assert received.completion.finish_reason == FINISH_REASON_STOP
        assert model.asked[0]["messages"] == [{"role": "user", "content": "hello?"}]
        assert model.asked[0]["model"] == "tiny"
        assert model.keys == ["Bearer k-1"]
        shown = await gateway.http.get(body["streamUrl"])
        assert (shown.status_code, "Hello" in shown.text) == (200, True)


async def test_session_and_model_may_be_left_out(bridge: RunningBridge) -> None:
    async with chatting(bridge, upstream_model="tiny") as (gateway, model):
        model.go_on.set()
        first, second = [(await gateway.http.post("/chat/start", json={"prompt": "x"})).json() for _ in range(2)]
        assert first["sessionId"] != second["sessionId"]
        assert (await read(bridge, first)).text == (await read(bridge, second)).text == "Hello you"
    async with chatting(bridge) as (gateway, model):
        refused = await gateway.http.post("/chat/start", json={"prompt": "x"})
        assert (refused.status_code, "modelId" in refused.json()["message"]) == (400, True)


@pytest.mark.parametrize("body", [{}, {"prompt": 5}, {"prompt": "x", "temperature": 1}, {"prompt": None}])
async def test_what_does_not_fit_starts_nothing(bridge: RunningBridge, body: dict[str, Any]) -> None:
    async with chatting(bridge, upstream_model="tiny") as (gateway, model):
        assert (await gateway.http.post("/chat/start", json=body)).status_code == 400
        assert (await gateway.http.get("/v1/openStreams")).json()["streams"] == []
        assert model.asked == []


async def test_without_a_model_server_it_says_so(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address) as gateway:
        refused = await gateway.http.post("/chat/start", json=ASK)
        assert (refused.status_code, refused.json()["code"]) == (400, 9)
        assert "LLMBRIDGE_UPSTREAM_URL" in refused.json()["message"]


@pytest.mark.parametrize(
    ("upstream", "told"),
    [
        ({"status": "400 Bad Request"}, "the model endpoint answered 400"),
        ({"status": "401 Unauthorized"}, "the model endpoint answered 401"),
        ({"breaks_off": True}, ""),
    ],
)
async def test_its_failure_is_the_streams_end(bridge: RunningBridge, upstream: dict[str, Any], told: str) -> None:
    async with chatting(bridge, upstream, upstream_key="k-secret") as (gateway, model):
        model.go_on.set()
        body = (await gateway.http.post("/chat/start", json=ASK)).json()
        completion = (await read(bridge, body)).completion
        assert completion is not None
        assert completion.finish_reason == FINISH_REASON_ERROR
        assert completion.error_message
        assert completion.error_message.startswith(told)
        assert "k-secret" not in completion.error_message
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (await counted(gateway.http))["errorCount"]:
                await asyncio.sleep(0.02)


async def test_a_model_server_that_is_away_ends_the_stream(bridge: RunningBridge) -> None:
    async with model_upstream() as model:
        url = model.url
    async with running_gateway(bridge.address, upstream_url=url) as gateway:
        body = (await gateway.http.post("/chat/start", json=ASK)).json()
        completion = (await read(bridge, body)).completion
        assert completion is not None
        assert completion.finish_reason == FINISH_REASON_ERROR


async def test_a_reader_who_stops_it_stops_the_model(bridge: RunningBridge) -> None:
    async with chatting(bridge, {"texts": ("a",) * 500}) as (gateway, model):
        body = (await gateway.http.post("/chat/start", json=ASK)).json()
        call = bridge.bridge.Subscribe(SubscribeRequest(stream=stream_of(body)))
        assert (await call.read()).tokens[0].text == "a"
        answer = await bridge.bridge.Cancel(CancelRequest(stream=stream_of(body)))
        assert answer.sealer == SEALER_CANCEL
        model.go_on.set()
        call.cancel()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await gateway.http.get("/streams/health")).json()["checks"]["gateway"]["details"]["chats"]:
                await asyncio.sleep(0.02)


async def test_only_so_many_at_once(bridge: RunningBridge) -> None:
    async with chatting(bridge, max_chats=1) as (gateway, model):
        first = (await gateway.http.post("/chat/start", json=ASK)).json()
        refused = await gateway.http.post("/chat/start", json=ASK)
        assert (refused.status_code, refused.json()["code"]) == (429, 8)
        assert refused.json()["details"][0]["metadata"]["limit"] == "max_chats"
        health = await gateway.http.get("/streams/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        model.go_on.set()
        await read(bridge, first)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await gateway.http.post("/chat/start", json=ASK)).status_code == 429:
                await asyncio.sleep(0.02)


async def test_a_name_that_is_taken_leaves_its_place_free(bridge: RunningBridge) -> None:
    async with chatting(bridge, max_chats=1) as (gateway, model):
        model.go_on.set()
        asked = {**ASK, "responseId": "r"}
        await read(bridge, (await gateway.http.post("/chat/start", json=asked)).json())
        for _ in range(2):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (refused := await gateway.http.post("/chat/start", json=asked)).status_code == 429:
                    await asyncio.sleep(0.02)
            assert refused.status_code == 409


async def test_what_is_under_way_finishes_in_a_drain(bridge: RunningBridge) -> None:
    async with chatting(bridge) as (gateway, model):
        body = (await gateway.http.post("/chat/start", json=ASK)).json()
        call = bridge.bridge.Subscribe(SubscribeRequest(stream=stream_of(body)))
        await call.read()
        gateway.core.link.drain()
        asyncio.get_running_loop().call_later(0.3, model.go_on.set)
        refused = await gateway.http.post("/chat/start", json=ASK)
        assert (refused.status_code, refused.json()["code"]) == (503, 14)
        call.cancel()
    received = await read(bridge, body)
    assert (received.text, received.completion is not None) == ("Hello you", True)


async def test_what_does_not_finish_in_time_is_cut_with_an_end(bridge: RunningBridge) -> None:
    async with chatting(bridge, drain_timeout_ms=200) as (gateway, model):
        body = (await gateway.http.post("/chat/start", json=ASK)).json()
        call = bridge.bridge.Subscribe(SubscribeRequest(stream=stream_of(body)))
        await call.read()
        call.cancel()
    completion = (await read(bridge, body)).completion
    assert completion is not None
    assert completion.finish_reason != FINISH_REASON_STOP
    assert model.abandoned.is_set()


async def test_its_tokens_are_counted(bridge: RunningBridge) -> None:
    async with chatting(bridge) as (gateway, model):
        model.go_on.set()
        await read(bridge, (await gateway.http.post("/chat/start", json=ASK)).json())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (metrics := await counted(gateway.http))["messageCount"] < 2:
                await asyncio.sleep(0.02)
        assert (metrics["messageCount"], metrics["errorCount"], metrics["errorRate"]) == (2, 0, 0.0)


async def counted(http: httpx.AsyncClient) -> dict[str, Any]:
    body: dict[str, Any] = (await http.get("/streams/metrics")).json()
    return body
