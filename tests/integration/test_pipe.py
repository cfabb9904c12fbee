"""Piping SDKs' streams: which end the response gets, and that the model is let go of in time."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from llmbridge.client import (
    Client,
    ClientClosed,
    FinishReason,
    ProducerFenced,
    StreamCompleted,
    StreamName,
    pipe,
)
from tests.support.model_endpoint import STREAM, ModelEndpoint, document, model_endpoint, named_event, openai_event
from tests.support.piped import read_response
from tests.support.running_bridge import RunningBridge

openai = pytest.importorskip("openai", reason="the extra 'openai' is not installed")
anthropic = pytest.importorskip("anthropic", reason="the extra 'anthropic' is not installed")

NAME = ("s", "m", "r")
KEY = "sk-very-secret-key"
MESSAGES = [{"role": "user", "content": "hi"}]

Ask = Callable[[], Any]
Provider = Callable[..., AbstractAsyncContextManager[tuple[ModelEndpoint, Ask]]]

CHUNK = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "half"}}]}
START = {"type": "message_start", "message": {"id": "m", "type": "message", "model": "tiny", "content": []}}
BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "half"}}
TEXT = {"type": "response.output_text.delta", "output_index": 0, "delta": "half"}
OPENAI_HALF = (STREAM, openai_event(CHUNK))
RESPONSES_HALF = (STREAM, named_event(TEXT))
ANTHROPIC_HALF = (STREAM, named_event(START), named_event(BLOCK))


@asynccontextmanager
async def chat(*answer: bytes | None, half: tuple[bytes, ...] = OPENAI_HALF) -> AsyncIterator[tuple[Any, Ask]]:
    async with (
        model_endpoint(*half, *answer) as endpoint,
        openai.AsyncOpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0) as client,
    ):
        yield endpoint, lambda: client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)


@asynccontextmanager
async def responses(*answer: bytes | None, half: tuple[bytes, ...] = RESPONSES_HALF) -> AsyncIterator[tuple[Any, Ask]]:
    async with (
        model_endpoint(*half, *answer) as endpoint,
        openai.AsyncOpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0) as client,
    ):
        yield endpoint, lambda: client.responses.create(model="tiny", input="hi", stream=True)


@asynccontextmanager
async def messages(*answer: bytes | None, half: tuple[bytes, ...] = ANTHROPIC_HALF) -> AsyncIterator[tuple[Any, Ask]]:
    async with (
        model_endpoint(*half, *answer) as endpoint,
        anthropic.AsyncAnthropic(base_url=endpoint.url, api_key=KEY, max_retries=0) as client,
    ):
        yield endpoint, lambda: client.messages.create(model="tiny", max_tokens=9, messages=MESSAGES, stream=True)


@asynccontextmanager
async def helper(*answer: bytes | None, half: tuple[bytes, ...] = ANTHROPIC_HALF) -> AsyncIterator[tuple[Any, Ask]]:
    async with (
        model_endpoint(*half, *answer) as endpoint,
        anthropic.AsyncAnthropic(base_url=endpoint.url, api_key=KEY, max_retries=0) as client,
    ):
        yield endpoint, lambda: client.messages.stream(model="tiny", max_tokens=9, messages=MESSAGES)


each_provider = pytest.mark.parametrize("provider", [chat, responses, messages, helper])


@pytest.fixture
async def client(bridge: RunningBridge) -> AsyncIterator[Client]:
    async with Client(bridge.address) as client:
        yield client


async def closed_soon(endpoint: ModelEndpoint) -> None:
    """Wait until the model is let go of: sooner than what a source that hangs may take to be closed, 5 s."""
    async with asyncio.timeout(4):
        await endpoint.abandoned.wait()


async def half_is_read(client: Client) -> None:
    async with asyncio.timeout(20), client.subscribe(*NAME) as subscription:
        async for message in subscription:
            if message.text == "half":
                return


@each_provider
async def test_a_cancel_stops_a_model_that_is_silent(client: Client, provider: Provider) -> None:
    async with provider() as (endpoint, ask):
        piping = asyncio.create_task(client.pipe(ask(), *NAME))
        await half_is_read(client)
        assert not endpoint.abandoned.is_set()
        await client.cancel(*NAME)
        await closed_soon(endpoint)
        with pytest.raises(StreamCompleted) as raised:
            await piping
        assert raised.value.finish_reason is FinishReason.CANCELLED


async def test_a_takeover_stops_a_model_that_is_silent(client: Client) -> None:
    async with chat() as (endpoint, ask):
        piping = asyncio.create_task(client.pipe(ask(), *NAME))
        await half_is_read(client)
        takeover = await client.takeover(*NAME)
        async with takeover.writer as writer:
            await writer.text(" and half")
            await writer.flush()
            await closed_soon(endpoint)
            with pytest.raises(ProducerFenced):
                await piping
    assert (await read_response(client, *NAME)).text == "half and half"


async def test_a_cancel_stops_a_model_that_has_not_begun_to_answer(client: Client) -> None:
    await client.streams.create(*NAME)
    async with chat(half=()) as (endpoint, ask):
        piping = asyncio.create_task(client.pipe(ask(), *NAME))
        async with asyncio.timeout(20):
            await endpoint.said.wait()
        await client.cancel(*NAME)
        await closed_soon(endpoint)
        with pytest.raises(StreamCompleted):
            await piping


@each_provider
async def test_cancelling_the_task_stops_the_model_and_ends_the_stream(client: Client, provider: Provider) -> None:
    async with provider() as (endpoint, ask):
        piping = asyncio.create_task(client.pipe(ask(), *NAME))
        await half_is_read(client)
        piping.cancel()
        await closed_soon(endpoint)
        with pytest.raises(asyncio.CancelledError):
            await piping
    response = await read_response(client, *NAME)
    assert (response.text, response.finish_reason) == ("half", FinishReason.ERROR)


async def test_an_error_beside_the_pipe_stops_the_model(client: Client) -> None:
    async def fail() -> None:
        await half_is_read(client)
        raise LookupError("beside")

    async with chat() as (endpoint, ask):
        with pytest.raises(ExceptionGroup, match="unhandled"):  # noqa: PT012 - what raises is the end of a block
            async with client.write(*NAME) as writer, asyncio.TaskGroup() as group:
                group.create_task(pipe(ask(), writer))
                group.create_task(fail())
        await closed_soon(endpoint)
    assert (await read_response(client, *NAME)).finish_reason is FinishReason.ERROR


@each_provider
async def test_a_connection_that_is_reset_ends_the_stream_with_an_error(client: Client, provider: Provider) -> None:
    async with provider(None) as (_, ask):
        with pytest.raises(Exception, match=r"(?i)connection|peer closed|read"):
            await client.pipe(ask(), *NAME)
    response = await read_response(client, *NAME)
    assert (response.text, response.finish_reason) == ("half", FinishReason.ERROR)
    assert response.completion.error_message.startswith("the connection to the model endpoint broke: ")


@pytest.mark.parametrize(
    ("provider", "event"),
    [
        (chat, openai_event({"error": {"message": f"Overloaded, {KEY}", "type": "server_error"}})),
        (messages, named_event({"type": "error", "error": {"type": "overloaded", "message": f"Overloaded, {KEY}"}})),
        (helper, named_event({"type": "error", "error": {"type": "overloaded", "message": f"Overloaded, {KEY}"}})),
    ],
)
async def test_an_error_in_mid_stream_is_told_without_secrets(client: Client, provider: Provider, event: bytes) -> None:
    async with provider(event) as (_, ask):
        with pytest.raises((openai.APIError, anthropic.APIError), match="Overloaded"):
            await client.pipe(ask(), *NAME)
    response = await read_response(client, *NAME)
    assert (response.text, response.finish_reason) == ("half", FinishReason.ERROR)
    assert "Overloaded, [removed]" in response.completion.error_message
    assert response.completion.error_message.startswith("the model endpoint failed with ")


@each_provider
async def test_a_refused_request_ends_the_stream_with_an_error(client: Client, provider: Provider) -> None:
    body = {"type": "error", "error": {"type": "authentication_error", "message": f"wrong key {KEY}"}}
    async with provider(half=(document("401 Unauthorized", body),)) as (_, ask):
        with pytest.raises((openai.AuthenticationError, anthropic.AuthenticationError)):
            await client.pipe(ask(), *NAME)
    response = await read_response(client, *NAME)
    assert response.completion.error_message == "the model endpoint answered 401: wrong key [removed]"


@each_provider
async def test_a_stream_that_just_ends_is_an_error(client: Client, provider: Provider) -> None:
    async with provider(b"0\r\n\r\n") as (_, ask):
        completion = await client.pipe(ask(), *NAME)
    response = await read_response(client, *NAME)
    assert (response.text, response.finish_reason) == ("half", FinishReason.ERROR)
    assert response.completion == completion


@each_provider
async def test_a_stream_that_says_nothing_is_an_error(client: Client, provider: Provider) -> None:
    async with provider(b"0\r\n\r\n", half=(STREAM,)) as (_, ask):
        await client.pipe(ask(), *NAME)
    assert (await read_response(client, *NAME)).finish_reason is FinishReason.ERROR


async def test_an_answer_that_is_not_streamed_is_refused(client: Client) -> None:
    answer = {"id": "c", "object": "chat.completion", "choices": [{"message": {"content": "whole"}}]}
    async with (
        model_endpoint(document("200 OK", answer)) as endpoint,
        openai.AsyncOpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0) as sdk,
    ):
        with pytest.raises(TypeError, match="stream=True"):
            await client.pipe(sdk.chat.completions.create(model="tiny", messages=MESSAGES), *NAME)


async def test_a_request_that_is_never_made_is_let_go_of(bridge: RunningBridge) -> None:
    async with chat() as (endpoint, ask):
        async with Client(bridge.address) as client:
            pass
        with pytest.raises(ClientClosed):
            await client.pipe(ask(), *NAME)
        with pytest.raises(TypeError, match="not both"):
            await client.pipe(ask(), StreamName("s", "m"), "m")
    assert endpoint.connections <= 1


def test_the_client_needs_no_sdk() -> None:
    code = (
        "import sys; sys.modules.update(openai=None, anthropic=None)\n"
        "import llmbridge.client, llmbridge.client.adapters\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=45)
