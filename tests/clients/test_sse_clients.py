"""Server-Sent Events with clients nobody here wrote: httpx-sse, and curl."""

import asyncio
import json
import shutil

import pytest

from tests.support.calls import STOP, produce, ref
from tests.support.event_stream import BROWSER, events_path
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway

TEXTS = ["a\nb", "\u2028", "\r", "data: x\n\nid: 1\n\n", "😀", "\x00", "\x85", ""]


async def test_httpx_sse_reads_and_resumes(bridge: RunningBridge, gateway: RunningGateway) -> None:
    httpx_sse = pytest.importorskip("httpx_sse", reason="httpx-sse is not installed")
    for number, text in enumerate(TEXTS[:-1], 1):
        await produce(bridge.bridge, ref("r"), text, first=number)
    got, last_id = [], ""
    async with httpx_sse.aconnect_sse(gateway.http, "GET", events_path()) as source:
        async for event in source.aiter_sse():
            last_id = event.id or last_id
            if event.event == "token":
                got += [token["content"] for token in json.loads(event.data)["tokens"]]
            if len(got) == len(TEXTS) - 1:
                break
    await produce(bridge.bridge, ref("r"), TEXTS[-1], first=len(TEXTS), completion=STOP)
    names = []
    async with httpx_sse.aconnect_sse(gateway.http, "GET", events_path(), headers={"last-event-id": last_id}) as source:
        async for event in source.aiter_sse():
            names.append(event.event)
            if event.event == "token":
                got += [token["content"] for token in json.loads(event.data)["tokens"]]
            last_id = event.id or last_id
    assert names == ["connected", "token", "complete"]
    assert got == TEXTS
    end = await gateway.http.get(events_path(), headers=BROWSER | {"last-event-id": last_id})
    assert end.status_code == 204


async def test_curl_shows_a_stream_as_it_grows(bridge: RunningBridge, gateway: RunningGateway) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    process = await asyncio.create_subprocess_exec(
        curl, "--no-buffer", "--silent", "--show-error", "--noproxy", "*", gateway.url + events_path(),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(40):

        async def until(start: str) -> None:
            assert process.stdout is not None
            line = ""
            while not line.startswith(start):
                line = (await process.stdout.readline()).decode()
                assert line, "curl has ended"
            lines.append(line)

        await until("event: connected")
        for number, text in enumerate(TEXTS, 1):
            await produce(bridge.bridge, ref("r"), text, first=number)
            await until('data: {"type":"token"')
            assert json.loads(lines[-1].removeprefix("data: "))["content"] == text
        await produce(bridge.bridge, ref("r"), first=len(TEXTS) + 1, completion=STOP)
        await until('data: {"type":"complete"')
        assert await process.wait() == 0
