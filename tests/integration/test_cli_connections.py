"""`connections …` as processes of their own, against a real bridge."""

import pytest

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from tests.support.calls import Received, attached, failure, produce, ref
from tests.support.command import Done, run
from tests.support.running_bridge import RunningBridge

NOWHERE = "127.0.0.1:1"


async def test_list_count_and_disconnect(bridge: RunningBridge) -> None:
    at = ("--address", bridge.address)
    cursor = (await produce(bridge.bridge, ref("r 1 [b] é"), "a", first=1)).cursor
    calls = [
        await attached(bridge.bridge, SubscribeRequest(stream=stream))
        for stream in (ref("r 1 [b] é"), ref("r2"), ref("r3", session="other"))
    ]
    received = await Received().read(calls[0], through=1)

    done = await run("connections", "list", *at)
    assert (done.code, done.err) == (0, "")
    ids = [row[0] for row in done.rows]
    assert [row[1:5] for row in done.rows] == [
        ["s", "m", "r 1 [b] é", "grpc"],
        ["s", "m", "r2", "grpc"],
        ["other", "m", "r3", "grpc"],
    ]
    first = done.rows[0]
    assert first[5].startswith("ipv4:127.0.0.1:")
    assert 0 < int(first[6]) <= int(first[7])
    assert first[8:] == ["live", cursor, "0", "", ""]

    some = await run("connections", "list", "--session", "s", "--limit", "1", "--json", *at)
    assert [(one["id"], one["state"], one["lag"]) for one in some.objects] == [(ids[0], "CONNECTION_STATE_LIVE", "0")]
    assert some.err == "llmbridge: only the first 1 are shown; --limit shows more\n"

    counted = await run("connections", "count", *at)
    assert (counted.code, counted.rows) == (0, [["s", "2"], ["other", "1"]])
    assert counted.err == "llmbridge: 3 connections, 0 of them members or watchers, in 2 sessions\n"
    (answer,) = (await run("connections", "count", "--limit", "1", "--json", *at)).objects
    assert (answer["total"], answer["members"], answer["sessionCount"]) == (3, 0, 2)
    assert answer["sessions"] == [{"sessionId": "s", "connections": 2}]

    assert await run("connections", "disconnect", ids[0], *at) == Done(0, "", f"llmbridge: disconnected {ids[0]}\n")
    assert (await failure(received.read(calls[0]))).reason == "DISCONNECTED"
    again = await run("connections", "disconnect", ids[0], *at)
    assert (again.code, again.out) == (5, "")
    assert again.err.startswith(f"llmbridge: there is no connection '{ids[0]}' here")
    assert [row[0] for row in (await run("connections", "list", *at)).rows] == ids[1:]
    for call in calls[1:]:
        call.cancel()


async def test_nobody_there_is_no_error(bridge: RunningBridge) -> None:
    at = ("--address", bridge.address)
    assert await run("connections", "list", *at) == Done(0, "", "llmbridge: there is no connection\n")
    counted = await run("connections", "count", *at)
    assert counted == Done(0, "", "llmbridge: 0 connections, 0 of them members or watchers, in 0 sessions\n")


@pytest.mark.parametrize("arguments", [("list", "--session", "s" * 300), ("disconnect", "")])
async def test_a_refused_field_is_a_wrong_command_line(bridge: RunningBridge, arguments: tuple[str, ...]) -> None:
    assert (await run("connections", *arguments, "--address", bridge.address)).code == 2


async def test_an_unreachable_bridge_is_given_up_in_time() -> None:
    done = await run("connections", "count", "--timeout", "0.5", LLMBRIDGE_ADDRESS=NOWHERE)
    assert (done.code, done.out) == (4, "")
