"""`useChat` of the latest major version in a real browser: what broke off goes on when the page is seen again."""

import asyncio
from string import Template

import pytest

from tests.support.browser import chromium, open_tab
from tests.support.calls import STOP, produce, ref
from tests.support.node_client import FOLDER, installed_packages
from tests.support.proxy import local, proxy_to
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import running_gateway

STREAM = ref("r", session="chat")
PAGE = Template("""
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { createRoot } from "react-dom/client";

const transport = new DefaultChatTransport({ api: "$url/api/chat" });

function Chat() {
  const chat = useChat({ id: "chat", transport, resume: true });
  const texts = chat.messages.map(({ parts }) => parts.map((part) => part.text).join(""));
  return <p>{chat.status + ": " + texts.join("|")}</p>;
}
createRoot(document.body).render(<Chat />);
""")


async def bundled(source: str) -> str:
    """One script that has all it imports, fit to stand in a page."""
    process = await asyncio.create_subprocess_exec(
        str(FOLDER / "node_modules" / ".bin" / "esbuild"),
        "--bundle",
        "--loader=jsx",
        "--jsx=automatic",
        '--define:process.env.NODE_ENV="production"',
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=FOLDER,
    )
    async with asyncio.timeout(60):
        script, _ = await process.communicate(source.encode())
    assert process.returncode == 0
    # An HTML parser looks for this also within scripts.
    return script.decode().replace("</script", "<\\/script")


# The first to run installs the packages.
@pytest.mark.timeout(300)
async def test_an_answer_that_was_cut_is_whole_when_the_page_is_seen_again(bridge: RunningBridge) -> None:
    chromium()
    installed_packages()
    await produce(bridge.bridge, STREAM, "half of it, ")
    async with running_gateway(bridge.address) as gateway, proxy_to(local(gateway.port)) as network:
        script = await bundled(PAGE.substitute(url=network.url))
        async with open_tab(network.url, f"<!doctype html><meta charset=utf-8><body><script>{script}</script>") as tab:
            shown = "document.body.innerText"
            await tab.until(shown, lambda found: found == "streaming: half of it,")
            network.reset_all()
            await tab.until(shown, lambda found: found == "error: half of it,")
            await produce(bridge.bridge, STREAM, "and the ")
            await tab.run("document.dispatchEvent(new Event('visibilitychange'))")
            await tab.until(shown, lambda found: found == "streaming: half of it, and the")
            await produce(bridge.bridge, STREAM, "rest", completion=STOP)
            await tab.until(shown, lambda found: found == "ready: half of it, and the rest")
