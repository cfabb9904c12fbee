"""Streams of the real Anthropic SDK, from an endpoint on a real socket, through the real bridge."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmbridge.client import Client, FinishReason, Usage
from tests.support.model_endpoint import ModelEndpoint, model_endpoint, named_answer
from tests.support.piped import ODD, Response, read_response
from tests.support.running_bridge import RunningBridge

anthropic = pytest.importorskip("anthropic", reason="the extra 'anthropic' is not installed")

STREAM = ("s", "m", "r")
ASKED = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def sdk(*answer: bytes | None) -> AsyncIterator[tuple[ModelEndpoint, Any]]:
    async with (
        model_endpoint(*answer) as endpoint,
        anthropic.AsyncAnthropic(base_url=endpoint.url, api_key="sk-ant-very-secret", max_retries=0) as client,
    ):
        yield endpoint, client


def events_of(model: Any) -> Any:
    return model.messages.create(**ASKED, stream=True)


def helper_of(model: Any) -> Any:
    return model.messages.stream(**ASKED)


both = pytest.mark.parametrize("ask", [events_of, helper_of])


async def pipe(bridge: RunningBridge, ask: Callable[[Any], Any], *events: dict[str, Any]) -> Response:
    async with sdk(*named_answer(*events)) as (_, model), Client(bridge.address) as client:
        completion = await client.pipe(ask(model), *STREAM)
        response = await read_response(client, *STREAM)
    assert response.completion == completion
    return response


def start(**usage: int) -> dict[str, Any]:
    counts = {"input_tokens": 5, "output_tokens": 1, **usage}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "tiny-3", "content": [], "usage": counts}
    return {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None}}


def block(index: int, kind: str, *deltas: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def texts(index: int, *pieces: str) -> list[dict[str, Any]]:
    return block(index, "text", *({"type": "text_delta", "text": piece} for piece in pieces), text="")


def stop(reason: str | None = "end_turn", **more: Any) -> list[dict[str, Any]]:
    delta = {"stop_reason": reason, "stop_sequence": None, **more.pop("delta", {})}
    usage = {"output_tokens": 3, **more.pop("usage", {})}
    return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]


def pieces_of_json(*pieces: str) -> list[dict[str, str]]:
    return [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]


@both
async def test_a_message_arrives_whole(bridge: RunningBridge, ask: Callable[[Any], Any]) -> None:
    thoughts = [{"type": "thinking_delta", "thinking": "Hm, "}, {"type": "thinking_delta", "thinking": ODD}]
    signature = {"type": "signature_delta", "signature": "c2ln" * 1000}
    response = await pipe(
        bridge,
        ask,
        start(cache_read_input_tokens=20, cache_creation_input_tokens=100),
        {"type": "ping"},
        *block(0, "thinking", *thoughts, signature, thinking="", signature=""),
        *block(1, "redacted_thinking", data="ZW5j"),
        *texts(2, *ODD),
        *block(3, "tool_use", *pieces_of_json("", '{"at":', '"é"}'), id="a", name="time", input={}),
        *block(4, "server_tool_use", *pieces_of_json('{"query":"x"}'), id="x", name="web_search", input={}),
        *block(5, "tool_use", *pieces_of_json('{"zone":"CET"}'), id="b", name="date", input={}),
        *block(6, "tool_use", id="c", name="nothing", input={}),
        *block(7, "tool_use", id="d", name="at_once", input={"ü": 1}),
        *texts(8, " And more."),
        *stop("tool_use", usage={"output_tokens": 50, "output_tokens_details": {"thinking_tokens": 7}}),
    )
    assert response.text == ODD + " And more."
    assert response.reasoning == "Hm, " + ODD
    notes = [dict(token.attributes) for token in response.tokens if token.attributes]
    assert notes == [{"signature": "c2ln" * 1000}, {"redacted_thinking": "ZW5j"}]
    assert [call[:2] for call in response.calls] == [("a", "time"), ("b", "date"), ("c", "nothing"), ("d", "at_once")]
    assert [json.loads(call[2]) for call in response.calls] == [{"at": "é"}, {"zone": "CET"}, {}, {"ü": 1}]
    assert response.finish_reason is FinishReason.TOOL_CALLS
    assert not response.completion.attributes
    assert response.completion.usage == Usage(
        prompt_tokens=125, completion_tokens=50, total_tokens=175, reasoning_tokens=7, cached_tokens=20
    )
    assert response.tokens[0].generation.model == "tiny-3"


@pytest.mark.parametrize(
    ("said", "meant", "attributes"),
    [
        ("end_turn", FinishReason.STOP, {}),
        ("stop_sequence", FinishReason.STOP, {"stop_reason": "stop_sequence"}),
        ("pause_turn", FinishReason.STOP, {"stop_reason": "pause_turn"}),
        ("max_tokens", FinishReason.LENGTH, {}),
        ("model_context_window_exceeded", FinishReason.LENGTH, {"stop_reason": "model_context_window_exceeded"}),
        ("tool_use", FinishReason.TOOL_CALLS, {}),
        ("refusal", FinishReason.CONTENT_FILTER, {"stop_reason": "refusal"}),
        ("what is this", FinishReason.ERROR, {"stop_reason": "what is this"}),
        (None, FinishReason.ERROR, {}),
    ],
)
async def test_stop_reasons(
    bridge: RunningBridge, said: str | None, meant: FinishReason, attributes: dict[str, str]
) -> None:
    response = await pipe(bridge, events_of, start(), *texts(0, "a"), *stop(said))
    assert (response.text, response.finish_reason) == ("a", meant)
    assert dict(response.completion.attributes) == attributes
    assert bool(response.completion.error_message) is (meant is FinishReason.ERROR)


async def test_what_a_stop_says_besides_its_reason_is_kept(bridge: RunningBridge) -> None:
    response = await pipe(
        bridge, events_of, start(), *texts(0, "a"), *stop("stop_sequence", delta={"stop_sequence": "\n\nHuman:"})
    )
    assert response.completion.attributes["stop_sequence"] == "\n\nHuman:"


async def test_why_a_refusal_was_is_kept(bridge: RunningBridge) -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "Not that."}
    response = await pipe(bridge, events_of, start(), *texts(0, "a"), *stop("refusal", delta={"stop_details": details}))
    assert response.completion.attributes["refusal"] == "Not that."


async def test_a_message_without_its_last_event_is_whole_when_it_has_a_stop_reason(bridge: RunningBridge) -> None:
    response = await pipe(bridge, events_of, start(), *texts(0, "a"), *stop()[:1])
    assert response.finish_reason is FinishReason.STOP


async def test_odd_events_say_nothing_and_harm_nothing(bridge: RunningBridge) -> None:
    response = await pipe(
        bridge,
        events_of,
        {"type": "future_event", "index": {}},
        {"type": "message_start", "message": None},
        {"type": "content_block_delta", "index": 7, "delta": {"type": "input_json_delta", "partial_json": "nobody's"}},
        {"type": "content_block_stop", "index": 7},
        {"type": "content_block_start", "index": None, "content_block": None},
        *block(0, "future_block", {"type": "future_delta", "text": "?"}, text="?"),
        *texts(1, "fi"),
        {"type": "content_block_delta", "index": 1, "delta": None},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": None}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "citations_delta", "citation": {}}},
        *block(3, "redacted_thinking", data="x" * 200_000),
        *texts(2, "ne\ud83e", "\udd99"),
        {"type": "message_delta", "delta": None, "usage": {"output_tokens": -4, "input_tokens": 2.0}},
        *stop(usage={"output_tokens": None, "output_tokens_details": {"thinking_tokens": "x"}}),
    )
    assert response.text == "fine🦙"
    assert response.calls == []
    assert response.finish_reason is FinishReason.STOP
    assert response.completion.usage == Usage(prompt_tokens=2, total_tokens=2)


async def test_only_the_text_can_be_piped_too(bridge: RunningBridge) -> None:
    answer = named_answer(start(), *texts(0, "a", ODD), *stop())
    async with sdk(*answer) as (_, model), Client(bridge.address) as client, helper_of(model) as stream:
        await client.pipe(stream.text_stream, *STREAM)
        response = await read_response(client, *STREAM)
    assert (response.text, response.finish_reason) == ("a" + ODD, FinishReason.STOP)


@both
async def test_the_connection_serves_the_next_request(bridge: RunningBridge, ask: Callable[[Any], Any]) -> None:
    async with sdk(*named_answer(start(), *texts(0, "a"), *stop())) as (endpoint, model):
        async with Client(bridge.address) as client:
            await client.pipe(ask(model), *STREAM)
            await client.pipe(ask(model), "s", "m", "next")
        assert len(endpoint.heads) == 2
        assert endpoint.connections == 1
