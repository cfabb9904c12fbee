"""Debian's Chromium, driven by Playwright. Where either is missing, the tests that need it are skipped and say so."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

PATIENCE_SECONDS = 30.0

_ARGUMENTS = [
    "--no-sandbox",
    "--no-proxy-server",
    # A page that Playwright provides comes from no address: to the browser it is a stranger to loopback.
    "--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets",
]

_PAGE = "<!doctype html><meta charset=utf-8><title>test</title><pre id=out></pre>"


@dataclass
class Tab:
    """A page of the gateway's own origin, and what it was answered."""

    page: Any
    statuses: list[int] = field(default_factory=list)
    """The statuses of all responses but that of the page itself, in order."""

    async def run(self, script: str) -> Any:
        return await self.page.evaluate(script)

    async def until(self, expression: str, is_met: Callable[[Any], bool] = bool) -> Any:
        """Wait until an expression in the page is as it should be, and give it."""
        value = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not is_met(value := await self.run(expression)):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{expression} stayed {value!r}; statuses {self.statuses}") from None
        return value


def chromium() -> str:
    """Find the browser, or skip the test."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("chromium is not installed")
    return found


@asynccontextmanager
async def open_tab(url: str, content: str = _PAGE) -> AsyncIterator[Tab]:
    """Open a page at `url`/test.html, which the browser itself provides."""
    executable = chromium()
    from playwright.async_api import async_playwright

    async def serve_page(route: Any) -> None:
        await route.fulfill(body=content, content_type="text/html")

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        try:
            page = await browser.new_page()
            tab = Tab(page)
            page.on("response", lambda response: _note(tab, response))
            await page.route("**/test.html", serve_page)
            await page.goto(f"{url}/test.html")
            yield tab
        finally:
            await browser.close()


def _note(tab: Tab, response: Any) -> None:
    if not response.url.endswith("/test.html"):
        tab.statuses.append(response.status)
