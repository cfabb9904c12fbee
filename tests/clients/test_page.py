"""The page at `/` in a real browser: two readers, a cut, a reload, the keyboard, and what it looks like."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmbridge.v1.token_pb2 import FINISH_REASON_ERROR, Completion
from tests.support.browser import chromium
from tests.support.calls import STOP, produce, ref
from tests.support.fake_model import FakeModel, fake_model, text
from tests.support.model_endpoint import document, model_endpoint
from tests.support.proxy import local, proxy_to
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway, running_gateway

pytestmark = [pytest.mark.usefixtures("_browser"), pytest.mark.timeout(120)]

RESULTS = Path(__file__).parents[2] / "test-results"
STREAM = ref("r 1", session="s/1")
ADDRESS = "/#session=s%2F1&model=m&response=r+1"
PATIENCE_MS = 30_000
# What moves is what a person did not ask to move; the browser measures it.
MEASURE_SHIFTS = """
    window.shifts = 0;
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.shifts += entry.value;
    }).observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture(scope="module")
def _browser() -> None:
    chromium()


@pytest.fixture
async def model() -> AsyncIterator[FakeModel]:
    async with fake_model() as running:
        yield running


@pytest.fixture
async def gateway(bridge: RunningBridge, model: FakeModel) -> AsyncIterator[RunningGateway]:
    async with running_gateway(bridge.address, upstream_url=model.url, upstream_model="tiny") as running:
        yield running


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--no-proxy-server"]
        )
        try:
            yield running
        finally:
            await running.close()


@pytest.fixture
async def page(browser: Any) -> AsyncIterator[Any]:
    """A tab in which nothing may go wrong: no error, nothing that the page's own policy forbids, no other host."""
    tab = await browser.new_page(viewport={"width": 1100, "height": 900})
    wrong: list[str] = []
    hosts: set[str] = set()
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
    tab.set_default_timeout(PATIENCE_MS)
    await tab.add_init_script(MEASURE_SHIFTS)
    yield tab
    assert wrong == []
    assert hosts == {"127.0.0.1"}


async def shows(page: Any, selector: str, wanted: str) -> None:
    """Wait until an element has a text."""
    script = "([selector, wanted]) => document.querySelector(selector).textContent.includes(wanted)"
    try:
        await page.wait_for_function(script, arg=[selector, wanted])
    except Exception:
        found = await page.text_content(selector)
        raise AssertionError(f"{selector} shows {found!r} and not {wanted!r}") from None


async def both(page: Any) -> tuple[str, str]:
    return await page.text_content("#text-a"), await page.text_content("#text-b")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_reader_that_is_cut_comes_back_where_it_was(
    bridge: RunningBridge, gateway: RunningGateway, browser: Any, page: Any, scheme: str
) -> None:
    await page.emulate_media(color_scheme=scheme)
    await produce(bridge.bridge, STREAM, "one ", "two ")
    await page.goto(gateway.url + ADDRESS)
    await shows(page, "#text-a", "two ")
    await shows(page, "#text-b", "two ")
    await page.click("#cut-b")
    await shows(page, "#news", "Reader B is cut off after 2 tokens")
    await produce(bridge.bridge, STREAM, "three ")
    await shows(page, "#text-a", "three ")
    assert await both(page) == ("one two three ", "one two ")
    RESULTS.mkdir(exist_ok=True)
    await page.screenshot(path=RESULTS / f"page-{scheme}.png")
    await shows(page, "#news", "Reader B is back and goes on after token 2")
    await shows(page, "#text-b", "three ")
    await produce(bridge.bridge, STREAM, "end", completion=STOP)
    await shows(page, "#news", "Both readers have the same 4 tokens.")
    assert await both(page) == ("one two three end", "one two three end")
    assert "cut 1×" in await page.text_content("#state-b")
    assert await page.evaluate("window.shifts") == 0
    ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(246, 247, 249)", "dark": "rgb(20, 22, 26)"}[scheme]


async def test_a_reload_shows_the_same_stream_from_its_beginning(
    bridge: RunningBridge, gateway: RunningGateway, page: Any
) -> None:
    await produce(bridge.bridge, STREAM, "one ")
    await page.goto(gateway.url + ADDRESS)
    await shows(page, "#text-b", "one ")
    await page.click("#reload")
    await produce(bridge.bridge, STREAM, "two", completion=STOP)
    await shows(page, "#news", "Both readers have the same 2 tokens.")
    assert await both(page) == ("one two", "one two")


