"""Streams of the real SDKs' clients without asyncio, from an endpoint on a real socket, through the real bridge."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest

from llmbridge.client import Client as AsyncClient
from llmbridge.client import Completion, FinishReason
from llmbridge.client.sync import Client
from tests.support.model_endpoint import chat_answer, model_endpoint, named_answer
from tests.support.piped import Response, read_response
from tests.support.running_bridge import RunningBridge

openai = pytest.importorskip("openai", reason="the extra 'openai' is not installed")
anthropic = pytest.importorskip("anthropic", reason="the extra 'anthropic' is not installed")

NAME = ("s", "m", "r")
_Result = TypeVar("_Result")


async def with_client(bridge: RunningBridge, work: Callable[[Client], _Result]) -> _Result:
    def run() -> _Result:
        with Client(bridge.address) as client:
            return work(client)

    return await asyncio.to_thread(run)


async def read(bridge: RunningBridge) -> Response:
    async with AsyncClient(bridge.address) as client:
        return await read_response(client, *NAME)


async def test_an_openai_stream(bridge: RunningBridge) -> None:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in ("He", "llo")]
    end = {"index": 0, "delta": {}, "finish_reason": "length"}
    answer = chat_answer(*({**head, "choices": [choice]} for choice in (*choices, end)))
    async with model_endpoint(*answer) as endpoint:

        def work(client: Client) -> Completion:
            with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="k", max_retries=0) as model:
                asked = [{"role": "user", "content": "hi"}]
                return client.pipe(model.chat.completions.create(model="tiny", messages=asked, stream=True), *NAME)

        completion = await with_client(bridge, work)
    response = await read(bridge)
    assert (response.text, response.tokens[0].generation.model) == ("Hello", "tiny")
    assert (response.completion, FinishReason.of(completion)) == (completion, FinishReason.LENGTH)


async def test_an_openai_stream_without_an_event_is_an_error(bridge: RunningBridge) -> None:
    async with model_endpoint(*chat_answer()) as endpoint:

        def work(client: Client) -> Completion:
            with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="k", max_retries=0) as model:
                asked = [{"role": "user", "content": "hi"}]
                return client.pipe(model.chat.completions.create(model="tiny", messages=asked, stream=True), *NAME)

        completion = await with_client(bridge, work)
    assert completion.error_message == "the model's stream ended without saying anything"
    assert (await read(bridge)).completion == completion


async def test_an_anthropic_helper(bridge: RunningBridge) -> None:
    message = {"id": "m", "type": "message", "role": "assistant", "model": "tiny", "content": []}
    events = (
        {"type": "message_start", "message": {**message, "usage": {"input_tokens": 5, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    )
    async with model_endpoint(*named_answer(*events)) as endpoint:

        def work(client: Client) -> Completion:
            with anthropic.Anthropic(base_url=endpoint.url, api_key="k", max_retries=0) as model:
                asked = [{"role": "user", "content": "hi"}]
                return client.pipe(model.messages.stream(model="tiny", max_tokens=9, messages=asked), *NAME)

        completion = await with_client(bridge, work)
        # A request that fails belongs to the stream too, where it is made within.
        endpoint.answer = [b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"]

        def refused(client: Client) -> None:
            with anthropic.Anthropic(base_url=endpoint.url, api_key="k", max_retries=0) as model:
                asked = [{"role": "user", "content": "hi"}]
                with pytest.raises(anthropic.AuthenticationError):
                    client.pipe(model.messages.stream(model="tiny", max_tokens=9, messages=asked), "s", "m", "refused")

        await with_client(bridge, refused)
    response = await read(bridge)
    assert (response.text, response.completion) == ("hi", completion)
    assert (completion.usage.total_tokens, FinishReason.of(completion)) == (7, FinishReason.STOP)
    async with AsyncClient(bridge.address) as client:
        told = await read_response(client, "s", "m", "refused")
    assert "answered 401" in told.completion.error_message
