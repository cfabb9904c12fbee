"""Piping an OpenAI-compatible endpoint's answer: over real HTTP, from a server that says what the test wants."""

import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmbridge.cli.openai_source import Endpoint, ModelEndpointError, Question, find_model_name, pipe_answer
from llmbridge.client import FinishReason
from llmbridge.v1.token_pb2 import FINISH_REASON_STOP, Token, Usage
from tests.support.model_endpoint import STREAM, ModelEndpoint, document, model_endpoint, piece

pytest.importorskip("openai", reason="the extra 'openai' is not installed")


def chunk(text: str = "", finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}
    return f"data: {json.dumps(event)}\n\n".encode()


@asynccontextmanager
async def endpoint(*answer: bytes | None) -> AsyncIterator[tuple[ModelEndpoint, Endpoint]]:
    async with model_endpoint(*answer) as model:
        yield model, Endpoint(f"{model.url}/v1")


class Sink:
    """Keeps what is written to it; `fail_at` is the token that it refuses."""

    def __init__(self, fail_at: str = "") -> None:
        self.texts: list[str] = []
        self.ends: list[tuple[FinishReason, str, Usage | None]] = []
        self._fail_at = fail_at

    async def write(self, token: Token, /) -> None:
        if token.text == self._fail_at:
            raise RuntimeError("stopped by a reader")
        self.texts.append(token.text)

    async def complete(
        self,
        finish_reason: FinishReason,
        *,
        error_message: str,
        usage: Usage | None,
        attributes: Mapping[str, str] | None,
    ) -> None:
        assert not attributes
        self.ends.append((finish_reason, error_message, usage))


async def test_an_answer_goes_into_the_sink_and_is_told_on_the_way() -> None:
    parts = [piece(chunk(text)) for text in ("Hé", "llo", " you")]
    events: list[str] = []
    sink = Sink()
    async with endpoint(STREAM, *parts, piece(chunk(finish_reason="stop") + b"data: [DONE]\n\n"), b"0\r\n\r\n") as (
        model,
        address,
    ):
        completion = await pipe_answer(
            address,
            Question("tiny", "hello?", temperature=0.5, max_tokens=9, seed=3),
            sink,
            on_ask=lambda: events.append("ask"),
            on_chunk=lambda one: events.append(f"chunk {one.choices[0].delta.content}"),
            on_token=lambda token: events.append(f"token {token.text} after {len(sink.texts)}"),
        )
    assert sink.texts == ["Hé", "llo", " you"]
    assert sink.ends == [(FinishReason.STOP, "", None)]
    assert completion.finish_reason == FINISH_REASON_STOP
    assert events[:3] == ["ask", "chunk Hé", "token Hé after 0"]
    assert model.asked == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "max_tokens": 9,
            "seed": 3,
        }
    ]


async def test_parameters_that_are_not_given_are_not_sent() -> None:
    async with endpoint(STREAM, piece(chunk("a", "stop") + b"data: [DONE]\n\n"), b"0\r\n\r\n") as (model, address):
        await pipe_answer(address, Question("tiny", "hello?"), Sink())
    assert set(model.asked[0]) == {"model", "messages", "stream", "stream_options"}


async def test_the_endpoint_learns_when_the_sink_takes_no_more() -> None:
    async with endpoint(STREAM, piece(chunk("a")), piece(chunk("b")), piece(chunk("c"))) as (model, address):
        sink = Sink(fail_at="b")
        with pytest.raises(RuntimeError, match="stopped by a reader"):
            await pipe_answer(address, Question("tiny", "hello?"), sink)
        await model.abandoned.wait()
    assert sink.texts == ["a"]
    assert sink.ends == []


async def test_a_connection_lost_in_the_middle_is_told_to_the_caller_and_to_readers() -> None:
    async with endpoint(STREAM, piece(chunk("a")), None) as (_, address):
        sink = Sink()
        with pytest.raises(ModelEndpointError, match=r"^the connection to http://127.0.0.1:\d+/v1 failed: .+"):
            await pipe_answer(address, Question("tiny", "hello?"), sink)
    assert sink.texts == ["a"]
    [(reason, message, _)] = sink.ends
    assert reason is FinishReason.ERROR
    assert message.startswith("the connection to http://127.0.0.1:")


async def test_several_choices_are_told() -> None:
    several = json.loads(chunk("a").removeprefix(b"data: "))
    several["choices"] *= 2
    async with endpoint(STREAM, piece(f"data: {json.dumps(several)}\n\n".encode())) as (_, address):
        with pytest.raises(ModelEndpointError, match="several choices"):
            await pipe_answer(address, Question("tiny", "hello?"), Sink())


async def test_a_refusal_is_told_with_its_status_in_one_line() -> None:
    async with endpoint(document("401 Unauthorized", {"error": {"message": "bad\nkey"}})) as (_, address):
        with pytest.raises(ModelEndpointError, match=r"answered 401: .*key") as raised:
            await pipe_answer(address, Question("tiny", "hello?"), Sink())
    assert "\n" not in str(raised.value)


async def test_an_error_in_the_stream_is_told() -> None:
    error = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
    async with endpoint(STREAM, piece(chunk("a") + error), b"0\r\n\r\n") as (_, address):
        with pytest.raises(ModelEndpointError, match=r"failed: .*out of memory"):
            await pipe_answer(address, Question("tiny", "hello?"), Sink())


def models(*names: str) -> bytes:
    return document("200 OK", {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


async def test_the_only_model_needs_no_choice() -> None:
    async with endpoint(models("tiny")) as (_, address):
        assert await find_model_name(address) == "tiny"


@pytest.mark.parametrize(("names", "some"), [(("a", "b"), "has a, b$"), ((), "has none$")])
async def test_several_models_or_none_call_for_a_choice(names: tuple[str, ...], some: str) -> None:
    async with endpoint(models(*names)) as (_, address):
        with pytest.raises(ModelEndpointError, match=some):
            await find_model_name(address)


async def ask(address: Endpoint) -> None:
    await pipe_answer(address, Question("tiny", "hello?"), Sink())


async def ask_for_models(address: Endpoint) -> None:
    await find_model_name(address)


@pytest.mark.parametrize("use", [ask, ask_for_models])
async def test_the_missing_package_is_named(use: Callable[[Endpoint], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModelEndpointError, match=r"pip install 'llmbridge\[openai\]'"):
        await use(Endpoint("http://127.0.0.1:1/v1"))
