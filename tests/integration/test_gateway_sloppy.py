"""Sloppy and hostile requests: what is wrong is named, and nothing gets stuck."""

import asyncio
from typing import Any

import httpx
import pytest

from llmbridge.gateway import limits
from tests.support.calls import produce as produce_tokens
from tests.support.calls import ref
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway, connection

MODEL = "/v1/sessions/s/models/m"
STREAM = f"{MODEL}/responses/r"
LONG = "x" * 300
UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def refused_field(answer: httpx.Response, status: int = 400) -> str:
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, 3), body
    name: str = body["details"][0]["metadata"]["field"]
    return name


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (f"{MODEL}/responses", {"responseId": "a", "response_id": "b"}, "response_id"),
        (f"{MODEL}/responses", {"responseId": 5}, "responseId"),
        (f"{MODEL}/responses", {"sessionId": "s"}, "sessionId"),
        (f"{STREAM}:produce?dryRun=true", {"tokens": [{"text": "x"}]}, "dryRun"),
    ],
)
async def test_a_wrong_field_has_the_name_that_the_client_gave_it(
    http: httpx.AsyncClient, path: str, body: Any, field: str
) -> None:
    answer = await http.post(path, json=body)
    assert refused_field(answer) == field
    assert field in answer.json()["message"]


async def test_what_there_is_instead_is_told(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{MODEL}/responses", json={"responseID": "r"})
    assert answer.json()["message"] == (
        "there is no field responseID here; there is maxLength, responseId, retentionMs"
    )
    beyond = await http.get("/v1/sessions/s/streams?pageSize=5000000000")
    assert beyond.json()["message"] == "pageSize: must be a whole number from 0 to 4294967295, or one as text"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"tokens":[{"text":"\\ud800"}]}', "surrogate pair"),
        (b'{"tokens":[{"text":"\xff"}]}', "not UTF-8"),
        (b'{"tokens":[{"text":"x","generation":{"temperature":1e999}}]}', "1e999 is too large"),
        (b'{"tokens":' + b"[" * 100_000, "nested too deeply"),
        (b'{"firstSequence":' + b"1" * 10_000 + b"}", "Exceeds the limit"),
    ],
)
async def test_a_body_that_is_no_text_or_no_number_is_told_apart(
    http: httpx.AsyncClient, body: bytes, told: str
) -> None:
    answer = await http.post(f"{STREAM}:produce", content=body)
    assert refused_field(answer) == "body"
    assert told in answer.json()["message"]
    assert (await http.get(STREAM)).status_code == 404


async def test_a_packed_body_is_refused(http: httpx.AsyncClient) -> None:
    body = b'{"tokens":[{"text":"x"}]}'
    answer = await http.post(f"{STREAM}:produce", content=body, headers={"content-encoding": "gzip"})
    assert refused_field(answer, 415) == "content-encoding"
    plain = await http.post(f"{STREAM}:produce", content=body, headers={"content-encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize("name", ["%zz", "%", "a%2", "%ff"])
async def test_a_name_that_is_not_percent_encoded_is_refused(http: httpx.AsyncClient, name: str) -> None:
    # Such a name would have two addresses, and be shown as a third.
    assert refused_field(await http.get(httpx.URL(str(http.base_url) + f"/v1/sessions/{name}/streams"))) == "path"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("cursor=a&cursor=b", "cursor"),
        ("position=latest&position=latest", "position"),
        ("cursr=a", "cursr"),
    ],
)
async def test_a_reader_whose_query_is_unclear_is_refused(http: httpx.AsyncClient, query: str, field: str) -> None:
    assert refused_field(await http.get(f"{STREAM}/events?{query}")) == field
    chunks = await http.get(f"{STREAM}/chat.completion.chunks?{query.replace('position', 'include_usage')}")
    assert chunks.status_code == 400
    assert chunks.json()["error"]["param"] == field.replace("position", "include_usage")


async def test_a_cursor_of_another_stream_is_told_by_an_event_that_ends_it(
    bridge: RunningBridge, http: httpx.AsyncClient
) -> None:
    await produce_tokens(bridge.bridge, ref("r"), "x")
    other = await produce_tokens(bridge.bridge, ref("other"), "y")
    answer = await http.get(f"{STREAM}/events", headers={"last-event-id": other.cursor})
    assert answer.status_code == 200
    assert "event: error\nid: end\n" in answer.text
    # As a page can give it back.
    assert "with cursor " in answer.text


