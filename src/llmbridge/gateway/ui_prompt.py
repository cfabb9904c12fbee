"""Turns the AI SDK's UI messages, which `useChat` posts, into the messages of OpenAI's chat completions.

Pure. What a model can't be told (reasoning, sources, an application's own data) is left out, and so are tool calls
without a result, which model servers refuse.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llmbridge.gateway.problems import invalid_field

__all__ = ["Message", "prompt_of"]

Message = dict[str, Any]
"""One message of OpenAI's chat completions."""

_ROLES = ("system", "user", "assistant")
_RESULTS = {"output-available": "output", "output-error": "errorText"}
_STATIC_TOOL = "tool-"


def prompt_of(messages: object) -> list[Message]:
    """Translate a request's `messages`. Raises Problem naming the field that is wrong."""
    if not isinstance(messages, list) or not messages:
        raise invalid_field("messages", "messages: not a list with at least one message")
    found: list[Message] = []
    for index, message in enumerate(messages):
        role, parts = _read(message, f"messages[{index}]")
        if role == "assistant":
            found += _said(parts)
        elif role == "user":
            found.append({"role": role, "content": _content(parts)})
        else:
            found.append({"role": role, "content": _text(parts)})
    return found


def _read(message: object, field: str) -> tuple[str, list[Mapping[str, Any]]]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise invalid_field(f"{field}.role", f"{field}.role: not one of {', '.join(_ROLES)}")
    parts = message.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise invalid_field(f"{field}.parts", f"{field}.parts: not a list of objects")
    for index, part in enumerate(parts):
        for name in _needed(part):
            if not isinstance(part.get(name), str):
                place = f"{field}.parts[{index}].{name}"
                raise invalid_field(place, f"{place}: not a text")
    return message["role"], parts


def _needed(part: Mapping[str, Any]) -> tuple[str, ...]:
    """Say which texts a part must have."""
    match part.get("type"):
        case "text":
            return ("text",)
        case "file":
            return ("mediaType", "url")
        case "dynamic-tool":
            return ("toolCallId", "toolName")
        case str(kind) if kind.startswith(_STATIC_TOOL):
            return ("toolCallId",)
        case str():
            return ()
        case _:
            return ("type",)


def _text(parts: Iterable[Mapping[str, Any]]) -> str:
    return "".join(part["text"] for part in parts if part["type"] == "text")


def _content(parts: Sequence[Mapping[str, Any]]) -> str | list[Message]:
    """Say what a person said: a text, or where there are files a list."""
    if not any(part["type"] == "file" for part in parts):
        return _text(parts)
    content: list[Message] = []
    for part in parts:
        if part["type"] == "text":
            content.append({"type": "text", "text": part["text"]})
        elif part["type"] == "file" and part["mediaType"].startswith("image/"):
            content.append({"type": "image_url", "image_url": {"url": part["url"]}})
        elif part["type"] == "file":
            name = part.get("filename") or "file"
            content.append({"type": "file", "file": {"filename": name, "file_data": part["url"]}})
    return content


def _said(parts: Iterable[Mapping[str, Any]]) -> Iterator[Message]:
    """Say what the model said, step by step: its text, the tools that it called, and what these gave."""
    text, calls, results = "", list[Message](), list[Message]()
    for part in [*parts, {"type": "step-start"}]:
        kind: str = part["type"]
        # What follows a result was said knowing it.
        if kind == "step-start" or (kind == "text" and results):
            yield from _step(text, calls, results)
            text, calls, results = "", [], []
        if kind == "text":
            text += part["text"]
        elif part.get("state") in _RESULTS and (tool := _tool_of(part)):
            function = {"name": tool, "arguments": json.dumps(part.get("input", {}), ensure_ascii=False)}
            calls.append({"id": part["toolCallId"], "type": "function", "function": function})
            result = part.get(_RESULTS[part["state"]])
            content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
            results.append({"role": "tool", "tool_call_id": part["toolCallId"], "content": content})


def _tool_of(part: Mapping[str, Any]) -> str:
    """Name the tool that a part is a call of; empty where it is none."""
    kind: str = part["type"]
    if kind == "dynamic-tool":
        name: str = part["toolName"]
        return name
    return kind.removeprefix(_STATIC_TOOL) if kind.startswith(_STATIC_TOOL) else ""


def _step(text: str, calls: list[Message], results: list[Message]) -> Iterator[Message]:
    if calls:
        yield {"role": "assistant", "content": text or None, "tool_calls": calls}
        yield from results
    elif text:
        yield {"role": "assistant", "content": text}
