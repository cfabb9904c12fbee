"""Server-Sent Events: what goes over the wire, and resuming from every event."""

import json

import httpx
import pytest

from llmbridge.v1.bridge_service_pb2 import ProduceRequest
from llmbridge.v1.token_pb2 import (
    FINISH_REASON_TOOL_CALLS,
    ROLE_TOOL,
    Completion,
    Generation,
    Token,
    ToolCall,
    Usage,
)
from tests.support.calls import STOP, produce, ref
from tests.support.event_stream import BROWSER, EventStream, events_path, read_to_end, reading
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway

ODD = [
    "a\nb",
    "\r\n",
    "\u2028\u2029\x85\x0b\x0c",
    "data: x\n\nid: 7\n\n",
    "\x00\x01\x1f\x7f",
    "\ufeff",
    "😀👩‍👩‍👧‍👦é",
    '"\\',
    "",
    " ",
]


async def test_the_bytes_of_a_stream(bridge: RunningBridge, gateway: RunningGateway) -> None:
    async with reading(gateway.http, events_path()) as stream:
        await stream.until(lambda: stream.names == ["connected"])
        first = await produce(bridge.bridge, ref("r"), "Hé\n\u2028", first=1)
        await stream.until(lambda: stream.names == ["connected", "token"])
        last = await produce(bridge.bridge, ref("r"), first=2, completion=STOP)
        await stream.to_end()
    assert stream.response is not None
    headers = stream.response.headers
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["connection"] == "close"
    [retry] = stream.retries
    assert 1_000 <= retry <= 3_000
    at, end = (event.data["timestamp"] for event in stream.events[1:])
    assert (
        stream.raw
        == (
            f"retry: {retry}\n"
            'event: connected\ndata: {"type":"connected","sessionId":"s","modelId":"m","responseId":"r"}\n\n'
            f"event: token\nid: {first.cursor}\n"
            'data: {"type":"token","content":"Hé\\n\u2028","role":"assistant","sequence":1,'
            f'"timestamp":{at},"isComplete":false,'
            f'"tokens":[{{"sequence":1,"role":"assistant","timestamp":{at},"content":"Hé\\n\u2028"}}]}}\n\n'
            f"event: complete\nid: {last.cursor}\n"
            'data: {"type":"complete","content":"","role":"assistant","sequence":2,'
            f'"timestamp":{end},"isComplete":true,"finishReason":"stop"}}\n\n'
        ).encode()
    )


async def test_odd_text_comes_through_as_it_is(bridge: RunningBridge, gateway: RunningGateway) -> None:
    await produce(bridge.bridge, ref("r"), *ODD, first=1, completion=STOP)
    stream = await read_to_end(gateway.http, events_path())
    assert [token["content"] for token in stream.tokens] == ODD
    assert stream.text == "".join(ODD)


async def test_every_kind_of_content(bridge: RunningBridge, gateway: RunningGateway) -> None:
    tokens = [
        Token(reasoning="hm", timestamp_ms=1234, generation=Generation(model="x", temperature=0.5, max_tokens=9)),
        Token(tool_call=ToolCall(index=1, id="c", name="f", arguments='{"a"')),
        Token(json='{"b":1}', role=ROLE_TOOL, attributes={"k": "v"}),
        Token(text="t"),
    ]
    end = Completion(
        finish_reason=FINISH_REASON_TOOL_CALLS,
        error_message="why",
        usage=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3, reasoning_tokens=4, cached_tokens=5),
        attributes={"x": "y"},
    )
    await bridge.bridge.Produce(ProduceRequest(stream=ref("r"), tokens=tokens, first_sequence=1, completion=end))
    stream = await read_to_end(gateway.http, events_path())
    stored = stream.events[-1].data["timestamp"]
    generation = {"model": "x", "temperature": 0.5, "maxTokens": 9}
    call = {"index": 1, "id": "c", "name": "f", "arguments": '{"a"'}
    assert stream.tokens == [
        {"sequence": 1, "role": "assistant", "timestamp": 1234, "reasoning": "hm", "generation": generation},
        {"sequence": 2, "role": "assistant", "timestamp": stored, "toolCall": call},
        {"sequence": 3, "role": "tool", "timestamp": stored, "json": '{"b":1}', "attributes": {"k": "v"}},
        {"sequence": 4, "role": "assistant", "timestamp": stored, "content": "t"},
    ]
    complete = stream.events[-1].data
    assert complete["finishReason"] == "tool_calls"
    assert complete["errorMessage"] == "why"
    assert complete["attributes"] == {"x": "y"}
    assert complete["usage"] == {
        "promptTokens": 1,
        "completionTokens": 2,
        "totalTokens": 3,
        "reasoningTokens": 4,
        "cachedTokens": 5,
    }


