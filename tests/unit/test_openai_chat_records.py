"""The adapter from an OpenAI-compatible stream to records, on chunks built the way the SDK builds them."""

import importlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmbridge.client.adapters import SourceError, openai_records
from llmbridge.v1 import token_pb2

openai = pytest.importorskip("openai", reason="the extra 'openai' is not installed")
# The HTTP library that this release of the SDK stands on: httpx2, or httpx up to openai 2.
http_library: Any = importlib.import_module(openai.DefaultAsyncHttpxClient.__base__.__module__.partition(".")[0])


def event(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **chunk: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
    if delta is not None:
        choice["delta"] = delta
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "tiny",
        "choices": [choice],
        **chunk,
    }


async def read(events: list[dict[str, Any]], **asked: Any) -> tuple[list[token_pb2.Token], token_pb2.Completion]:
    """What the adapter makes of `events`, sent by a server and read by the real SDK."""
    body = "".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n"

    def answer(_: Any) -> Any:
        return http_library.Response(200, headers={"content-type": "text/event-stream"}, text=body)

    transport = http_library.MockTransport(answer)
    async with (
        http_library.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(base_url="http://model.test/v1", api_key="k", http_client=http) as client,
    ):
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        async with stream:
            records = [record async for record in openai_records(stream, **asked)]
    tokens = [record for record in records if isinstance(record, token_pb2.Token)]
    completion = records[-1]
    assert isinstance(completion, token_pb2.Completion)
    assert len(tokens) == len(records) - 1
    return tokens, completion


async def test_text_is_carried_piece_by_piece_and_ends_with_the_reason_and_usage() -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "completion_tokens_details": {"reasoning_tokens": 1},
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    tokens, completion = await read(
        [
            event({"role": "assistant", "content": ""}),
            event({"content": "Hé"}),
            event({"content": " llo\n"}),
            event({"content": "🦙"}),
            event({}, "stop"),
            event(choices=[], usage=usage),
        ]
    )
    assert [token.text for token in tokens] == ["Hé", " llo\n", "🦙"]
    assert completion == token_pb2.Completion(
        finish_reason=token_pb2.FINISH_REASON_STOP,
        usage=token_pb2.Usage(
            prompt_tokens=5, completion_tokens=3, total_tokens=8, reasoning_tokens=1, cached_tokens=4
        ),
    )


async def test_first_token_alone_tells_how_it_was_generated_and_every_token_when() -> None:
    tokens, _ = await read(
        [event({"content": "a"}), event({"content": "b"}), event({}, "stop")], temperature=0.0, max_tokens=9
    )
    assert tokens[0].generation == token_pb2.Generation(model="tiny", temperature=0.0, max_tokens=9)
    assert not tokens[1].HasField("generation")
    assert all(token.timestamp_ms > 1_700_000_000_000 for token in tokens)


async def test_usage_is_absent_when_the_server_gave_none() -> None:
    _, completion = await read([event({"content": "a"}), event({}, "stop")])
    assert not completion.HasField("usage")


