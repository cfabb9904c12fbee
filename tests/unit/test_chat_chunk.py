"""OpenAI's chunks: what our own adapter reads of them is what was written."""

from collections.abc import AsyncIterator

import pytest

from llmbridge.client.adapters import openai_records
from llmbridge.gateway.chat_chunk import ChatChunks, ChatCompletion
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_ERROR,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ROLE_USER,
    Completion,
    FinishReason,
    Generation,
    Token,
    ToolCall,
    Usage,
)

STREAM = StreamRef(session_id="s", model_id="m", response_id="r")
TOKENS = [
    Token(reasoning="hm", timestamp_ms=5_000, generation=Generation(model="m-2")),
    Token(text="a"),
    Token(text="not the answer", role=ROLE_USER),
    Token(text="b"),
    Token(text="no", attributes={"refusal": "true"}),
    Token(tool_call=ToolCall(index=0, id="x", name="f", arguments="{")),
    Token(tool_call=ToolCall(index=1, id="y", name="g")),
    Token(tool_call=ToolCall(index=0, arguments="}")),
]


def message(completion: Completion | None = None, *tokens: Token) -> SubscribeResponse:
    return SubscribeResponse(tokens=tokens, completion=completion, appended_ms=7_000)


@pytest.mark.parametrize(
    "reason",
    [
        FINISH_REASON_STOP,
        FINISH_REASON_LENGTH,
        FINISH_REASON_TOOL_CALLS,
        FINISH_REASON_CONTENT_FILTER,
        FINISH_REASON_CANCELLED,
    ],
)
async def test_our_own_adapter_reads_what_was_written(reason: FinishReason.ValueType) -> None:
    types = pytest.importorskip("openai.types.chat")
    usage = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3, reasoning_tokens=1, cached_tokens=1)
    encoder = ChatChunks(STREAM, include_usage=True)
    written = encoder.chunks(message(Completion(finish_reason=reason, usage=usage), *TOKENS))

    async def chunks() -> AsyncIterator[object]:
        for chunk in written:
            # As the SDK makes them, which does not enforce its types.
            yield types.ChatCompletionChunk.construct(**chunk)

    records = [record async for record in openai_records(chunks())]
    completion = records[-1]
    assert isinstance(completion, Completion)
    assert (completion.finish_reason, completion.usage) == (reason, usage)
    tokens = [record for record in records if isinstance(record, Token)]
    assert [token.reasoning for token in tokens if token.reasoning] == ["hm"]
    assert [token.text for token in tokens if token.text] == ["ab", "no"]
    assert [token.tool_call for token in tokens if token.HasField("tool_call")] == [
        token.tool_call for token in TOKENS if token.HasField("tool_call")
    ]
    assert {(chunk["created"], chunk["model"], chunk["id"]) for chunk in written} == {(5, "m-2", "chatcmpl-r")}


def test_a_heartbeat_is_nothing_and_the_role_comes_once() -> None:
    encoder = ChatChunks(STREAM, include_usage=False)
    assert encoder.chunks(message()) == []
    chunks = encoder.chunks(message(None, Token(text="a"))) + encoder.chunks(message(None, Token(text="b")))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
    ]
    assert all("usage" not in chunk for chunk in chunks)


def test_a_failure_is_an_error_and_no_end() -> None:
    failed = Completion(finish_reason=FINISH_REASON_ERROR, error_message="why")
    chunks = ChatChunks(STREAM, include_usage=True).chunks(message(failed))
    assert chunks[-1]["error"]["message"] == "why"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


def test_a_whole_answer_is_put_together() -> None:
    whole = ChatCompletion()
    for chunk in ChatChunks(STREAM, include_usage=True).chunks(
        message(Completion(finish_reason=FINISH_REASON_TOOL_CALLS), *TOKENS)
    ):
        whole.add(chunk)
    [choice] = whole.body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    said = choice["message"]
    assert (said["content"], said["refusal"], said["reasoning_content"]) == ("ab", "no", "hm")
    assert [call["function"] for call in said["tool_calls"]] == [
        {"name": "f", "arguments": "{}"},
        {"name": "g", "arguments": ""},
    ]
