"""npm's `ai` and `@ai-sdk/react`, unmodified, in the two latest major versions: resume, stop, tools, errors, a cut."""

import asyncio
from typing import Any

import pytest

from llmbridge.v1.bridge_service_pb2 import CancelRequest, ProduceRequest
from llmbridge.v1.token_pb2 import (
    FINISH_REASON_ERROR,
    FINISH_REASON_TOOL_CALLS,
    Completion,
    Token,
    ToolCall,
)
from tests.support.calls import STOP, produce, ref
from tests.support.node_client import Line, NodeProgram, installed_packages, node
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway

pytestmark = [
    pytest.mark.parametrize("major", ["6", "7"]),
    pytest.mark.usefixtures("_packages"),
    # The first to run installs the packages.
    pytest.mark.timeout(300),
]

CHAT = "chat 1/ä"
QUESTION = '[{"id": "q", "role": "user", "parts": [{"type": "text", "text": "Hello?"}]}]'
STREAM = ref("r1", session=CHAT)
MESSAGE_ID = "m/r1"


@pytest.fixture(scope="module")
def _packages() -> None:
    installed_packages()


async def send(bridge: RunningBridge, *tokens: Token, completion: Completion | None = None) -> None:
    await bridge.bridge.Produce(ProduceRequest(stream=STREAM, tokens=tokens, completion=completion))


def answer(line: Line) -> dict[str, Any]:
    """The assistant's message in a state of the page."""
    messages = [message for message in line.get("messages", ()) if message["role"] == "assistant"]
    assert len(messages) <= 1, "the answer is there twice"
    return messages[0] if messages else {"id": "", "parts": []}


def shown(line: Line) -> str:
    return "".join(part["text"] for part in answer(line)["parts"] if part["type"] == "text")


def page(gateway: RunningGateway, major: str, messages: str = QUESTION) -> Any:
    return node("use_chat.mjs", major, gateway.url, CHAT, messages)


async def ready(program: NodeProgram) -> Line:
    return await program.until(lambda line: line.get("status") == "ready" and shown(line) != "")


async def test_a_page_that_is_reloaded_goes_on_with_the_same_message(
    bridge: RunningBridge, gateway: RunningGateway, major: str
) -> None:
    await produce(bridge.bridge, STREAM, "Hello", ", ")
    async with page(gateway, major) as before:
        first = await before.until(lambda line: shown(line) == "Hello, ")
    await produce(bridge.bridge, STREAM, "wor")
    async with page(gateway, major) as after:
        await after.until(lambda line: shown(line) == "Hello, wor")
        await produce(bridge.bridge, STREAM, "ld", completion=STOP)
        finished = await after.until(lambda line: "finished" in line)
        last = await ready(after)
    assert shown(last) == "Hello, world"
    assert answer(first)["id"] == answer(last)["id"] == MESSAGE_ID
    assert finished["finished"] == {
        "isAbort": False,
        "isDisconnect": False,
        "isError": False,
        "finishReason": "stop",
    }


async def test_a_chat_with_nothing_open_is_ready_at_once(
    bridge: RunningBridge, gateway: RunningGateway, major: str
) -> None:
    await produce(bridge.bridge, STREAM, "over", completion=STOP)
    async with page(gateway, major) as program:
        line = await program.until(lambda line: line.get("status") == "ready")
    assert (line["error"], shown(line)) == (None, "")
    async with node("chunks.mjs", major, f"{gateway.url}/api/chat/none/stream") as reader:
        assert await reader.all() == [{"none": True}]


async def test_stop_ends_the_generation_for_everybody(
    bridge: RunningBridge, gateway: RunningGateway, major: str
) -> None:
    await produce(bridge.bridge, STREAM, "a long answer")
    async with page(gateway, major) as program:
        await program.until(lambda line: shown(line) == "a long answer")
        await program.tell(do="stop", activeStreamId="m/another")
        await program.until(lambda line: "stopped" in line)
        await produce(bridge.bridge, STREAM, " goes on")
        await program.until(lambda line: shown(line) == "a long answer goes on")
        await program.tell(do="stop", activeStreamId=MESSAGE_ID)
        finished = await program.until(lambda line: "finished" in line)
        last = await ready(program)
    assert shown(last) == "a long answer goes on"
    assert finished["finished"]["isError"] is False
    ended = await bridge.bridge.Cancel(CancelRequest(stream=STREAM))
    assert not ended.sealed_now