async def read_live(bridge: RunningBridge, http: httpx.AsyncClient, **query: str) -> EventStream:
    """A stream of 6 tokens as a page sees it that is there while it grows."""
    async with reading(http, events_path(), **query) as stream:
        await stream.until(lambda: stream.names == ["connected"])
        await produce(bridge.bridge, ref("r"), "a", "b", first=1)
        await stream.until(lambda: stream.sequences == [1, 2])
        await produce(bridge.bridge, ref("r"), "c", first=3)
        await stream.until(lambda: stream.sequences == [1, 2, 3])
        await produce(bridge.bridge, ref("r"), "d", "e", "f", first=4, completion=STOP)
        await stream.to_end()
    return stream


@pytest.mark.parametrize("position", ["", "beginning", "earliest", "latest"])
async def test_resuming_from_every_event(bridge: RunningBridge, gateway: RunningGateway, position: str) -> None:
    query = {"position": position} if position else {}
    stream = await read_live(bridge, gateway.http, **query)
    assert stream.text == "abcdef"
    assert stream.names == ["connected", "token", "token", "token", "complete"]
    replay = await read_to_end(gateway.http, events_path(), **({} if position == "latest" else query))
    assert replay.text == "abcdef"
    for seen in (stream, replay):
        for number, event in enumerate(seen.events[:-1]):
            if event.id is None:
                assert event.name == "connected"
                continue
            had = EventStream(events=seen.events[: number + 1])
            for resumed in (
                await read_to_end(gateway.http, events_path(), event.id, **query),
                await read_to_end(gateway.http, events_path(), cursor=event.id, **query),
            ):
                assert had.text + resumed.text == "abcdef"
                assert had.sequences + resumed.sequences == [1, 2, 3, 4, 5, 6]
                assert resumed.names[-1] == "complete"
        again = await gateway.http.get(events_path(), headers=BROWSER | {"last-event-id": seen.events[-1].id or ""})
        assert (again.status_code, again.content) == (204, b"")


async def test_only_what_is_stored_has_an_id(bridge: RunningBridge, gateway: RunningGateway) -> None:
    answers = [await produce(bridge.bridge, ref("r"), "a", first=1)]
    async with reading(gateway.http, events_path()) as stream:
        await stream.until(lambda: stream.sequences == [1])
        answers.append(await produce(bridge.bridge, ref("r"), "b", first=2))
        await stream.until(lambda: stream.sequences == [1, 2])
        answers.append(await produce(bridge.bridge, ref("r"), first=3, completion=STOP))
        await stream.to_end()
    assert [event.id for event in stream.events] == [None, *(answer.cursor for answer in answers)]


async def test_a_page_at_latest_that_is_cut_off_before_its_first_token(
    bridge: RunningBridge, gateway: RunningGateway
) -> None:
    for response in ("empty", "begun"):
        if response == "begun":
            await produce(bridge.bridge, ref(response), "before", first=1)
        async with reading(gateway.http, events_path(response), position="latest") as stream:
            await stream.until(lambda: stream.names == ["connected"])
        first = 2 if response == "begun" else 1
        await produce(bridge.bridge, ref(response), "after", first=first, completion=STOP)
        resumed = await read_to_end(gateway.http, events_path(response), stream.last_id, position="latest")
        assert resumed.text == "after"


async def test_names_may_be_any_text(bridge: RunningBridge, gateway: RunningGateway) -> None:
    stream = ref("r/?#% é", session="a/b", model="org/model:1")
    await produce(bridge.bridge, stream, "x", first=1, completion=STOP)
    found = await read_to_end(
        gateway.http, events_path("r%2F%3F%23%25%20%C3%A9", session="a%2Fb", model="org%2Fmodel%3A1")
    )
    assert found.text == "x"
    assert found.events[0].data["responseId"] == "r/?#% é"


async def test_the_response_without_a_name(bridge: RunningBridge, gateway: RunningGateway) -> None:
    await produce(bridge.bridge, ref(""), "x", first=1, completion=STOP)
    assert (await read_to_end(gateway.http, "/v1/sessions/s/models/m/events")).text == "x"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"position": "middle"}, "position"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "1-1-00000000/"}, "cursor"),
        ({"cursor": "~"}, "cursor"),
        ({"cursor": "1~~"}, "cursor"),
    ],
)
async def test_a_wrong_request_names_the_field(gateway: RunningGateway, query: dict[str, str], field: str) -> None:
    answer = await gateway.http.get(events_path(), params=query, headers=BROWSER)
    assert answer.status_code == 400
    body = json.loads(answer.content)
    assert body["code"] == 3
    assert body["message"].startswith(f"{field}: ")
    assert body["details"][0]["metadata"] == {"field": field}


async def test_head_is_not_served(gateway: RunningGateway) -> None:
    assert (await gateway.http.head(events_path())).status_code == 405
