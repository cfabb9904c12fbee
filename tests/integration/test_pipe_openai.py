"""Streams of the real OpenAI SDK, from an endpoint on a real socket, through the real bridge."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmbridge.client import Client, FinishReason, Usage
from tests.support.model_endpoint import ModelEndpoint, chat_answer, model_endpoint, named_answer
from tests.support.piped import ODD, Response, read_response
from tests.support.running_bridge import RunningBridge

openai = pytest.importorskip("openai", reason="the extra 'openai' is not installed")

STREAM = ("s", "m", "r")
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
RESPONSE = {"model": "tiny", "input": "hi"}


@asynccontextmanager
async def sdk(*answer: bytes | None) -> AsyncIterator[tuple[ModelEndpoint, Any]]:
    async with (
        model_endpoint(*answer) as endpoint,
        openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="sk-very-secret-key", max_retries=0) as client,
    ):
        yield endpoint, client


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny-1", "choices": [choice], **more}


async def chat(bridge: RunningBridge, *chunks: dict[str, Any]) -> Response:
    async with sdk(*chat_answer(*chunks)) as (_, model), Client(bridge.address) as client:
        completion = await client.pipe(model.chat.completions.create(**CHAT, stream=True), *STREAM)
        response = await read_response(client, *STREAM)
    assert response.completion == completion
    return response


async def responses(bridge: RunningBridge, *events: dict[str, Any]) -> Response:
    numbered = [{"sequence_number": number, **event} for number, event in enumerate(events)]
    async with sdk(*named_answer(*numbered)) as (_, model), Client(bridge.address) as client:
        completion = await client.pipe(model.responses.create(**RESPONSE, stream=True), *STREAM)
        response = await read_response(client, *STREAM)
    assert response.completion == completion
    return response


async def test_a_chat_completion_arrives_whole(bridge: RunningBridge) -> None:
    def call(index: int, arguments: str, **first: str) -> dict[str, Any]:
        name = {"name": first.pop("name")} if "name" in first else {}
        return {"index": index, "function": {**name, "arguments": arguments}, **first}

    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 30,
        "total_tokens": 35,
        "completion_tokens_details": {"reasoning_tokens": 7},
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    response = await chat(
        bridge,
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Hm, "}),
        chunk({"reasoning_content": ODD}),
        *(chunk({"content": character}) for character in ODD),
        chunk({"tool_calls": [call(0, "", id="a", name="time"), call(1, "", id="b", name="date")]}),
        chunk({"tool_calls": [call(1, '{"zone"'), call(0, '{"at":')]}),
        chunk({"tool_calls": [call(0, '"é"}')]}),
        chunk({"tool_calls": [call(1, ':"CET"}')]}),
        chunk({}, "tool_calls"),
        chunk(choices=[], usage=usage),
    )
    assert response.text.encode() == ODD.encode()
    assert response.reasoning == "Hm, " + ODD
    assert response.calls == [("a", "time", '{"at":"é"}'), ("b", "date", '{"zone":"CET"}')]
    assert response.finish_reason is FinishReason.TOOL_CALLS
    assert response.completion.usage == Usage(
        prompt_tokens=5, completion_tokens=30, total_tokens=35, reasoning_tokens=7, cached_tokens=4
    )
    assert response.tokens[0].generation.model == "tiny-1"


async def test_the_helper_for_chat_completions_says_nothing_twice(bridge: RunningBridge) -> None:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chunks = [
        chunk({"role": "assistant", "content": "On"}),
        chunk({"content": "ce"}),
        chunk({"tool_calls": [call]}),
        chunk({}, "tool_calls"),
    ]
    async with sdk(*chat_answer(*chunks)) as (_, model), Client(bridge.address) as client:
        await client.pipe(model.chat.completions.stream(**CHAT), *STREAM)
        response = await read_response(client, *STREAM)
    assert response.text == "Once"
    assert response.calls == [("a", "f", "{}")]
    assert response.finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("what is this", FinishReason.ERROR),
        (None, FinishReason.ERROR),
    ],
)
async def test_chat_finish_reasons(bridge: RunningBridge, said: str | None, meant: FinishReason) -> None:
    response = await chat(bridge, chunk({"content": "a"}), chunk({}, said))
    assert (response.text, response.finish_reason) == ("a", meant)
    assert bool(response.completion.error_message) is (meant is FinishReason.ERROR)


async def test_odd_chunks_say_nothing_and_harm_nothing(bridge: RunningBridge) -> None:
    odd_call = {"index": -1, "id": 5, "function": {"name": ["x"], "arguments": None}}
    response = await chat(
        bridge,
        {"id": "c"},
        {"type": "keep-alive", "object": "something.else"},
        chunk(choices=None),
        chunk(choices="no"),
        chunk(choices=[]),
        chunk(choices=[None]),
        chunk({"content": 5, "reasoning": {"a": 1}, "role": ["x"], "tool_calls": "x", "refusal": None}),
        chunk({"content": "fi"}, usage={"prompt_tokens": -3, "completion_tokens": "x", "total_tokens": 10**30}),
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"text": "ne"}, 5]}),
        chunk({"tool_calls": [odd_call, None]}),
        chunk({}, "stop"),
    )
    assert (response.text, response.reasoning) == ("fine", "hm")
    assert response.finish_reason is FinishReason.STOP
    assert response.completion.usage == Usage()


async def test_halves_of_characters_in_different_chunks_come_together(bridge: RunningBridge) -> None:
    response = await chat(
        bridge,
        chunk({"content": "a\ud83e", "reasoning": "\ud83e"}),
        chunk({"content": "\udd99b", "reasoning": "\udd99"}),
        chunk({"content": "\udd99 \ud83e"}),
        chunk({}, "stop"),
    )
    assert response.text == "a🦙b\ufffd \ufffd"
    assert response.reasoning == "🦙"


async def test_what_is_sent_at_once_may_be_larger_than_a_token(bridge: RunningBridge) -> None:
    text, arguments = "🦙é" * 150_000, json.dumps({"file": "x" * 500_000})
    call = {"index": 0, "id": "a", "function": {"name": "write", "arguments": arguments}}
    response = await chat(
        bridge,
        chunk({"content": text}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": " " * 300_000}}]}),
        chunk({}, "stop"),
    )
    assert response.text == text
    assert response.calls == [("a", "write", arguments + " " * 300_000)]


def created(**response: Any) -> dict[str, Any]:
    return {"type": "response.created", "response": {"id": "r", "object": "response", "model": "tiny-2", **response}}


def ended(status: str, **response: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 8,
    }
    return {"type": f"response.{status}", "response": {"id": "r", "status": status, "usage": usage, **response}}


def delta(what: str, text: str, output_index: int = 0) -> dict[str, Any]:
    return {
        "type": f"response.{what}.delta",
        "item_id": f"i{output_index}",
        "output_index": output_index,
        "content_index": 0,
        "summary_index": 0,
        "logprobs": [],
        "delta": text,
    }


def item(state: str, output_index: int, kind: str, **fields: str) -> dict[str, Any]:
    return {
        "type": f"response.output_item.{state}",
        "output_index": output_index,
        "item": {"type": kind, "id": f"i{output_index}", "status": "in_progress", **fields},
    }


async def test_a_response_of_the_responses_api_arrives_whole(bridge: RunningBridge) -> None:
    whole = {"call_id": "b", "name": "date", "arguments": '{"zone":"CET"}'}
    response = await responses(
        bridge,
        created(),
        {"type": "response.in_progress", "response": {"id": "r"}},
        item("added", 0, "reasoning"),
        delta("reasoning_summary_text", "Hm, "),
        delta("reasoning_text", "so"),
        item("added", 1, "message", role="assistant"),
        {"type": "response.content_part.added", "output_index": 1, "part": {"type": "output_text", "text": ""}},
        *(delta("output_text", character, 1) for character in ODD),
        {"type": "response.output_text.done", "output_index": 1, "text": ODD},
        item("added", 2, "function_call", call_id="a", name="time", arguments=""),
        item("added", 3, "web_search_call"),
        item("added", 4, "function_call", call_id="b", name="date", arguments=""),
        delta("function_call_arguments", '{"at":', 2),
        delta("function_call_arguments", '"é"}', 2),
        {"type": "response.function_call_arguments.done", "output_index": 2, "arguments": '{"at":"é"}'},
        item("done", 2, "function_call", call_id="a", name="time", arguments='{"at":"é"}'),
        item("done", 4, "function_call", **whole),
        item("added", 5, "custom_tool_call", call_id="c", name="sh", input=""),
        delta("custom_tool_call_input", "ls", 5),
        item("done", 6, "function_call", call_id="d", name="late", arguments="{}"),
        ended("completed"),
    )
    assert response.text.encode() == ODD.encode()
    assert response.reasoning == "Hm, so"
    assert response.calls == [
        ("a", "time", '{"at":"é"}'),
        ("b", "date", '{"zone":"CET"}'),
        ("c", "sh", "ls"),
        ("d", "late", "{}"),
    ]
    assert response.finish_reason is FinishReason.TOOL_CALLS
    assert response.completion.usage == Usage(
        prompt_tokens=5, completion_tokens=3, total_tokens=8, reasoning_tokens=2, cached_tokens=4
    )
    assert response.tokens[0].generation.model == "tiny-2"


@pytest.mark.parametrize(
    ("last", "meant", "message"),
    [
        (ended("completed"), FinishReason.STOP, ""),
        (ended("incomplete", incomplete_details={"reason": "max_output_tokens"}), FinishReason.LENGTH, ""),
        (ended("incomplete", incomplete_details={"reason": "content_filter"}), FinishReason.CONTENT_FILTER, ""),
        (ended("incomplete", incomplete_details=None), FinishReason.ERROR, "incomplete"),
        (ended("failed", error={"code": "server_error", "message": "on fire"}), FinishReason.ERROR, "on fire"),
        (ended("cancelled"), FinishReason.CANCELLED, ""),
        ({"type": "error", "code": "x", "message": "burnt", "param": None}, FinishReason.ERROR, "burnt"),
        ({"type": "response.who.knows", "response": None}, FinishReason.ERROR, "without a finish reason"),
    ],
)
async def test_ends_of_the_responses_api(
    bridge: RunningBridge, last: dict[str, Any], meant: FinishReason, message: str
) -> None:
    response = await responses(bridge, created(), delta("output_text", "a"), last)
    assert (response.text, response.finish_reason) == ("a", meant)
    assert message in response.completion.error_message
    assert bool(response.completion.error_message) is bool(message)


async def test_odd_events_of_the_responses_api_say_nothing_and_harm_nothing(bridge: RunningBridge) -> None:
    response = await responses(
        bridge,
        {"type": "response.future.event", "delta": 7},
        created(model=None),
        {"type": "keepalive"},
        {"type": "response.output_item.added", "output_index": "x", "item": None},
        {"type": "response.function_call_arguments.delta", "output_index": 9, "delta": "nobody's"},
        {"type": "response.output_text.delta", "delta": None},
        delta("refusal", "No."),
        ended("completed", usage=None),
    )
    assert response.text == "No."
    assert dict(response.tokens[0].attributes) == {"refusal": "true"}
    assert response.calls == []
    assert response.finish_reason is FinishReason.STOP
    assert not response.completion.HasField("usage")


async def test_the_helper_for_responses_says_nothing_twice(bridge: RunningBridge) -> None:
    output = {"type": "message", "id": "i0", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    final = {**output, "status": "completed", "content": [{**part, "text": "Once"}]}
    done = {"id": "r", "object": "response", "created_at": 1, "model": "tiny-2", "status": "completed"}
    events = [
        created(created_at=1, output=[], parallel_tool_calls=True, tool_choice="auto", tools=[]),
        {"type": "response.output_item.added", "output_index": 0, "item": output},
        {
            "type": "response.content_part.added",
            "output_index": 0,
            "content_index": 0,
            "item_id": "i0",
            "part": part,
        },
        delta("output_text", "On"),
        delta("output_text", "ce"),
        {"type": "response.completed", "response": {**done, "output": [final], "tools": []}},
    ]
    numbered = [{"sequence_number": number, **event} for number, event in enumerate(events)]
    async with sdk(*named_answer(*numbered)) as (_, model), Client(bridge.address) as client:
        await client.pipe(model.responses.stream(**RESPONSE), *STREAM)
        response = await read_response(client, *STREAM)
    assert (response.text, response.finish_reason) == ("Once", FinishReason.STOP)
