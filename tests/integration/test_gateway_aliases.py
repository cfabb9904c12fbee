"""The older addresses, with and without `/api`: which response they mean, and what health and metrics tell."""

import asyncio
from datetime import datetime
from typing import Any

import httpx
import pytest

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import FINISH_REASON_ERROR, FINISH_REASON_LENGTH, ROLE_SYSTEM
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, attached, produce, ref
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway

NAMES = {"sessionId": "s", "modelId": "m"}


@pytest.fixture(params=["", "/api"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def http(gateway: RunningGateway, prefix: str) -> httpx.AsyncClient:
    gateway.http.base_url = httpx.URL(f"{gateway.url}{prefix}/")
    return gateway.http


async def post(http: httpx.AsyncClient, name: str, **fields: Any) -> dict[str, Any]:
    answer = await http.post(f"streams/{name}", json={**NAMES, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def whole(bridge: RunningBridge, response_id: str) -> Received:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await Received().read(bridge.bridge.Subscribe(SubscribeRequest(stream=ref(response_id))))


async def test_start_token_complete(http: httpx.AsyncClient, bridge: RunningBridge, prefix: str) -> None:
    started = await post(http, "start", connectionType="sse", metadata={"a": 1})
    assert (started["status"], started["connectionType"]) == ("started", "sse")
    response = started["connectionId"]
    assert response == started["responseId"] != ""
    assert started["streamUrl"] == f"{prefix}/sse/stream/s?modelId=m&responseId={response}"
    stored = [await post(http, "token", token=text) for text in ("a", "b")]
    assert [one["sequence"] for one in stored] == [1, 2]
    assert {one["connectionId"] for one in stored} == {response}
    ended = await post(http, "complete", finishReason="length")
    assert (ended["status"], ended["finishReason"], ended["sequence"]) == ("completed", "length", 3)
    received = await whole(bridge, response)
    assert received.text == "ab"
    assert received.completion is not None
    assert (received.completion.finish_reason, received.cursor) == (FINISH_REASON_LENGTH, ended["cursor"])


async def test_a_token_after_the_end_begins_a_new_response(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    first = await post(http, "token", token="a")
    await post(http, "complete")
    second = await post(http, "token", token="b")
    assert second["responseId"] != first["responseId"]
    assert second["sequence"] == 1
    await post(http, "complete")
    assert (await whole(bridge, first["responseId"])).text == "a"
    assert (await whole(bridge, second["responseId"])).text == "b"


async def test_a_start_begins_a_new_response_also_while_one_is_open(
    http: httpx.AsyncClient, bridge: RunningBridge
) -> None:
    first = await post(http, "token", token="a")
    second = await post(http, "start")
    token = await post(http, "token", token="b")
    assert token["responseId"] == second["responseId"] != first["responseId"]
    # The older one can be named.
    await post(http, "token", token="c", responseId=first["responseId"])
    await post(http, "complete", responseId=first["responseId"])
    assert (await whole(bridge, first["responseId"])).text == "ac"


async def test_the_newest_is_of_this_model_and_whoever_began_it(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("mine"), "a", first=1)
    for response in ("x", "y"):
        await produce(bridge.bridge, ref(response, model="other"), "?", first=1)
    assert (await post(http, "token", token="b"))["responseId"] == "mine"
    await post(http, "complete")
    assert (await whole(bridge, "mine")).text == "ab"


async def test_many_tokens_at_once_begin_one_response(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    await post(http, "token", token="old")
    await post(http, "complete")
    answers = await asyncio.gather(*(post(http, "token", token=f"{number:02d}") for number in range(20)))
    [response] = {answer["responseId"] for answer in answers}
    await post(http, "complete")
    assert sorted((await whole(bridge, response)).texts) == [f"{number:02d}" for number in range(20)]


async def test_roles_metadata_and_errors_get_into_the_stream(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    metadata = {"model": "tiny", "temperature": 0.5, "maxTokens": 9, "x": "y", "n": {"a": 1}}
    token = await post(http, "token", token="a", role="system", metadata=metadata)
    await post(http, "complete", errorMessage="broken", metadata={"k": "v"})
    call = bridge.bridge.Subscribe(SubscribeRequest(stream=ref(token["responseId"])))
    messages = [message async for message in call]
    [stored] = [one for message in messages for one in message.tokens]
    assert (stored.text, stored.role, dict(stored.attributes)) == ("a", ROLE_SYSTEM, {"x": "y", "n": '{"a": 1}'})
    assert (stored.generation.model, stored.generation.temperature, stored.generation.max_tokens) == ("tiny", 0.5, 9)
    end = messages[-1].completion
    assert (end.finish_reason, end.error_message, dict(end.attributes)) == (FINISH_REASON_ERROR, "broken", {"k": "v"})


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("start", {"sessionId": "s"}, "modelId"),
        ("start", {"modelId": "m", "connectionType": "carrier pigeon"}, "connectionType"),
        ("token", {**NAMES}, "token"),
        ("token", {**NAMES, "token": 5}, "token"),
        ("token", {**NAMES, "token": "x", "metadata": "y"}, "metadata"),
        ("token", {**NAMES, "token": "x", "metadata": {"temperature": "hot"}}, "metadata.temperature"),
        ("token", {**NAMES, "token": "x", "metadata": {"maxTokens": -1}}, "metadata.maxTokens"),
        ("token", {**NAMES, "token": "x", "tokens": []}, "tokens"),
        ("complete", {**NAMES, "finishReason": "bored"}, "finishReason"),
        ("complete", {"sessionId": "s", "modelId": None}, "modelId"),
    ],
)
async def test_what_does_not_fit_is_named(http: httpx.AsyncClient, name: str, body: Any, field: str) -> None:
    answer = await http.post(f"streams/{name}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, 3)
    assert answer.json()["details"][0]["metadata"] == {"field": field}


async def test_nothing_can_be_completed_that_is_not_there_or_is_over(
    http: httpx.AsyncClient, bridge: RunningBridge
) -> None:
    assert (await http.post("streams/complete", json=NAMES)).status_code == 404
    await produce(bridge.bridge, ref("r"), "a", first=1, completion=STOP)
    over = await http.post("streams/complete", json=NAMES)
    assert (over.status_code, over.json()["code"]) == (400, 9)
    assert over.json()["details"][0]["metadata"]["finish_reason"] == "FINISH_REASON_STOP"


async def test_health_tells_what_is(http: httpx.AsyncClient) -> None:
    answer = await http.get("streams/health")
    body = answer.json()
    assert (answer.status_code, body["status"]) == (200, "healthy")
    assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
    count = len(body["checks"])
    assert body["summary"] == {"total": count, "healthy": count, "degraded": 0, "unhealthy": 0}
    assert all(set(check) == {"status", "message", "details"} for check in body["checks"].values())


async def test_metrics_tell_what_went_through_and_who_is_attached(
    http: httpx.AsyncClient, bridge: RunningBridge
) -> None:
    before = (await http.get("streams/metrics")).json()
    assert before == {
        "messageCount": 0,
        "errorCount": 0,
        "errorRate": 0.0,
        "averageLatency": None,
        "connections": {"totalConnections": 0, "activeConnections": 0, "sessionCount": 0},
    }
    for text in ("a", "b", "c"):
        await post(http, "token", token=text, responseId="r")
    await http.post("streams/token", json={**NAMES, "token": "x" * 70_000})
    calls = [
        await attached(bridge.bridge, SubscribeRequest(stream=StreamRef(session_id=session, model_id="m")))
        for session in ("s", "s", "t")
    ]
    after = (await http.get("streams/metrics")).json()
    assert (after["messageCount"], after["errorCount"], after["errorRate"]) == (3, 1, 0.25)
    assert 0 < after["averageLatency"] < 10_000
    assert after["connections"] == {"totalConnections": 3, "activeConnections": 3, "sessionCount": 2}
    for call in calls:
        call.cancel()