async def test_the_models_answer_is_asked_for_and_stopped_with_the_keyboard_alone(
    bridge: RunningBridge, gateway: RunningGateway, model: FakeModel, page: Any
) -> None:
    model.answers.append(text("An", " answer ", rambles=True))
    await page.goto(gateway.url)
    await shows(page, "#ask-note", "tiny")
    focused = "document.activeElement.id || document.activeElement.textContent.trim()"
    order = []
    for _ in range(11):
        await page.keyboard.press("Tab")
        order.append(await page.evaluate(focused))
    assert order == [
        "prompt",
        "Ask",
        "session",
        "model",
        "response",
        "Play",
        "stop",
        "reload",
        "cut-a",
        "text-a",
        "cut-b",
    ]
    await page.focus("#prompt")
    await page.keyboard.press("Control+A")
    await page.keyboard.type("Why?")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await shows(page, "#text-a", "An answer ")
    await shows(page, "#text-b", "An answer ")
    assert model.asked[0]["messages"] == [{"role": "user", "content": "Why?"}]
    await page.focus("#stop")
    await page.keyboard.press("Enter")
    await shows(page, "#state-a", "complete (cancelled)")
    await shows(page, "#news", "Both readers have the same")
    first, second = await both(page)
    assert first == second


async def test_a_stream_is_played_by_its_sessions_name(
    bridge: RunningBridge, gateway: RunningGateway, page: Any
) -> None:
    await produce(bridge.bridge, ref("old", session="a b"), "old", completion=STOP)
    # Creation is told in ms.
    await asyncio.sleep(0.01)
    await produce(bridge.bridge, ref("", session="a b", model="m/2"), "newest", completion=STOP)
    await page.goto(gateway.url)
    await page.fill("#session", "nobody")
    await page.click("#play button")
    await shows(page, "#news", "the session nobody has no such stream")
    await page.fill("#session", "a b")
    await page.click("#play button")
    await shows(page, "#news", "Both readers have the same 1 token.")
    assert await both(page) == ("newest", "newest")
    await page.fill("#model", "m")
    await page.fill("#response", "old")
    await page.click("#play button")
    await shows(page, "#text-b", "old")


async def test_an_answer_that_failed_says_so_once(bridge: RunningBridge, gateway: RunningGateway, page: Any) -> None:
    failed = Completion(finish_reason=FINISH_REASON_ERROR, error_message="the model fell over")
    await produce(bridge.bridge, STREAM, "half", completion=failed)
    await page.goto(gateway.url + ADDRESS)
    for letter in "ab":
        await shows(page, f"#state-{letter}", "failed after 1 token: the model fell over")
    await shows(page, "#news", "The answer failed")
    assert await page.text_content("#news") == "The answer failed: the model fell over"


async def test_a_lost_connection_is_told_and_that_it_is_back(
    bridge: RunningBridge, gateway: RunningGateway, browser: Any
) -> None:
    # A tab of its own: the browser itself notes each connection that breaks as an error.
    tab = await browser.new_page()
    tab.set_default_timeout(PATIENCE_MS)
    async with proxy_to(local(gateway.port)) as network:
        await tab.goto(network.url + ADDRESS)
        await shows(tab, "#ask-note", "tiny")
        await shows(tab, "#news", "Waiting for the first token. The stream may not have begun yet.")
        await produce(bridge.bridge, STREAM, "one ")
        for letter in "ab":
            await shows(tab, f"#state-{letter}", "reading: 1 token")
        assert await tab.text_content("#news") == "Reading."
        network.refuse()
        network.reset_all()
        await shows(tab, "#news", "Both readers lost their connection and try again.")
        await tab.click("#ask button")
        await shows(tab, "#news", "the gateway can't be reached")
        await produce(bridge.bridge, STREAM, "two")
        await network.accept()
        await shows(tab, "#news", "is back and goes on after token 1.")
        await produce(bridge.bridge, STREAM, completion=STOP)
        await shows(tab, "#news", "Both readers have the same 2 tokens.")


async def test_a_question_that_waits_for_a_connection_says_why(
    gateway: RunningGateway, model: FakeModel, page: Any
) -> None:
    # As where other tabs have all the connections that the browser makes.
    free = asyncio.Event()

    async def wait(route: Any) -> None:
        await free.wait()
        await route.continue_()

    await page.route("**/chat/start", wait)
    model.answers.append(text("Here."))
    await page.goto(gateway.url)
    await shows(page, "#ask-note", "tiny")
    await page.click("#ask button")
    await shows(page, "#news", "six connections")
    free.set()
    await shows(page, "#news", "Both readers have the same 1 token.")


