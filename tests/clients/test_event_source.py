"""A real browser's EventSource, of which nobody here wrote a line: it must resume by itself, and stop by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc
import pytest

from llmbridge.v1.stream_admin_service_pb2 import TrimStreamRequest
from tests.support.browser import Tab, chromium, open_tab
from tests.support.calls import STOP, produce, ref, stub, until
from tests.support.event_stream import events_path, reading
from tests.support.http_process import HttpProcess
from tests.support.proxy import NOWHERE, Proxy, local, proxy_to
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge
from tests.support.running_gateway import RunningGateway, running_gateway

pytestmark = [pytest.mark.usefixtures("_browser"), pytest.mark.timeout(120)]

OPEN = """(url) => {
    window.seen = {text: "", sequences: [], names: [], errors: [], lastId: "", drops: 0};
    const source = window.source = new EventSource(url);
    for (const name of ["connected", "token", "complete"]) source.addEventListener(name, (event) => {
        const data = JSON.parse(event.data);
        seen.names.push(name);
        if (event.lastEventId) seen.lastId = event.lastEventId;
        if (name !== "token") return;
        seen.text += data.content;
        seen.sequences.push(...data.tokens.map((token) => token.sequence));
    });
    source.addEventListener("error", (event) => {
        if (event.data) seen.errors.push(JSON.parse(event.data)); else seen.drops += 1;
    });
}"""

CLOSED = "source.readyState === EventSource.CLOSED"


@pytest.fixture(scope="module")
def _browser() -> None:
    chromium()


@pytest.fixture
async def tab(network: Proxy) -> AsyncIterator[Tab]:
    async with open_tab(network.url) as opened:
        yield opened


async def open_stream(tab: Tab, path: str = events_path()) -> None:
    await tab.page.evaluate(OPEN, path)
    await tab.until("seen.names.includes('connected')")


async def stays_closed(tab: Tab, network: Proxy) -> None:
    """It must not come back, though all the time is there in which it would."""
    await tab.until(CLOSED)
    before = network.accepted
    await asyncio.sleep(3.5)
    assert network.accepted == before
    assert await tab.run(CLOSED)


async def test_a_stream_from_its_first_token_to_its_end(bridge: RunningBridge, network: Proxy, tab: Tab) -> None:
    await open_stream(tab)
    texts = ["a\nb", "\u2028", "\r\n", "😀", "\x00", "data: x\n\n", "é"]
    for number, text in enumerate(texts, 1):
        await produce(bridge.bridge, ref("r"), text, first=number)
    await tab.until(f"seen.sequences.length === {len(texts)}")
    end = await produce(bridge.bridge, ref("r"), first=len(texts) + 1, completion=STOP)
    await stays_closed(tab, network)
    assert await tab.run("seen.text") == "".join(texts)
    assert await tab.run("seen.sequences") == list(range(1, len(texts) + 1))
    assert await tab.run("seen.names.at(-1)") == "complete"
    assert await tab.run("seen.lastId") == end.cursor
    assert tab.statuses == [200, 204]


async def test_a_network_that_is_cut_again_and_again(bridge: RunningBridge, network: Proxy, tab: Tab) -> None:
    await open_stream(tab)
    last = 0

    async def write(count: int) -> None:
        nonlocal last
        for _ in range(count):
            last += 1
            await produce(bridge.bridge, ref("r"), f"{last} ", first=last)

    for _ in range(2):
        await write(20)
        await tab.until(f"seen.sequences.length === {last}")
        await write(5)
        network.reset_all()
        await write(20)
        await tab.until(f"seen.sequences.length === {last}")
    await write(3)
    network.target, target = NOWHERE, network.target
    network.reset_all()
    await write(3)
    before = network.accepted
    # At least two attempts that a dead network answers.
    await until(lambda: network.accepted >= before + 2)
    network.target = target
    await produce(bridge.bridge, ref("r"), "end", first=last + 1, completion=STOP)
    await tab.until(CLOSED)
    assert await tab.run("seen.sequences") == list(range(1, last + 2))
    assert await tab.run("seen.text") == "".join(f"{number} " for number in range(1, last + 1)) + "end"
    assert tab.statuses[-1] == 204


async def test_a_reload_goes_on_from_what_the_page_kept(bridge: RunningBridge, network: Proxy, tab: Tab) -> None:
    await open_stream(tab)
    await produce(bridge.bridge, ref("r"), "a", "b", first=1)
    await tab.until("seen.text === 'ab'")
    await tab.run("sessionStorage.kept = JSON.stringify([seen.text, seen.lastId])")
    await tab.page.reload()
    await produce(bridge.bridge, ref("r"), "c", first=3)
    place = await tab.run("JSON.parse(sessionStorage.kept)[1]")
    await open_stream(tab, f"{events_path()}?cursor={place}")
    await tab.until("seen.text === 'c'")
    await produce(bridge.bridge, ref("r"), "d", first=4, completion=STOP)
    await tab.until(CLOSED)
    assert await tab.run("JSON.parse(sessionStorage.kept)[0] + seen.text") == "abcd"
    await until(lambda: bridge.core.idle)


async def test_a_restart_of_everything(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with proxy_to(NOWHERE) as network, open_tab(network.url) as tab:
        async with (
            running_bridge(shared_redis.url, key_prefix=key_prefix, beside=True) as bridge,
            running_gateway(bridge.address) as gateway,
        ):
            network.target = local(gateway.port)
            await open_stream(tab)
            await produce(bridge.bridge, ref("r"), "a", first=1)
            await tab.until("seen.text === 'a'")
            # The bridge drains while the gateway still answers: with 200 and an end, since it may come back.
            bridge.stop.set()
            await tab.until("seen.drops >= 2")
        network.target = NOWHERE
        assert not await tab.run(CLOSED)
        async with (
            running_bridge(shared_redis.url, key_prefix=key_prefix, beside=True) as bridge,
            running_gateway(bridge.address) as gateway,
        ):
            network.target = local(gateway.port)
            await produce(bridge.bridge, ref("r"), "b", first=2, completion=STOP)
            await tab.until(CLOSED)
        assert await tab.run("seen.text") == "ab"
        assert set(tab.statuses[:-1]) == {200}
        assert tab.statuses[-1] == 204


async def test_a_gateway_without_room_for_it(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1)
    async with running_gateway(bridge.address, http_max_connections=1) as gateway, AsyncExitStack() as page:
        # Before the page: browsers connect ahead of their first request.
        async with reading(gateway.http, events_path("other")):
            network = await page.enter_async_context(proxy_to(local(gateway.port)))
            tab = await page.enter_async_context(open_tab(network.url))
            await tab.page.evaluate(OPEN, events_path())
            await tab.until("seen.drops >= 2")
            assert not await tab.run(CLOSED)
            assert await tab.run("seen.names") == []
        await tab.until("seen.text === 'a'")
        assert set(tab.statuses) == {200}


@pytest.mark.parametrize("how", ["kill", "terminate"])
async def test_a_server_process_that_ends_and_another_one(
    shared_redis: RedisProcess, key_prefix: str, how: str
) -> None:
    environment = {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix}
    servers = [
        HttpProcess(("serve", "--port", "0", "--http-port", "0"), environment),
        HttpProcess(("serve", "--port", "0", "--http-port", "0"), environment),
    ]
    try:
        async with proxy_to(NOWHERE) as network, open_tab(network.url) as tab:
            for number, server in enumerate(servers):
                await asyncio.to_thread(server.start)
                network.target = local(int(server.url.rpartition(":")[2]))
                if number == 0:
                    await open_stream(tab)
                async with grpc.aio.insecure_channel(server.address) as channel:
                    last = 5 * number
                    for sequence in range(last + 1, last + 6):
                        await produce(stub(channel), ref("r"), f"{sequence} ", first=sequence)
                    await tab.until(f"seen.sequences.length === {last + 5}")
                    if number == 1:
                        await produce(stub(channel), ref("r"), first=last + 6, completion=STOP)
                if number == 0:
                    if how == "kill":
                        server.process.kill()
                    else:
                        assert await asyncio.to_thread(server.terminate) == 0
                    await tab.until("seen.drops >= 1")
                    assert not await tab.run(CLOSED)
            await tab.until(CLOSED)
            assert await tab.run("seen.sequences") == list(range(1, 11))
            assert await tab.run("seen.text") == "".join(f"{sequence} " for sequence in range(1, 11))
            assert tab.statuses[-1] == 204
    finally:
        for server in servers:
            if hasattr(server, "process"):
                server.close()


async def test_lost_history_is_told_once(bridge: RunningBridge, network: Proxy, tab: Tab) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1)
    await produce(bridge.bridge, ref("r"), "b", first=2)
    await bridge.admin.TrimStream(TrimStreamRequest(stream=ref("r"), keep_tokens=1))
    await tab.page.evaluate(OPEN, events_path())
    await stays_closed(tab, network)
    [error] = await tab.run("seen.errors")
    assert error["reason"] == "TRIMMED"
    assert tab.statuses == [200, 204]
    await open_stream(tab, f"{events_path()}?cursor={error['earliestCursor']}")
    await tab.until("seen.text === 'b'")


async def test_a_wrong_request_is_not_tried_again(network: Proxy, tab: Tab) -> None:
    await tab.page.evaluate(OPEN, f"{events_path()}?position=middle")
    await stays_closed(tab, network)
    assert tab.statuses == [400]


async def test_a_closed_tab_frees_everything(bridge: RunningBridge, gateway: RunningGateway, tab: Tab) -> None:
    await open_stream(tab)
    assert gateway.core.link.reads == 1
    await tab.page.close()
    await until(lambda: gateway.core.link.reads == 0 and bridge.core.idle)


async def test_a_page_from_before(bridge: RunningBridge, network: Proxy, tab: Tab) -> None:
    """`onmessage` at the older address, opened before there is anything to read; what begins later does not mix in."""
    await tab.run("""() => {
        window.seen = [];
        window.source = new EventSource("/api/sse/stream/s");
        source.onmessage = (event) => seen.push(JSON.parse(event.data));
    }""")
    await tab.until("seen.length === 1")
    await produce(bridge.bridge, ref("one"), "a", first=1)
    await tab.until("seen.length === 2")
    network.reset_all()
    await produce(bridge.bridge, ref("two"), "other", first=1)
    await produce(bridge.bridge, ref("one"), "b", first=2, completion=STOP)
    await tab.until(CLOSED)
    seen = await tab.run("seen")
    assert [event["type"] for event in seen if event["type"] != "connected"] == ["token", "token", "complete"]
    assert "".join(event["content"] for event in seen if event["type"] == "token") == "ab"
    assert seen[-1]["isComplete"] is True
    assert seen[-1]["data"]["isComplete"] is True