async def test_tool_calls_reach_the_page_as_they_are_written(
    bridge: RunningBridge, gateway: RunningGateway, major: str
) -> None:
    await send(
        bridge,
        Token(reasoning="The weather, "),
        Token(reasoning="then."),
        Token(tool_call=ToolCall(index=0, id="call-a", name="weather", arguments='{"city": "Ber')),
        Token(tool_call=ToolCall(index=1, id="call-b", name="clock")),
        Token(tool_call=ToolCall(index=0, arguments='lin"}')),
    )

    def tools(line: Line) -> list[Any]:
        parts = answer(line)["parts"]
        return [(part["type"], part["state"], part.get("input")) for part in parts if part["type"].startswith("tool-")]

    async with page(gateway, major) as program:
        await program.until(lambda line: ("tool-weather", "input-streaming", {"city": "Berlin"}) in tools(line))
        await send(bridge, completion=Completion(finish_reason=FINISH_REASON_TOOL_CALLS))
        line = await program.until(lambda line: line.get("status") == "ready" and len(tools(line)) > 0)
    assert tools(line) == [
        ("tool-weather", "input-available", {"city": "Berlin"}),
        ("tool-clock", "input-available", {}),
    ]
    reasoning = [part for part in answer(line)["parts"] if part["type"] == "reasoning"]
    assert [(part["text"], part["state"]) for part in reasoning] == [("The weather, then.", "done")]
    called = [line["toolCall"]["toolName"] for line in program.lines if "toolCall" in line]
    assert called == ["weather", "clock"]


async def test_a_failed_generation_is_an_error(bridge: RunningBridge, gateway: RunningGateway, major: str) -> None:
    await produce(bridge.bridge, STREAM, "half an ans")
    async with page(gateway, major) as program:
        await program.until(lambda line: shown(line) == "half an ans")
        await send(bridge, completion=Completion(finish_reason=FINISH_REASON_ERROR, error_message="the GPU is on fire"))
        line = await program.until(lambda line: line.get("status") == "error")
    assert line["error"] == "the GPU is on fire"
    assert shown(line) == "half an ans"


async def test_an_answer_that_breaks_off_never_seems_whole(
    bridge: RunningBridge, gateway: RunningGateway, major: str
) -> None:
    await produce(bridge.bridge, STREAM, "half an ans")
    async with page(gateway, major) as program:
        await program.until(lambda line: shown(line) == "half an ans")
        gateway.core.link.drain()
        line = await program.until(lambda line: line.get("status") in ("error", "ready"))
    assert line["status"] == "error"


async def test_every_chunk_is_valid_and_a_cursor_gives_the_rest_alone(
    bridge: RunningBridge, gateway: RunningGateway, major: str
) -> None:
    await send(
        bridge,
        Token(text="one "),
        Token(tool_call=ToolCall(index=0, id="call-a", name="weather", arguments='{"city": ')),
        Token(json='{"a": [1, null]}'),
        Token(text="two "),
    )
    url = f"{gateway.url}/api/chat/chat%201%2F%C3%A4/stream"
    async with gateway.http.stream("GET", url) as response:
        assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
        async with asyncio.timeout(30):
            cursor = await anext(line[4:] async for line in response.aiter_lines() if line.startswith("id: "))
    async with node("chunks.mjs", major, f"{url}?cursor={cursor}") as rest, node("chunks.mjs", major, url) as all_of_it:
        started = await all_of_it.until(lambda line: line == {"type": "text-delta", "id": "text-3", "delta": "two "})
        await send(
            bridge,
            Token(text="three"),
            Token(tool_call=ToolCall(index=0, arguments='"Rome"}')),
            completion=Completion(finish_reason=FINISH_REASON_TOOL_CALLS),
        )
        lines, whole = await rest.all(), await all_of_it.all()
    assert started is not None
    assert whole[:3] == [
        {"type": "start", "messageId": MESSAGE_ID},
        {"type": "start-step"},
        {"type": "text-start", "id": "text-1"},
    ]
    assert {"type": "data-json", "data": {"a": [1, None]}} in whole
    assert lines == [
        {"type": "text-delta", "id": "text-3", "delta": "three"},
        {"type": "tool-input-delta", "toolCallId": "call-a", "inputTextDelta": '"Rome"}'},
        {"type": "text-end", "id": "text-3"},
        {
            "type": "tool-input-available",
            "toolCallId": "call-a",
            "toolName": "weather",
            "input": {"city": "Rome"},
        },
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "tool-calls"},
        {"end": True},
    ]
    assert whole[-len(lines) :] == lines
