"""What the gateway refuses before the bridge is asked: too much, too many, too slow, from elsewhere; and by whom."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from starlette.requests import HTTPConnection

from llmbridge.gateway import limits, protocol
from llmbridge.gateway.access import ADMIN, PRODUCE, SUBSCRIBE, token_of
from llmbridge.gateway.problems import Problem
from llmbridge.v1.stream_pb2 import StreamRef
from tests.support.calls import PATIENCE_SECONDS
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway, connection, running_gateway

STREAM = "/v1/sessions/s/models/m/responses/r"
TOKEN = {"tokens": [{"text": "x"}]}
PAGE = "https://app.example.org"


async def test_a_body_that_is_too_large_is_refused(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address, http_max_body_bytes=2_000) as gateway:
        just = await gateway.http.post(f"{STREAM}:produce", json={"tokens": [{"text": "x" * 1_900}]})
        assert just.status_code == 200
        told = await gateway.http.post(f"{STREAM}:produce", json={"tokens": [{"text": "x" * 2_000}]})

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b"x" * 100

        untold = await gateway.http.post(f"{STREAM}:produce", content=pieces())
        for answer in (told, untold):
            assert (answer.status_code, answer.json()["code"]) == (413, 8)
            assert answer.json()["details"][0]["metadata"]["limit"] == "http_max_body_bytes"
        assert (await gateway.http.get(STREAM)).json()["info"]["lastSequence"] == "1"


@pytest.mark.parametrize(
    "head", [b"x-long: " + b"x" * 3_000, b"\r\n".join(b"x-%d: yyyyyyyyyy" % i for i in range(300))]
)
@pytest.mark.parametrize("ended", [True, False])
async def test_a_head_that_is_too_large_is_refused(bridge: RunningBridge, head: bytes, ended: bool) -> None:
    async with (
        running_gateway(bridge.address, http_max_header_bytes=2_000) as gateway,
        connection(gateway) as (reader, writer),
    ):
        writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n" + head + (b"\r\n\r\n" if ended else b""))
        assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
        await reader.read()


async def test_a_long_address_counts_too(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address, http_max_header_bytes=2_000) as gateway:
        assert (await gateway.http.get("/" + "x" * 3_000)).status_code == 431
        assert (await gateway.http.get("/" + "x" * 1_000)).status_code == 404


async def test_what_never_comes_is_not_waited_for(bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    async with running_gateway(bridge.address) as gateway:
        async with connection(gateway) as (reader, writer):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        async with connection(gateway) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost:")
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        async with connection(gateway) as (reader, writer):
            writer.write(f"POST {STREAM}:produce HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{{".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")


async def test_only_so_many_connections(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address, http_max_connections=3) as gateway:
        async with connection(gateway), connection(gateway), connection(gateway):
            await asyncio.sleep(0)
            async with connection(gateway) as (reader, _):
                assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                answer = await gateway.http.get("/openapi.json")
                if answer.status_code == 200:
                    break


async def test_an_event_source_for_which_there_is_no_room_is_told_to_come_back(bridge: RunningBridge) -> None:
    """At every status but 200, and at one that its origin may not see, a browser's would give up for good."""
    headers = {"accept": "text/event-stream", "origin": PAGE}
    async with running_gateway(bridge.address, http_max_connections=1, http_cors_origins=(PAGE,)) as gateway:
        async with connection(gateway):
            await asyncio.sleep(0)
            told = await gateway.http.get(f"{STREAM}/events", headers=headers)
            assert (told.status_code, told.headers["connection"]) == (200, "close")
            assert told.headers["content-type"].startswith("text/event-stream")
            assert told.headers["access-control-allow-origin"] == PAGE
            comment, retry = told.text.splitlines()
            assert comment.startswith(":")
            assert "http_max_connections" in comment
            assert 1_000 <= int(retry.removeprefix("retry: ")) <= 3_000
            other = await gateway.http.post(f"{STREAM}:produce", json=TOKEN)
            assert (other.status_code, other.headers["retry-after"], other.headers["connection"]) == (429, "1", "close")
            socket_ = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
            page = await gateway.http.get("/v1/websocket", headers=socket_ | {"sec-websocket-key": "eA=="})
            assert page.status_code == 503
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await gateway.http.get(STREAM)).status_code != 404:
                await asyncio.sleep(0.01)


async def test_so_many_at_once_that_not_even_that_can_be_told(
    bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "REFUSED_AT_ONCE", 2)
    monkeypatch.setattr(protocol, "REFUSED_HEAD_SECONDS", PATIENCE_SECONDS)
    async with (
        running_gateway(bridge.address, http_max_connections=1) as gateway,
        connection(gateway),
        connection(gateway),
        connection(gateway),
        connection(gateway) as (reader, _),
    ):
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")


async def test_nonsense_is_refused_and_does_no_harm(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address) as gateway:
        for nonsense in (
            b"\x00\x01\x02\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        ):
            async with connection(gateway) as (reader, writer):
                writer.write(nonsense)
                assert (await reader.readline()).startswith(b"HTTP/1.1 4")
        assert (await gateway.http.get(STREAM)).status_code == 404


async def preflight(gateway: RunningGateway, origin: str) -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "x-y"}
    return await gateway.http.options(f"{STREAM}:produce", headers=headers)


