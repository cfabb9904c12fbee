"""OpenAI's SDKs for Python and node, pointed at the gateway by their base URL alone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmbridge.v1.bridge_service_pb2 import ProduceRequest
from llmbridge.v1.token_pb2 import FINISH_REASON_ERROR, FINISH_REASON_TOOL_CALLS, Completion, Token, ToolCall, Usage
from tests.support.calls import produce, ref
from tests.support.fake_model import FakeModel, fake_model, text, tool_call
from tests.support.model_endpoint import document, model_endpoint
from tests.support.node_client import installed_packages, node
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway, running_gateway

openai = pytest.importorskip("openai")
from openai import AsyncOpenAI, AsyncStream  # noqa: E402
from openai.types.chat import ChatCompletionChunk  # noqa: E402

pytestmark = pytest.mark.timeout(300)

QUESTION: Any = [{"role": "user", "content": "Hello"}]
STREAM = ref("r 1", session="s/1")
MODELS = ("tiny", "org/large")
PATH = "/sessions/s%2F1/models/m/responses/r%201/chat.completion.chunks"


@pytest.fixture
async def model() -> AsyncIterator[FakeModel]:
    async with fake_model() as running:
        yield running


@pytest.fixture
async def gateway(bridge: RunningBridge, model: FakeModel) -> AsyncIterator[RunningGateway]:
    async with running_gateway(bridge.address, upstream_url=model.url, upstream_model="m") as running:
        yield running


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(gateway) as made:
        yield made


def sdk(gateway: RunningGateway) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


async def test_a_streamed_answer_with_its_usage(client: AsyncOpenAI, model: FakeModel) -> None:
    model.answers.append(text("Hel", "lo."))
    stream = await client.chat.completions.create(
        model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}, temperature=0.25
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 2, 5)
    assert len({chunk.id for chunk in chunks}) == 1
    assert model.asked[0]["temperature"] == 0.25


async def test_a_whole_answer_with_tool_calls(client: AsyncOpenAI, model: FakeModel) -> None:
    model.answers += [text("Hello."), tool_call("weather", '{"city":', ' "Oslo"}')]
    first = await client.chat.completions.create(model="m", messages=QUESTION)
    assert (first.choices[0].message.content, first.choices[0].finish_reason) == ("Hello.", "stop")
    assert first.usage is not None
    assert first.usage.total_tokens == 5
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    second = await client.chat.completions.create(model="m", messages=QUESTION, tools=tools)
    [call] = second.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.id, call.function.name, call.function.arguments) == ("call-1", "weather", '{"city": "Oslo"}')
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == (None, "tool_calls")
    assert model.asked[1]["tools"] == tools


@pytest.mark.parametrize(
    ("default", "expected"), [("", ["tiny", "org/large"]), ("org/large", ["org/large", "tiny"]), ("m", ["m", "tiny"])]
)
async def test_the_models_are_those_of_the_model_server(
    bridge: RunningBridge, default: str, expected: list[str]
) -> None:
    said = [{"id": name, "object": "model", "created": 7, "owned_by": "us", "meta": {"n": 1}} for name in MODELS]
    async with (
        model_endpoint(document("200 OK", {"object": "list", "data": said})) as endpoint,
        running_gateway(bridge.address, upstream_url=f"{endpoint.url}/v1", upstream_model=default) as gateway,
        sdk(gateway) as client,
    ):
        models = [model async for model in client.models.list()]
    assert [model.id for model in models][: len(expected)] == expected
    [tiny] = [model for model in models if model.id == "tiny"]
    assert tiny.to_dict() == said[0]
    assert endpoint.heads[0].startswith("GET /v1/models ")


async def test_the_models_of_a_server_that_lists_none_or_of_none(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address) as gateway, sdk(gateway) as client:
        assert (await client.models.list()).data == []
    async with (
        model_endpoint(document("404 Not Found", {"error": {"message": "no such page"}})) as endpoint,
        running_gateway(bridge.address, upstream_url=f"{endpoint.url}/v1", upstream_model="m") as gateway,
        sdk(gateway) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["m"]


async def test_the_models_of_a_server_that_fails_are_an_error(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address, upstream_url="http://127.0.0.1:1/v1") as gateway, sdk(gateway) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.models.list()
    assert caught.value.status_code == 502
    assert "the connection to the model endpoint broke" in caught.value.message


async def test_the_answer_is_a_stream_that_others_can_read(
    client: AsyncOpenAI, gateway: RunningGateway, model: FakeModel
) -> None:
    model.answers.append(text("Hello."))
    raw = await client.chat.completions.with_raw_response.create(
        model="m", messages=QUESTION, extra_headers={"x-llmbridge-session": "my%20chat"}
    )
    assert raw.headers["x-llmbridge-session"] == "my%20chat"
    path = f"/v1/sessions/my%20chat/models/m/responses/{raw.headers['x-llmbridge-response']}"
    info = (await gateway.http.get(path)).json()["info"]
    assert info["state"] == "STREAM_STATE_SEALED"


async def test_whoever_closes_the_stream_stops_the_model(client: AsyncOpenAI, model: FakeModel) -> None:
    model.answers.append(text("first ", rambles=True))
    stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    async for chunk in stream:
        # Tokens that come together may share a chunk.
        if (chunk.choices[0].delta.content or "").startswith("first "):
            break
    await stream.close()
    async with asyncio.timeout(30):
        await model.left.wait()


async def test_whoever_gives_up_waiting_stops_the_model(client: AsyncOpenAI, model: FakeModel) -> None:
    model.answers.append(text("first ", rambles=True))
    asking = asyncio.create_task(client.chat.completions.create(model="m", messages=QUESTION))
    async with asyncio.timeout(30):
        while not model.asked:
            await asyncio.sleep(0.005)
        asking.cancel()
        await model.left.wait()
    assert asking.done()


@pytest.mark.parametrize("streamed", [False, True])
async def test_errors_are_those_of_the_sdk(client: AsyncOpenAI, model: FakeModel, streamed: bool) -> None:
    failed = text()
    failed.status = 400
    model.answers.append(failed)
    with pytest.raises(openai.APIError, match="no more GPUs"):
        await ask(client, streamed)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="m", messages=[], stream=streamed)
    assert refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="m", messages=QUESTION, n=2, stream=streamed)
    assert refused.value.param == "n"


async def test_without_a_model_server_there_is_a_clear_error(bridge: RunningBridge) -> None:
    async with (
        running_gateway(bridge.address) as gateway,
        AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIStatusError, match="LLMBRIDGE_UPSTREAM_URL"):
            await ask(client, False)


async def test_any_stream_can_be_read_and_resumed(
    client: AsyncOpenAI, bridge: RunningBridge, gateway: RunningGateway
) -> None:
    await bridge.bridge.Produce(
        ProduceRequest(
            stream=STREAM,
            tokens=[
                Token(reasoning="Hmm."),
                Token(text="Hel"),
                Token(text="lo"),
                Token(tool_call=ToolCall(index=0, id="a", name="clock")),
                Token(text="no", attributes={"refusal": "true"}),
                Token(json="[1]"),
            ],
        )
    )
    end = Completion(finish_reason=FINISH_REASON_TOOL_CALLS, usage=Usage(total_tokens=7))
    answer = await produce(bridge.bridge, STREAM, "!", completion=end)
    chunks = await read(client, PATH)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert [delta.content for delta in deltas if delta.content] == ["Hello", "[1]!"] or [
        delta.content for delta in deltas if delta.content
    ] == ["Hello", "[1]", "!"]
    assert [delta.refusal for delta in deltas if delta.refusal] == ["no"]
    assert [(delta.model_extra or {}).get("reasoning_content") for delta in deltas if delta.model_extra] == ["Hmm."]
    [call] = [call for delta in deltas for call in delta.tool_calls or []]
    assert call.function is not None
    assert (call.id, call.function.name) == ("a", "clock")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 7
    async with gateway.http.stream("GET", f"/v1{PATH}?include_usage=false") as response:
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert lines[-3] == f"id: {answer.cursor}"
    cursors = [line[4:] for line in lines if line.startswith("id: ")]
    rest = await read(client, f"{PATH}?cursor={cursors[-1]}")
    assert rest == []


async def test_a_failed_generation_is_an_error_and_a_broken_one_no_end(
    client: AsyncOpenAI, bridge: RunningBridge, gateway: RunningGateway
) -> None:
    end = Completion(finish_reason=FINISH_REASON_ERROR, error_message="the GPU is on fire")
    await produce(bridge.bridge, STREAM, "half", completion=end)
    with pytest.raises(openai.APIError, match="the GPU is on fire"):
        await read(client, PATH)
    await produce(bridge.bridge, ref("open"), "half")
    stream = await open_stream(client, "/sessions/s/models/m/responses/open/chat.completion.chunks")
    await anext(stream)
    gateway.core.link.drain()
    with pytest.raises(Exception, match=r"incomplete|peer closed|Connection"):
        [chunk async for chunk in stream]


@pytest.mark.parametrize("what", ["chunks", "whole", PATH])
async def test_the_sdk_for_node(bridge: RunningBridge, gateway: RunningGateway, model: FakeModel, what: str) -> None:
    installed_packages()
    model.answers.append(text("Hel", "lo."))
    await produce(bridge.bridge, STREAM, "Hello.", completion=Completion(finish_reason=FINISH_REASON_TOOL_CALLS))
    async with node("openai.mjs", f"{gateway.url}/v1", "m", what) as program:
        lines = await program.all()
    assert lines[-1] == {"end": True}
    if what == "whole":
        assert lines[0]["choices"][0]["message"]["content"] == "Hello."
    else:
        choices = [choice for line in lines[:-1] for choice in line["choices"]]
        assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Hello."
    if what == "chunks":
        assert lines[-2]["usage"]["total_tokens"] == 5


async def ask(client: AsyncOpenAI, streamed: bool) -> None:
    answer: Any = await client.chat.completions.create(model="m", messages=QUESTION, stream=streamed)
    if streamed:
        [chunk async for chunk in answer]


async def open_stream(client: AsyncOpenAI, path: str) -> AsyncStream[ChatCompletionChunk]:
    return await client.get(path, cast_to=ChatCompletionChunk, stream=True, stream_cls=AsyncStream[ChatCompletionChunk])


async def read(client: AsyncOpenAI, path: str) -> list[ChatCompletionChunk]:
    return [chunk async for chunk in await open_stream(client, path)]
