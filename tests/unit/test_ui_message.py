"""The AI SDK's chunks: the same whatever messages the records come in, and none that the SDK would refuse."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbridge.gateway.ui_message import Chunk, UiMessage, message_id_of
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_ERROR,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    Completion,
    FinishReason,
    Token,
    ToolCall,
)

STOP = Completion(finish_reason=FINISH_REASON_STOP)
ENDS = ("text-end", "reasoning-end")


def chunks_of(*messages: list[Token], completion: Completion = STOP) -> list[Chunk]:
    message = UiMessage("m/r")
    return [chunk for tokens in messages for chunk in message.tokens(tokens)] + message.completion(completion)


def call(arguments: str = "", *, index: int = 0, call_id: str = "", name: str = "") -> Token:
    return Token(tool_call=ToolCall(index=index, id=call_id, name=name, arguments=arguments))


def result(call_id: str, **content: str) -> Token:
    return Token(role=ROLE_TOOL, attributes={"tool_call_id": call_id}, **content)  # type: ignore[arg-type]


def test_two_streams_never_share_a_message_id() -> None:
    refs = [StreamRef(model_id=model, response_id=response) for model, response in (("a/b", "c"), ("a", "b/c"))]
    assert [message_id_of(ref) for ref in refs] == ["a%2Fb/c", "a/b%2Fc"]


def test_text_and_reasoning_are_parts_of_their_own() -> None:
    tokens = [Token(reasoning="a"), Token(reasoning="b"), Token(text="c"), Token(text=""), Token(text="d")]
    assert chunks_of(tokens) == [
        {"type": "reasoning-start", "id": "reasoning-1"},
        {"type": "reasoning-delta", "id": "reasoning-1", "delta": "ab"},
        {"type": "reasoning-end", "id": "reasoning-1"},
        {"type": "text-start", "id": "text-2"},
        {"type": "text-delta", "id": "text-2", "delta": "cd"},
        {"type": "text-end", "id": "text-2"},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "stop"},
    ]


def test_what_the_person_said_is_not_the_answer() -> None:
    tokens = [Token(text="question", role=ROLE_USER), Token(text="rules", role=ROLE_SYSTEM), Token(text="answer")]
    assert [chunk["delta"] for chunk in chunks_of(tokens) if "delta" in chunk] == ["answer"]


def test_arguments_that_are_no_json_are_an_error_of_the_call_alone() -> None:
    chunks = chunks_of(
        [call('{"a": ', call_id="x", name="f")], completion=Completion(finish_reason=FINISH_REASON_LENGTH)
    )
    assert [chunk["type"] for chunk in chunks] == [
        "tool-input-start",
        "tool-input-delta",
        "tool-input-error",
        "finish-step",
        "finish",
    ]
    assert chunks[2]["input"] == '{"a": '


def test_a_call_without_an_id_gets_one_that_stays_the_same() -> None:
    [first, second] = ([call("{}", name="f")], [call("{}", index=1, name="g")])
    ids = {chunk["toolCallId"] for chunk in chunks_of(first, second) if "toolCallId" in chunk}
    assert ids == {"m/r/tool-1", "m/r/tool-2"}


def test_a_tools_result_belongs_to_its_call() -> None:
    tokens = [
        call('{"a": 1}', call_id="x", name="f"),
        result("x", text="par"),
        result("x", text="tial"),
        Token(text="so"),
    ]
    outputs = [chunk for chunk in chunks_of(tokens) if chunk["type"].startswith(("tool-input-av", "tool-output"))]
    assert outputs == [
        {"type": "tool-input-available", "toolCallId": "x", "toolName": "f", "input": {"a": 1}},
        {"type": "tool-output-available", "toolCallId": "x", "output": "partial"},
    ]
    assert chunks_of([call(call_id="x", name="f"), result("x", json="[1]")])[-3]["output"] == [1]
    # The SDK refuses a whole stream for a result that belongs to nothing.
    assert [chunk["type"] for chunk in chunks_of([result("unknown", text="lost")])] == ["finish-step", "finish"]


@pytest.mark.parametrize(
    ("reason", "last"),
    [
        (FINISH_REASON_STOP, {"type": "finish", "finishReason": "stop"}),
        (FINISH_REASON_LENGTH, {"type": "finish", "finishReason": "length"}),
        (FINISH_REASON_TOOL_CALLS, {"type": "finish", "finishReason": "tool-calls"}),
        (FINISH_REASON_CONTENT_FILTER, {"type": "finish", "finishReason": "content-filter"}),
        (FINISH_REASON_CANCELLED, {"type": "abort", "reason": "why"}),
        (FINISH_REASON_ERROR, {"type": "finish", "finishReason": "error"}),
    ],
)
def test_every_end_has_its_chunk(reason: FinishReason.ValueType, last: Chunk) -> None:
    chunks = chunks_of(
        [call("{", call_id="x", name="f")], completion=Completion(finish_reason=reason, error_message="why")
    )
    assert chunks[-1] == last
    errors = [chunk["errorText"] for chunk in chunks if chunk["type"] == "error"]
    assert errors == (["why"] if reason == FINISH_REASON_ERROR else [])


TOKENS = st.lists(
    st.one_of(
        st.builds(lambda text: Token(text=text), st.text(max_size=3)),
        st.builds(lambda text: Token(reasoning=text), st.text(max_size=3)),
        st.builds(lambda text, role: Token(text=text, role=role), st.text(max_size=3), st.integers(0, 4)),
        st.builds(call, st.sampled_from(["", "{", "}"]), index=st.integers(0, 2), call_id=st.sampled_from(["", "x"])),
        st.builds(lambda call_id, text: result(call_id, text=text), st.sampled_from(["x", "y"]), st.text(max_size=3)),
        st.builds(lambda value: Token(json=json.dumps(value)), st.integers()),
    ),
    max_size=12,
)


@given(TOKENS, st.lists(st.integers(0, 12)))
def test_how_records_were_put_into_messages_makes_no_difference(tokens: list[Token], cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(tokens)]
    split = chunks_of(*(tokens[start:end] for start, end in pairwise(edges)))
    assert joined(split) == joined(chunks_of(tokens))


@given(TOKENS)
def test_no_part_is_added_to_before_its_start_or_after_its_end(tokens: list[Token]) -> None:
    open_parts: set[str] = set()
    calls: set[str] = set()
    for chunk in chunks_of(tokens):
        kind = chunk["type"]
        if kind in ("text-start", "reasoning-start"):
            open_parts.add(chunk["id"])
        elif kind in ENDS:
            open_parts.remove(chunk["id"])
        elif "delta" in chunk:
            assert chunk["id"] in open_parts
        elif kind == "tool-input-start":
            calls.add(chunk["toolCallId"])
        elif "toolCallId" in chunk:
            assert chunk["toolCallId"] in calls
    assert open_parts == set()


def joined(chunks: list[Chunk]) -> list[Any]:
    """Put neighbouring pieces of a part together."""
    found: list[Any] = []
    for chunk in chunks:
        piece = next((name for name in ("delta", "inputTextDelta") if name in chunk), None)
        rest = {name: value for name, value in chunk.items() if name != piece}
        if piece and found and found[-1][0] == rest:
            found[-1] = (rest, found[-1][1] + chunk[piece])
        else:
            found.append((rest, chunk[piece] if piece else ""))
    return found