async def test_pages_of_listed_origins_may_call(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address, http_cors_origins=(PAGE,)) as gateway:
        allowed = await preflight(gateway, PAGE)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, PAGE)
        assert allowed.headers["access-control-allow-credentials"] == "true"
        answer = await gateway.http.post(f"{STREAM}:produce", json=TOKEN, headers={"origin": PAGE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        # What fails must be readable, too.
        missing = await gateway.http.get("/v1/sessions/s/models/none", headers={"origin": PAGE})
        assert (missing.status_code, missing.headers["access-control-allow-origin"]) == (404, PAGE)
        assert (await preflight(gateway, "https://evil.example.org")).status_code == 400
        for origin in ("https://evil.example.org", "null", f"{PAGE}.evil.org", "http://app.example.org"):
            refused = await gateway.http.post(f"{STREAM}:produce", json=TOKEN, headers={"origin": origin})
            assert (refused.status_code, refused.json()["code"]) == (403, 7)
        assert (await gateway.http.get(STREAM)).json()["info"]["lastSequence"] == "1"


async def test_its_own_pages_may_call_and_others_change_nothing(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address) as gateway:
        own = await gateway.http.post(f"{STREAM}:produce", json=TOKEN, headers={"origin": gateway.url})
        assert own.status_code == 200
        other = await gateway.http.post(f"{STREAM}:produce", json=TOKEN, headers={"origin": PAGE})
        assert (other.status_code, "LLMBRIDGE_HTTP_CORS_ORIGINS" in other.json()["message"]) == (403, True)
        deleted = await gateway.http.delete(STREAM, headers={"origin": PAGE})
        assert deleted.status_code == 403
        hidden = await gateway.http.get(STREAM, headers={"origin": PAGE})
        assert "access-control-allow-origin" not in hidden.headers
        assert (hidden.status_code, hidden.json()["info"]["lastSequence"]) == (200, "1")


async def test_where_all_pages_may_call_they_do_so_without_cookies(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address, http_cors_origins=("*",)) as gateway:
        allowed = await gateway.http.post(f"{STREAM}:produce", json=TOKEN, headers={"origin": PAGE})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "*")
        assert "access-control-allow-credentials" not in allowed.headers
        headers = {"origin": PAGE, "cookie": "llmbridge_token=t"}
        assert (await gateway.http.post(f"{STREAM}:produce", json=TOKEN, headers=headers)).status_code == 403


class OneToken:
    """Lets the token `good` do everything, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, StreamRef | None]] = []

    async def check(self, request: HTTPConnection, scope: str, stream: StreamRef | None) -> None:
        self.asked.append((scope, stream))
        if token_of(request) != "good":
            raise Problem(grpc.StatusCode.UNAUTHENTICATED, "no token")


@pytest.mark.parametrize(
    "how",
    [
        {"headers": {"authorization": "Bearer good"}},
        {"headers": {"authorization": "bearer  good"}},
        {"headers": {"cookie": "llmbridge_token=good"}},
        {"params": {"access_token": "good"}},
    ],
)
async def test_a_token_is_taken_from_header_cookie_or_query(bridge: RunningBridge, how: dict[str, Any]) -> None:
    access = OneToken()
    async with running_gateway(bridge.address, access=access) as gateway:
        wrongs: list[dict[str, Any]] = [
            {},
            {"headers": {"authorization": "Basic good"}},
            {"params": {"access_token": "bad"}},
        ]
        for wrong in wrongs:
            refused = await gateway.http.post(f"{STREAM}:produce", json=TOKEN, **wrong)
            assert (refused.status_code, refused.json()["code"]) == (401, 16)
        assert (await gateway.http.post(f"{STREAM}:produce", json=TOKEN, **how)).status_code == 200


async def test_every_request_is_asked_about_with_its_scope_and_stream(bridge: RunningBridge) -> None:
    access = OneToken()
    stream = StreamRef(session_id="s", model_id="m", response_id="r")
    async with running_gateway(bridge.address, access=access) as gateway:
        document = (await gateway.http.get("/openapi.json")).json()
        for path, operations in document["paths"].items():
            at = path.format(sessionId="s", modelId="m", responseId="r", group="g", connectionId="c")
            for verb in operations:
                access.asked.clear()
                body = {"prompt": "x", "sessionId": "s", "modelId": "m", "token": "t"} if "/v1/" not in path else {}
                for name in ("token", "prompt"):
                    if f"/{name}" not in path and not (name == "prompt" and "chat" in path):
                        body.pop(name, None)
                answer = await gateway.http.request(verb, at, json=body if verb == "post" else None)
                if path.endswith(("/streams/health", "/streams/metrics")):
                    assert answer.status_code == 200
                    continue
                assert answer.status_code == 401, (verb, path, answer.text)
                assert len(access.asked) == 1
        for verb, path, scope, about in (
            ("post", f"{STREAM}:produce", PRODUCE, stream),
            ("get", STREAM, SUBSCRIBE, stream),
            ("delete", STREAM, ADMIN, stream),
            ("get", f"{STREAM}/groups/g", ADMIN, stream),
            ("get", "/v1/sessions/s/streams", SUBSCRIBE, StreamRef(session_id="s")),
            ("get", "/v1/openStreams", ADMIN, None),
        ):
            access.asked.clear()
            await gateway.http.request(verb, path)
            assert access.asked == [(scope, about)]


async def test_small_answers_do_not_wait_for_the_other_side(bridge: RunningBridge) -> None:
    """A delayed ACK takes 40 ms on Linux; every answer goes out in two pieces."""
    clock = asyncio.get_running_loop().time
    async with running_gateway(bridge.address) as gateway:
        await gateway.http.get(STREAM)
        # One is enough: no answer that waits for the other side is quicker, and on a busy machine many are not.
        for _ in range(200):
            begun = clock()
            await gateway.http.get(STREAM)
            if clock() - begun < 0.035:
                return
        raise AssertionError("every answer took 35 ms")