async def test_the_last_usage_counts_when_each_chunk_has_one() -> None:
    _, completion = await read(
        [
            event({"content": "a"}, usage={"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}),
            event({"content": "b"}, "stop", usage={"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}),
        ]
    )
    assert (completion.usage.completion_tokens, completion.usage.total_tokens) == (2, 4)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_is_apart_from_the_text(field: str) -> None:
    tokens, _ = await read([event({field: "hm"}), event({field: "so", "content": "Yes"}), event({}, "stop")])
    assert [(token.WhichOneof("content"), token.reasoning or token.text) for token in tokens] == [
        ("reasoning", "hm"),
        ("reasoning", "so"),
        ("text", "Yes"),
    ]


async def test_reasoning_said_under_both_names_is_taken_once() -> None:
    tokens, _ = await read([event({"reasoning_content": "hm", "reasoning": "hm"}), event({}, "stop")])
    assert [token.reasoning for token in tokens] == ["hm"]


async def test_fragments_of_two_tool_calls_keep_their_index() -> None:
    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        name = {"name": more.pop("name")} if "name" in more else {}
        return {"index": index, "function": {**name, "arguments": arguments}, **more}

    tokens, completion = await read(
        [
            event({"tool_calls": [call(0, "", id="a", type="function", name="time")]}),
            event({"tool_calls": [call(0, '{"zone"')]}),
            event({"tool_calls": [call(0, ':"CET"}'), call(1, "{}", id="b", type="function", name="date")]}),
            event({}, "tool_calls"),
        ]
    )
    assert [token.tool_call for token in tokens] == [
        token_pb2.ToolCall(index=0, id="a", name="time"),
        token_pb2.ToolCall(index=0, arguments='{"zone"'),
        token_pb2.ToolCall(index=0, arguments=':"CET"}'),
        token_pb2.ToolCall(index=1, id="b", name="date", arguments="{}"),
    ]
    assert completion.finish_reason == token_pb2.FINISH_REASON_TOOL_CALLS


async def test_whole_tool_calls_without_an_index_are_told_apart_by_their_place() -> None:
    calls = [
        {"id": "a", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "function": {"name": "g", "arguments": "{}"}},
    ]
    tokens, _ = await read([event({"tool_calls": calls}), event({}, "tool_calls")])
    assert [(token.tool_call.index, token.tool_call.id) for token in tokens] == [(0, "a"), (1, "b")]


Fragment = tuple[int | None, str | None, str | None, str]


@pytest.mark.parametrize(
    ("fragments", "calls"),
    [
        # All with one index, as Gemini's compatible endpoint sends parallel calls.
        ([(0, "a", "f", "{}"), (0, "b", "g", "[]")], [("a", "f", "{}"), ("b", "g", "[]")]),
        # Another id with each fragment, as old vLLMs do.
        ([(0, "a", "f", ""), (0, "b", None, "{"), (0, "c", None, "}")], [("a", "f", "{}")]),
        # Id and name with each fragment.
        ([(0, "a", "f", "{"), (0, "a", "f", "}")], [("a", "f", "{}")]),
        # Id or name late.
        ([(0, None, "f", "{"), (0, "a", None, "}")], [("a", "f", "{}")]),
        ([(0, "a", None, "{"), (0, None, "f", "}")], [("a", "f", "{}")]),
        # No index, in fragments.
        (
            [(None, "a", "f", "{"), (None, None, None, "}"), (None, "b", "g", "[]")],
            [("a", "f", "{}"), ("b", "g", "[]")],
        ),
        # Counted from 1, and interleaved.
        (
            [(1, "a", "f", "{"), (2, "b", "g", "["), (1, None, None, "}"), (2, None, None, "]")],
            [("a", "f", "{}"), ("b", "g", "[]")],
        ),
        # Nothing.
        ([(0, None, None, "")], []),
    ],
)
async def test_tool_calls_as_servers_send_them(fragments: list[Fragment], calls: list[tuple[str, str, str]]) -> None:
    events = []
    for index, identifier, name, arguments in fragments:
        call = {"index": index, "id": identifier, "function": {"name": name, "arguments": arguments}}
        events.append(event({"tool_calls": [call]}))
    tokens, _ = await read([*events, event({}, "tool_calls")])
    found: dict[int, list[str]] = {}
    for token in tokens:
        parts = found.setdefault(token.tool_call.index, ["", "", ""])
        said = (token.tool_call.id, token.tool_call.name, token.tool_call.arguments)
        found[token.tool_call.index] = [part + more for part, more in zip(parts, said, strict=True)]
    assert [tuple(parts) for parts in found.values()] == calls
    assert list(found) == list(range(len(calls)))


async def test_the_deprecated_function_call_is_tool_call_zero() -> None:
    tokens, completion = await read(
        [
            event({"function_call": {"name": "f", "arguments": ""}}),
            event({"function_call": {"arguments": "{}"}}),
            event({}, "function_call"),
        ]
    )
    assert [token.tool_call for token in tokens] == [
        token_pb2.ToolCall(name="f"),
        token_pb2.ToolCall(arguments="{}"),
    ]
    assert completion.finish_reason == token_pb2.FINISH_REASON_TOOL_CALLS


async def test_a_refusal_is_text_that_says_so() -> None:
    tokens, _ = await read([event({"refusal": "I can't."}), event({}, "stop")])
    assert [(token.text, dict(token.attributes)) for token in tokens] == [("I can't.", {"refusal": "true"})]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", token_pb2.FINISH_REASON_STOP),
        ("length", token_pb2.FINISH_REASON_LENGTH),
        ("tool_calls", token_pb2.FINISH_REASON_TOOL_CALLS),
        ("content_filter", token_pb2.FINISH_REASON_CONTENT_FILTER),
        ("eos_token", token_pb2.FINISH_REASON_STOP),
        ("model_length", token_pb2.FINISH_REASON_LENGTH),
        ("abort", token_pb2.FINISH_REASON_CANCELLED),
    ],
)
async def test_finish_reasons(said: str, meant: "token_pb2.FinishReason.ValueType") -> None:
    _, completion = await read([event({"content": "a"}), event({}, said)])
    assert completion == token_pb2.Completion(finish_reason=meant)


async def test_an_unknown_finish_reason_is_an_error_that_repeats_it() -> None:
    _, completion = await read([event({"content": "a"}), event({}, "insufficient_system_resource")])
    assert completion.finish_reason == token_pb2.FINISH_REASON_ERROR
    assert "insufficient_system_resource" in completion.error_message


async def test_a_stream_cut_short_without_an_error_is_an_error() -> None:
    tokens, completion = await read([event({"content": "half an ans"})])
    assert [token.text for token in tokens] == ["half an ans"]
    assert completion.finish_reason == token_pb2.FINISH_REASON_ERROR
    assert completion.error_message


async def test_chunks_without_choice_delta_or_counts_are_no_trouble() -> None:
    tokens, completion = await read(
        [
            {"id": "c1", "object": "chat.completion.chunk"},
            event(),
            event({"role": "assistant", "content": None}),
            event({"content": "a"}),
            event({}, "stop"),
            event(choices=[], usage={"completion_tokens": 1}),
        ]
    )
    assert [token.text for token in tokens] == ["a"]
    assert completion.usage == token_pb2.Usage(completion_tokens=1)


async def test_another_role_than_the_assistants_is_kept() -> None:
    tokens, _ = await read([event({"role": "tool", "content": "4"}), event({"content": "2"}), event({}, "stop")])
    assert [token.role for token in tokens] == [token_pb2.ROLE_TOOL, token_pb2.ROLE_TOOL]


@pytest.mark.parametrize(
    "choices",
    [
        [{"index": 1, "delta": {"content": "b"}}],
        [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}],
    ],
)
async def test_several_choices_are_refused(choices: list[dict[str, Any]]) -> None:
    with pytest.raises(SourceError, match="n=1"):
        await read([event(choices=choices)])


async def test_an_error_in_the_stream_passes_through_after_what_came_before() -> None:
    async def chunks() -> AsyncIterator[Any]:
        yield openai.types.chat.ChatCompletionChunk.model_validate(event({"content": "a"}))
        raise ConnectionResetError("gone")

    records = openai_records(chunks())
    first = await anext(records)
    assert isinstance(first, token_pb2.Token)
    assert first.text == "a"
    with pytest.raises(ConnectionResetError, match="gone"):
        await anext(records)