@pytest.mark.parametrize("path", ["/sse/stream/s", "/api/chat/s/stream"])
async def test_older_pages_may_add_to_their_addresses_but_not_repeat(
    bridge: RunningBridge, http: httpx.AsyncClient, path: str
) -> None:
    assert refused_field(await http.get(f"{path}?modelId=m&modelId=n")) == "modelId"
    await produce_tokens(bridge.bridge, ref("r"), "x")
    async with http.stream("GET", f"{path}?modelId=m&_=123&_=456") as answer:
        assert answer.status_code == 200


@pytest.mark.parametrize("id_", ["%ff/r/0", "m/%zz/0", "//", "/r/0", "m/r", "a/b/c/d"])
async def test_an_id_that_names_no_response_is_refused(http: httpx.AsyncClient, id_: str) -> None:
    answer = await http.get("/sse/stream/s?modelId=m", headers={"last-event-id": id_})
    assert refused_field(answer) == "cursor"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (STREAM, "DELETE, GET, HEAD"),
        (f"{STREAM}/groups/g", "DELETE, GET, HEAD"),
        (f"{STREAM}:produce", "POST"),
        (f"{STREAM}/events", "GET"),
    ],
)
async def test_all_methods_of_an_address_are_told(http: httpx.AsyncClient, path: str, allowed: str) -> None:
    for method in ("PUT", "OPTIONS"):
        answer = await http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.json()["message"].endswith(allowed)


async def test_a_websocket_where_there_is_none_and_none_where_there_is_one(http: httpx.AsyncClient) -> None:
    plain = await http.get("/v1/websocket")
    assert (plain.status_code, plain.headers["upgrade"]) == (426, "websocket")
    assert "ws://" in plain.json()["message"]
    for path in (STREAM, "/nothing"):
        answer = await http.get(path, headers=UPGRADE)
        assert (answer.status_code, answer.json()["message"]) == (404, f"there is no WebSocket at {path}")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ],
)
async def test_openais_options_have_types(http: httpx.AsyncClient, changes: dict[str, Any], param: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **changes}
    answer = await http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_openais_readers_get_openais_errors(http: httpx.AsyncClient) -> None:
    wrong = await http.get(f"{STREAM}/chat.completion.chunks?cursor=garbage")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "cursor")
    session = await http.post("/v1/chat/completions", json={}, headers={"x-llmbridge-session": "%ff"})
    assert (session.status_code, session.json()["error"]["param"]) == (400, "model")
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    session = await http.post("/v1/chat/completions", json=body, headers={"x-llmbridge-session": "%ff"})
    assert (session.status_code, session.json()["error"]["param"]) == (400, "x-llmbridge-session")
    # Said by the bridge, when the answer has begun.
    late = await http.get(f"/v1/sessions/{LONG}/models/m/chat.completion.chunks")
    assert '"type":"invalid_request_error","param":"stream.session_id"' in late.text


@pytest.mark.parametrize("path", [f"{STREAM}/chat.completion.chunks", "/api/chat/s/stream"])
async def test_an_event_source_comes_back_to_where_it_was_though_its_address_says_where_it_began(
    bridge: RunningBridge, http: httpx.AsyncClient, path: str
) -> None:
    cursors = [(await produce_tokens(bridge.bridge, ref("r"), text)).cursor for text in ("one", "two", "three")]
    async with http.stream("GET", path, params={"cursor": cursors[0]}, headers={"last-event-id": cursors[1]}) as answer:
        assert answer.status_code == 200
        seen = ""
        async for piece in answer.aiter_text():
            seen += piece
            if "three" in seen:
                break
    assert "two" not in seen


async def test_a_large_body_that_waits_for_leave_is_not_sent(gateway: RunningGateway) -> None:
    async with connection(gateway) as (reader, writer):
        writer.write(f"POST {STREAM}:produce HTTP/1.1\r\nhost: x\r\n".encode())
        writer.write(b"content-length: 99999999999\r\nexpect: 100-continue\r\n\r\n")
        # At once, without "100 Continue", and without waiting for what does not come.
        started = asyncio.get_running_loop().time()
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        assert b"http_max_body_bytes" in await reader.read()
        assert asyncio.get_running_loop().time() - started < limits.DISCARD_SECONDS


@pytest.mark.parametrize("path", [f"{STREAM}/events", "/api/chat/s/stream", f"{STREAM}/chat.completion.chunks"])
async def test_a_reader_that_never_sends_the_body_it_announced_is_let_go(
    bridge: RunningBridge,
    gateway: RunningGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    await produce_tokens(bridge.bridge, ref("r"), "one")
    async with connection(gateway) as (reader, writer):
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n".encode())
        answer = await reader.read()
        assert b"one" in answer
        # Cut, and not ended.
        assert not answer.endswith(b"0\r\n\r\n")
    assert gateway.core.link.reads == 0
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
