"""The pages in docs/clients.md, as they stand there, in a real browser: also through a cut in the middle."""

import re
from pathlib import Path

import pytest

from tests.support.browser import chromium, open_tab
from tests.support.calls import STOP, produce, ref
from tests.support.proxy import local, proxy_to
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import running_gateway

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
MOST_LINES = 15


def pages() -> dict[str, str]:
    """Every page in the document, by the heading it stands under."""
    found = re.findall(
        r"^### ([^\n]+)\n(?:(?!^##).)*?```html\n(.*?)```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )
    return dict(found)


@pytest.mark.parametrize("heading", ["EventSource", "WebSocket"])
@pytest.mark.timeout(120)
async def test_the_page(bridge: RunningBridge, heading: str) -> None:
    chromium()
    page = pages()[heading]
    script = page.partition('<script type="module">\n')[2].removesuffix("</script>\n")
    assert script.count("\n") <= MOST_LINES
    async with (
        running_gateway(bridge.address) as gateway,
        proxy_to(local(gateway.port)) as network,
        open_tab(network.url, f"<!doctype html><meta charset=utf-8>{page}") as tab,
    ):
        shown = "document.querySelector('#answer').textContent"
        await produce(bridge.bridge, ref("r"), "One", ", two", first=1)
        await tab.until(shown, lambda text: text == "One, two")
        network.reset_all()
        await produce(bridge.bridge, ref("r"), ", three", first=3)
        await tab.until(shown, lambda text: text == "One, two, three")
        await produce(bridge.bridge, ref("r"), ".", first=4, completion=STOP)
        await tab.until(shown, lambda text: text == "One, two, three.")
