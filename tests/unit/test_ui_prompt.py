"""What `useChat` posts, as the messages of OpenAI's chat completions."""

from typing import Any

import pytest

from llmbridge.gateway.problems import Problem
from llmbridge.gateway.ui_prompt import prompt_of


def message(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x", "role": role, "parts": list(parts)}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "state": "done"}


def test_a_conversation() -> None:
    messages = [
        message("system", said("Be brief.")),
        message("user", said("Hi"), said("!")),
        message("assistant", {"type": "step-start"}, {"type": "reasoning", "text": "hm"}, said("Hello.")),
    ]
    assert prompt_of(messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
    ]


def test_files_are_shown_to_the_model() -> None:
    image = {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AA=="}
    document = {
        "type": "file",
        "mediaType": "application/pdf",
        "url": "data:application/pdf;base64,AA==",
        "filename": "a",
    }
    [found] = prompt_of([message("user", said("What is this?"), image, document)])
    assert found["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": image["url"]}},
        {"type": "file", "file": {"filename": "a", "file_data": document["url"]}},
    ]


def test_tools_and_their_results_stand_in_the_order_in_which_the_model_knew_them() -> None:
    done = {"type": "tool-f", "toolCallId": "1", "state": "output-available", "input": {"a": 1}, "output": [2]}
    failed = {"type": "dynamic-tool", "toolName": "g", "toolCallId": "2", "state": "output-error", "errorText": "no"}
    unfinished = {"type": "tool-h", "toolCallId": "3", "state": "input-available", "input": {}}
    found = prompt_of([message("assistant", said("Let me see."), done, failed, unfinished, said("So."))])
    assert [(one["role"], one["content"]) for one in found] == [
        ("assistant", "Let me see."),
        ("tool", "[2]"),
        ("tool", "no"),
        ("assistant", "So."),
    ]
    assert [(call["id"], call["function"]) for call in found[0]["tool_calls"]] == [
        ("1", {"name": "f", "arguments": '{"a": 1}'}),
        ("2", {"name": "g", "arguments": "{}"}),
    ]


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (None, "messages"),
        ([], "messages"),
        (["hi"], "messages[0].role"),
        ([message("tool")], "messages[0].role"),
        ([{"role": "user", "content": "hi"}], "messages[0].parts"),
        ([message("user", {"type": "text"})], "messages[0].parts[0].text"),
        ([message("user", {"text": "hi"})], "messages[0].parts[0].type"),
        ([message("assistant", {"type": "tool-f", "toolCallId": 1})], "messages[0].parts[0].toolCallId"),
        ([message("user", {"type": "file", "url": "x"})], "messages[0].parts[0].mediaType"),
    ],
)
def test_what_is_wrong_is_named(messages: Any, field: str) -> None:
    with pytest.raises(Problem) as refused:
        prompt_of(messages)
    assert refused.value.status == 400
    assert refused.value.details[0]["metadata"] == {"field": field}
