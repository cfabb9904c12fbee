"""`useChat` with its default transport, pointed at the gateway by its address alone, in front of a model server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.fake_model import FakeModel, fake_model, text, tool_call
from tests.support.node_client import Line, NodeProgram, installed_packages, node
from tests.support.proxy import local, proxy_to
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway, running_gateway

pytestmark = [
    pytest.mark.parametrize("major", ["6", "7"]),
    pytest.mark.usefixtures("_packages"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def _packages() -> None:
    installed_packages()


@pytest.fixture
async def model() -> AsyncIterator[FakeModel]:
    async with fake_model() as running:
        yield running


@pytest.fixture
async def gateway(bridge: RunningBridge, model: FakeModel) -> AsyncIterator[RunningGateway]:
    async with running_gateway(bridge.address, upstream_url=model.url, upstream_model="m") as running:
        yield running


def page(gateway: RunningGateway, major: str, *messages: str) -> Any:
    return node("use_chat.mjs", major, gateway.url, "chat", *messages)


def parts(line: Line) -> list[dict[str, Any]]:
    return [part for message in line.get("messages", ()) if message["role"] == "assistant" for part in message["parts"]]


def shown(line: Line) -> str:
    return "".join(part["text"] for part in parts(line) if part["type"] == "text")


def is_ready(line: Line) -> bool:
    return line.get("status") == "ready" and shown(line) != ""


async def test_a_question_is_answered(gateway: RunningGateway, model: FakeModel, major: str) -> None:
    model.answers += [text("Hel", "lo."), text("Again.")]
    async with page(gateway, major) as program:
        await program.until(lambda line: line.get("status") == "ready")
        await program.tell(do="send", text="Hi!", body={"temperature": 0.5, "theme": "of the application"})
        await program.until(is_ready)
        await program.tell(do="send", text="And?")
        line = await program.until(lambda line: is_ready(line) and len(line["messages"]) == 4)
    assert shown(line) == "Hello.Again."
    assert model.asked[0]["model"] == "m"
    assert model.asked[0]["temperature"] == 0.5
    assert "theme" not in model.asked[0]
    assert model.asked[1]["messages"] == [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And?"},
    ]


async def test_a_reload_in_the_middle_of_an_answer_shows_all_of_it(
    gateway: RunningGateway, model: FakeModel, major: str
) -> None:
    model.answers.append(text("first ", "second", held_after=1))
    async with page(gateway, major) as before:
        await before.until(lambda line: line.get("status") == "ready")
        await before.tell(do="send", text="Hi!")
        half = await before.until(lambda line: shown(line) == "first ")
    async with page(gateway, major) as after:
        await after.until(lambda line: shown(line) == "first ")
        model.release.set()
        whole = await after.until(is_ready)
    assert shown(whole) == "first second"
    assert half["messages"][-1]["id"] == whole["messages"][-1]["id"]


async def test_stop_reaches_the_model_server(gateway: RunningGateway, model: FakeModel, major: str) -> None:
    model.answers.append(text("first ", rambles=True))
    async with page(gateway, major) as program:
        await program.until(lambda line: line.get("status") == "ready")
        await program.tell(do="send", text="Hi!")
        await program.until(lambda line: shown(line).startswith("first "))
        await program.tell(do="stop")
        await program.until(is_ready)
    # The producer learns of it with its next token, and hangs up.
    async with asyncio.timeout(30):
        await model.left.wait()


async def send_a_tools_result(program: NodeProgram) -> None:
    """Ask what takes a tool, and send what that gave."""
    await program.until(lambda line: line.get("status") == "ready")
    await program.tell(do="send", text="Weather?")
    called = await program.until(lambda line: "toolCall" in line)
    await program.until(lambda line: line.get("status") == "ready" and bool(parts(line)))
    call_id = called["toolCall"]["toolCallId"]
    await program.tell(do="output", tool="weather", toolCallId=call_id, output={"rain": True})
    await program.until(lambda line: any(part.get("state") == "output-available" for part in parts(line)))
    await program.tell(do="send")


async def test_a_tool_is_called_and_its_result_goes_on_in_the_same_message(
    gateway: RunningGateway, model: FakeModel, major: str
) -> None:
    model.answers += [tool_call("weather", '{"city":', ' "Oslo"}'), text("It rains.")]
    async with page(gateway, major) as program:
        await send_a_tools_result(program)
        line = await program.until(is_ready)
    assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
    assert [part["type"] for part in parts(line) if part["type"] != "step-start"] == ["tool-weather", "text"]
    arguments = '{"city": "Oslo"}'
    assert model.asked[1]["messages"] == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
            ],
        },
        {"role": "tool", "tool_call_id": "call-1", "content": '{"rain": true}'},
    ]


@pytest.mark.parametrize("take_away", [False, True])
async def test_a_cut_after_a_tools_result(
    gateway: RunningGateway, model: FakeModel, major: str, take_away: bool
) -> None:
    """`resumeStream()` without a reload: what docs/http.md tells."""
    model.answers += [tool_call("weather", '{"city": "Oslo"}'), text("It ", "rains.", held_after=1)]
    async with proxy_to(local(gateway.port)) as network, node("use_chat.mjs", major, network.url, "chat") as program:
        await send_a_tools_result(program)
        half = await program.until(lambda line: shown(line) == "It ")
        network.reset_all()
        broken = await program.until(lambda line: line.get("status") == "error")
        if take_away:
            await program.tell(do="take the half away")
            await program.until(lambda line: "messages" in line and shown(line) == "")
        await program.tell(do="resume")
        await program.until(lambda line: line.get("status") == "streaming")
        model.release.set()
        whole = await program.until(lambda line: line.get("status") == "ready" and "rains." in shown(line))
    _, called_it, answer = whole["messages"]
    assert half["messages"] == broken["messages"]
    assert answer["id"] != called_it["id"]
    assert [part.get("text") for part in answer["parts"]] == [None, "It rains."]
    kinds = [part["type"] for part in called_it["parts"]]
    if take_away:
        assert kinds == ["step-start", "tool-weather"]
    else:
        assert kinds == ["step-start", "tool-weather", "step-start", "text"]
        assert (called_it["parts"][-1]["text"], called_it["parts"][-1]["state"]) == ("It ", "streaming")


async def test_a_model_server_that_fails_is_an_error(gateway: RunningGateway, model: FakeModel, major: str) -> None:
    failed = text()
    failed.status = 400
    model.answers.append(failed)
    async with page(gateway, major) as program:
        await program.until(lambda line: line.get("status") == "ready")
        await program.tell(do="send", text="Hi!")
        line = await program.until(lambda line: line.get("status") == "error")
    assert "no more GPUs" in line["error"]
