"""The older address: which response it means, and how its events look."""

import pytest

from llmbridge.v1.connection_service_pb2 import TRANSPORT_SSE, ListConnectionsRequest
from tests.support.calls import STOP, produce, ref, until
from tests.support.event_stream import BROWSER, OpenStream, read_to_end, reading
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway

PATH = "/sse/stream/s"


def types(stream: OpenStream) -> list[str]:
    assert set(stream.names) <= {"message"}, "onmessage gets only events without a name"
    return [event.data["type"] for event in stream.events]


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_the_newest_response_of_a_model(bridge: RunningBridge, gateway: RunningGateway, prefix: str) -> None:
    await produce(bridge.bridge, ref("old"), "old", first=1)
    await produce(bridge.bridge, ref("new"), "a", "b", first=1, completion=STOP)
    await produce(bridge.bridge, ref("other", model="n"), "other", first=1)
    stream = await read_to_end(gateway.http, f"{prefix}{PATH}", modelId="m")
    assert types(stream) == ["connected", "token", "complete"]
    connected, token, complete = (event.data for event in stream.events)
    names = {"sessionId": "s", "modelId": "m", "responseId": "new"}
    assert connected == {"type": "connected", "data": names, **names}
    for name in ("content", "role", "sequence", "timestamp", "isComplete"):
        assert token[name] == token["data"][name]
        assert complete[name] == complete["data"][name]
    assert (token["content"], token["role"], token["sequence"], token["isComplete"]) == ("ab", "assistant", 2, False)
    assert (complete["isComplete"], complete["finishReason"], complete["responseId"]) == (True, "stop", "new")


async def test_a_session_alone_means_its_newest_open_response(bridge: RunningBridge, gateway: RunningGateway) -> None:
    await produce(bridge.bridge, ref("open", model="x"), "a", first=1)
    await produce(bridge.bridge, ref("sealed"), "b", first=1, completion=STOP)
    async with reading(gateway.http, PATH) as stream:
        await stream.until(lambda: stream.text == "a")
        assert stream.events[0].data["modelId"] == "x"


@pytest.mark.parametrize("query", [{}, {"modelId": "m"}])
async def test_where_nothing_is_it_waits(bridge: RunningBridge, gateway: RunningGateway, query: dict[str, str]) -> None:
    await produce(bridge.bridge, ref("sealed", model="n"), "no", first=1, completion=STOP)
    async with reading(gateway.http, PATH, **query) as stream:
        await stream.until(lambda: types(stream) == ["connected"])
        await produce(bridge.bridge, ref("next"), "a", first=1)
        await stream.until(lambda: stream.text == "a")
        [connection] = (await bridge.connections.ListConnections(ListConnectionsRequest())).connections
        assert (connection.transport, connection.stream) == (TRANSPORT_SSE, ref("next"))


async def test_a_tab_that_is_closed_while_it_waits(bridge: RunningBridge, gateway: RunningGateway) -> None:
    async with reading(gateway.http, PATH) as stream:
        await stream.until(lambda: types(stream) == ["connected"])
    # Had it stayed, this would be read.
    await produce(bridge.bridge, ref("next"), "a", first=1)
    await until(lambda: bridge.core.idle)


async def test_the_gateways_drain_ends_the_wait(bridge: RunningBridge, gateway: RunningGateway) -> None:
    async with reading(gateway.http, PATH) as stream:
        await stream.until(lambda: types(stream) == ["connected"])
        gateway.core.link.drain()
        await stream.to_end()
    assert types(stream) == ["connected"]


@pytest.mark.parametrize("query", [{}, {"modelId": "org/m"}])
async def test_a_reconnect_stays_with_its_response(
    bridge: RunningBridge, gateway: RunningGateway, query: dict[str, str]
) -> None:
    one = ref("a/b ~é", model="org/m")
    await produce(bridge.bridge, one, "a", first=1)
    async with reading(gateway.http, PATH, **query) as stream:
        await stream.until(lambda: stream.text == "a")
    await produce(bridge.bridge, ref("two", model="org/m"), "other", first=1)
    await produce(bridge.bridge, one, "b", "c", first=2, completion=STOP)
    resumed = await read_to_end(gateway.http, PATH, stream.last_id, **query)
    assert resumed.text == "bc"
    rest = await read_to_end(gateway.http, PATH, resumed.events[1].id or "", **query)
    assert types(rest) == ["connected", "complete"]
    end = await gateway.http.get(PATH, params=query, headers=BROWSER | {"last-event-id": resumed.last_id})
    assert end.status_code == 204


async def test_an_error_comes_without_a_name_too(gateway: RunningGateway) -> None:
    stream = await read_to_end(gateway.http, PATH, "m/r/1-1-00000000", modelId="m")
    assert types(stream) == ["error"]
    assert stream.events[0].data["reason"] == "EXPIRED"
    assert stream.events[0].data["data"]["message"] == stream.events[0].data["message"]
    answer = await gateway.http.get(PATH, headers=BROWSER | {"last-event-id": stream.last_id})
    assert answer.status_code == 204


@pytest.mark.parametrize(
    ("query", "field"),
    [({"responseId": "r"}, "modelId"), ({"cursor": "a/b"}, "cursor"), ({"position": "x"}, "position")],
)
async def test_a_wrong_request_names_the_field(gateway: RunningGateway, query: dict[str, str], field: str) -> None:
    answer = await gateway.http.get(PATH, params=query, headers=BROWSER)
    assert (answer.status_code, answer.json()["details"][0]["metadata"]) == (400, {"field": field})
