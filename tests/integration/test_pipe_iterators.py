"""Piping what is no SDK's: strings, tokens, generators that fail or hang, and what can't be read at all."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmbridge.client import Client, FinishReason, SourceError, StreamCompleted, Token, Usage, pipe
from llmbridge.client.adapters import Records, anthropic_records, openai_records, text_records
from llmbridge.v1.token_pb2 import FINISH_REASON_LENGTH, Completion
from tests.support.piped import ODD, read_response
from tests.support.running_bridge import RunningBridge

NAME = ("s", "m", "r")


@pytest.fixture
async def client(bridge: RunningBridge) -> AsyncIterator[Client]:
    async with Client(bridge.address) as client:
        yield client


async def test_strings(client: Client) -> None:
    async def said() -> AsyncIterator[str]:
        for piece in ("", *ODD, "a\ud83e", "\udd99", "\ud83e"):
            yield piece

    completion = await client.pipe(said(), *NAME)
    response = await read_response(client, *NAME)
    assert response.text.encode() == f"{ODD}a🦙\ufffd".encode()
    assert (response.finish_reason, response.completion) == (FinishReason.STOP, completion)
    assert all(token.timestamp_ms for token in response.tokens)


async def test_nothing(client: Client) -> None:
    async def said() -> AsyncIterator[str]:
        return
        yield

    await client.pipe(said(), *NAME)
    response = await read_response(client, *NAME)
    assert (list(response.tokens), response.finish_reason) == ([], FinishReason.STOP)


async def test_tokens_and_an_end_of_ones_own(client: Client) -> None:
    closed = asyncio.Event()
    own = Token(reasoning="hm", timestamp_ms=7)
    end = Completion(finish_reason=FINISH_REASON_LENGTH, usage=Usage(total_tokens=3), attributes={"k": "v"})

    async def said() -> AsyncIterator[str | Token | Completion]:
        try:
            yield own
            yield "so"
            yield end
            yield "not read"
        finally:
            closed.set()

    async with client.write(*NAME) as writer:
        assert await pipe(text_records(said(), temperature=0.5, max_tokens=9), writer) == end
    assert closed.is_set()
    assert own == Token(reasoning="hm", timestamp_ms=7)
    response = await read_response(client, *NAME)
    assert (response.reasoning, response.text, response.completion) == ("hm", "so", end)
    assert response.tokens[0].timestamp_ms == 7
    assert (response.tokens[0].generation.temperature, response.tokens[0].generation.max_tokens) == (0.5, 9)


async def test_a_generator_that_fails_names_its_error_only(client: Client) -> None:
    async def said() -> AsyncIterator[str]:
        yield "half"
        raise LookupError("postgres://user:password@db")

    with pytest.raises(LookupError, match="postgres"):
        await client.pipe(said(), *NAME)
    response = await read_response(client, *NAME)
    assert (response.text, response.finish_reason) == ("half", FinishReason.ERROR)
    assert response.completion.error_message == "the source of the response failed: LookupError"


async def test_a_generator_may_say_what_readers_see(client: Client) -> None:
    async def said() -> AsyncIterator[str]:
        yield "half"
        raise SourceError("the model is\nasleep")

    with pytest.raises(SourceError):
        await client.pipe(said(), *NAME)
    assert (await read_response(client, *NAME)).completion.error_message == "the model is asleep"


async def test_a_generator_is_closed_when_the_writer_takes_no_more(client: Client) -> None:
    closed = asyncio.Event()

    async def said() -> AsyncIterator[str]:
        try:
            while True:
                yield "half"
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    piping = asyncio.create_task(client.pipe(said(), *NAME))
    async with asyncio.timeout(20), client.subscribe(*NAME) as subscription:
        await anext(subscription)
        await client.cancel(*NAME)
        with pytest.raises(StreamCompleted):
            await piping
    assert closed.is_set()


@pytest.mark.parametrize("source", ["a text", b"bytes", ["a", "list"], 5])
async def test_what_can_not_be_read_is_refused(client: Client, source: Any) -> None:
    with pytest.raises(TypeError, match="async iterator"):
        await client.pipe(source, *NAME)


@pytest.mark.parametrize("item", [b"bytes", 5, None])
async def test_items_of_another_kind_are_refused(client: Client, item: object) -> None:
    async def said() -> AsyncIterator[object]:
        yield item

    with pytest.raises(TypeError, match=type(item).__name__):
        await client.pipe(said(), *NAME)
    assert (await read_response(client, *NAME)).finish_reason is FinishReason.ERROR


@pytest.mark.parametrize("fails", [False, True])
async def test_a_context_manager_is_left_if_it_was_entered(client: Client, fails: bool) -> None:
    happened: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncIterator[str]]:
        async def said() -> AsyncIterator[str]:
            yield "a"

        happened.append("entered")
        if fails:
            raise SourceError("shut")
        yield said()
        happened.append("left")

    if fails:
        with pytest.raises(SourceError):
            await client.pipe(opened(), *NAME)
    else:
        await client.pipe(opened(), *NAME)
    assert happened == (["entered"] if fails else ["entered", "left"])
    response = await read_response(client, *NAME)
    assert (response.text, response.completion.error_message) == (("", "shut") if fails else ("a", ""))


@pytest.mark.parametrize("make", [openai_records, anthropic_records])
async def test_leaving_records_early_closes_the_source(make: Callable[[Any], Records]) -> None:
    closed = asyncio.Event()

    async def said() -> AsyncIterator[dict[str, Any]]:
        try:
            yield {"choices": [{"index": 0, "delta": {"content": "half"}}]}
            yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "half"}}
        finally:
            closed.set()

    async with make(said()) as records:
        first = await anext(records)
        assert isinstance(first, Token)
        assert first.text == "half"
    assert closed.is_set()
    with pytest.raises(StopAsyncIteration):
        await anext(records)


async def test_a_source_that_hangs_when_closed_holds_up_nothing_for_long(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llmbridge.client.adapters.records._CLOSE_SECONDS", 0.05)

    class Hanging:
        def __aiter__(self) -> AsyncIterator[str]:
            async def said() -> AsyncIterator[str]:
                yield "a"

            return said()

        async def aclose(self) -> None:
            await asyncio.Event().wait()

    async with asyncio.timeout(20):
        await client.pipe(Hanging(), *NAME)
    assert "could not close Hanging: TimeoutError" in caplog.text
    assert (await read_response(client, *NAME)).text == "a"
