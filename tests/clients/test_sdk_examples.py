"""What docs/clients.md shows of the AI SDK and of OpenAI's SDKs, as it stands there; `useChat` in a real browser."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.browser import chromium, open_tab
from tests.support.fake_model import FakeModel, fake_model, text
from tests.support.node_client import FOLDER, installed_packages
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway, running_gateway

pytestmark = pytest.mark.timeout(300)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
GATEWAY = DOCUMENT.partition("\n## Browsers, ")[2].partition("\n## ")[0]
MOST_LINES = 15
_MOUNT = """
import { createElement } from "react";
import { createRoot } from "react-dom/client";
createRoot(document.body).render(createElement(Chat, { id: "chat" }));
"""


def example(language: str, gateway: RunningGateway) -> str:
    """The only example of the gateway in a language, with the gateway's address in place of the usual one."""
    code: str
    [code] = re.findall(rf"```{language}\n(.*?)```", GATEWAY, re.DOTALL)
    assert code.count("\n") <= MOST_LINES
    assert "http://127.0.0.1:8080/" in code
    return code.replace("http://127.0.0.1:8080", gateway.url)


async def output_of(*command: str, stdin: str) -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=FOLDER)
    async with asyncio.timeout(60):
        output, complaint = await process.communicate(stdin.encode())
    assert process.returncode == 0, complaint.decode()
    return output.decode()


@pytest.fixture
async def model() -> AsyncIterator[FakeModel]:
    async with fake_model() as running:
        yield running


@pytest.fixture
async def gateway(bridge: RunningBridge, model: FakeModel) -> AsyncIterator[RunningGateway]:
    async with running_gateway(bridge.address, upstream_url=model.url, upstream_model="m") as running:
        yield running


async def test_openai_for_python(gateway: RunningGateway, model: FakeModel) -> None:
    pytest.importorskip("openai")
    model.answers.append(text("Hel", "lo."))
    assert await output_of(sys.executable, "-", stdin=example("python", gateway)) == "Hello."


async def test_openai_for_node(gateway: RunningGateway, model: FakeModel) -> None:
    installed_packages()
    model.answers.append(text("Hel", "lo."))
    assert await output_of("node", "--input-type=module", stdin=example("js", gateway)) == "Hello."


async def test_use_chat_in_a_browser_that_reloads_in_the_middle_of_an_answer(
    gateway: RunningGateway, model: FakeModel
) -> None:
    chromium()
    installed_packages()
    bundler = str(FOLDER / "node_modules" / ".bin" / "esbuild")
    script = await output_of(
        bundler,
        "--bundle",
        "--loader=jsx",
        "--jsx=automatic",
        '--define:process.env.NODE_ENV="production"',
        stdin=example("jsx", gateway) + _MOUNT,
    )
    # An HTML parser looks for this also within scripts.
    script = script.replace("</script", "<\\/script")
    model.answers.append(text("half of it, ", "and the rest", held_after=1))
    async with open_tab(gateway.url, f"<!doctype html><meta charset=utf-8><body><script>{script}</script>") as tab:
        shown = "[...document.querySelectorAll('p')].map((p) => p.textContent).join('|')"
        await tab.page.get_by_label("Message").fill("Hello?")
        await tab.page.get_by_role("button").click()
        await tab.until(shown, lambda found: found == "Hello?|half of it, ")
        await tab.page.reload()
        await tab.until(shown, lambda found: found == "half of it, ")
        model.release.set()
        await tab.until(shown, lambda found: found == "half of it, and the rest")