async def test_going_back_to_the_address_without_a_stream_shows_none(
    bridge: RunningBridge, gateway: RunningGateway, page: Any
) -> None:
    await produce(bridge.bridge, STREAM, "one", completion=STOP)
    await page.goto(gateway.url)
    await page.fill("#session", "s/1")
    await page.click("#play button")
    await shows(page, "#news", "Both readers have the same 1 token.")
    await page.go_back()
    await shows(page, "#state-b", "idle")
    assert await both(page) == ("", "")


async def test_on_a_small_screen_nothing_is_cut_off_and_the_answer_is_seen(
    bridge: RunningBridge, gateway: RunningGateway, page: Any
) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await produce(bridge.bridge, STREAM, "word " * 500)
    await page.goto(gateway.url)
    await shows(page, "#ask-note", "tiny")
    for name in ("session", "model", "response"):
        assert await page.evaluate("id => document.getElementById(id).clientWidth", name) > 200
    await page.fill("#session", "s/1")
    await page.keyboard.press("Enter")
    await shows(page, "#text-b", "word")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    top, bottom = await page.evaluate(
        "(({ top, bottom }) => [top, bottom])(document.querySelector('article').getBoundingClientRect())"
    )
    assert top >= 0
    assert bottom <= 740
    RESULTS.mkdir(exist_ok=True)
    await page.screenshot(path=RESULTS / "page-small.png")


async def test_everything_that_can_be_used_has_a_name(gateway: RunningGateway, page: Any) -> None:
    await page.goto(gateway.url)
    await shows(page, "#ask-note", "tiny")
    for role, names in {
        "textbox": ["Question", "Session", "Model", "Response"],
        "button": ["Ask", "Play", "Stop answer", "Reload page", "Cut for 3 s Reader A", "Cut for 3 s Reader B"],
        "log": ["Reader A", "Reader B"],
        "heading": ["llmbridge", "Reader A", "Reader B"],
    }.items():
        for name in names:
            assert await page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    assert await page.get_by_role("status").count() == 2


async def test_without_a_model_server_the_page_says_so(bridge: RunningBridge, page: Any) -> None:
    async with running_gateway(bridge.address) as gateway:
        await page.goto(gateway.url)
        await shows(page, "#ask-note", "LLMBRIDGE_UPSTREAM_URL")
        assert await page.is_disabled("#ask button")


async def test_without_a_models_name_the_model_servers_first_is_asked(bridge: RunningBridge, page: Any) -> None:
    listed = {"object": "list", "data": [{"id": "first"}, {"id": "second"}]}
    async with (
        model_endpoint(document("200 OK", listed)) as endpoint,
        running_gateway(bridge.address, upstream_url=f"{endpoint.url}/v1") as gateway,
    ):
        await page.goto(gateway.url)
        await shows(page, "#ask-note", "first")
        async with page.expect_request("**/chat/start") as asked:
            await page.click("#ask button")
        assert (await asked.value).post_data_json["modelId"] == "first"
        await shows(page, "#state-b", "failed")


async def test_a_model_server_without_models_is_told(bridge: RunningBridge, page: Any) -> None:
    async with (
        model_endpoint(document("200 OK", {"object": "list", "data": []})) as endpoint,
        running_gateway(bridge.address, upstream_url=f"{endpoint.url}/v1") as gateway,
    ):
        await page.goto(gateway.url)
        await shows(page, "#ask-note", "LLMBRIDGE_UPSTREAM_MODEL")
        assert await page.is_disabled("#ask button")


async def test_the_pages_files_may_load_nothing_from_elsewhere(gateway: RunningGateway) -> None:
    for name in ("", "page/page.js", "page/reader.js", "page/page.css", "page/icon.svg"):
        response = await gateway.http.get(f"/{name}")
        assert response.status_code == 200, name
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert response.headers["x-content-type-options"] == "nosniff"
        again = await gateway.http.get(f"/{name}", headers={"if-none-match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for name in ("page/..%2Fpage.py", "page/nothing.js", "page/%2e%2e"):
        assert (await gateway.http.get(f"/{name}")).status_code == 404
