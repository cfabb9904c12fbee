"""`streams …` and `health` as processes of their own."""

import asyncio
import os
import pty
from collections.abc import AsyncIterator

import pytest
from grpc_health.v1 import health_pb2

from llmbridge.client import Client, StreamCompleted
from tests.support.command import LLMBRIDGE, SECONDS, Done, clean_environment, run
from tests.support.fake_bridge import FakeBridge
from tests.support.running_bridge import RunningBridge

NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def client(bridge: RunningBridge) -> AsyncIterator[Client]:
    async with Client(bridge.address) as connected:
        yield connected


async def test_a_sessions_streams_are_listed_newest_first(bridge: RunningBridge, client: Client) -> None:
    for response in ("r1", "r2", "r3 [b] é"):
        await client.streams.create("s", "m", response)
    await client.streams.create("other", "m", "r")
    done = await run("streams", "list", "--session", "s", "--address", bridge.address)
    assert (done.code, done.err) == (0, "")
    assert [row[:6] for row in done.rows] == [
        ["s", "m", response, "open", "", ""] for response in ("r3 [b] é", "r2", "r1")
    ]
    some = await run("streams", "list", "--session", "s", "--limit", "2", "--json", "--address", bridge.address)
    assert [one["stream"]["responseId"] for one in some.objects] == ["r3 [b] é", "r2"]
    assert some.err == "llmbridge: only the first 2 are shown; --limit shows more\n"
    every = await run("streams", "list", "--open", "--limit", "4", "--address", bridge.address)
    assert sorted(row[2] for row in every.rows) == ["r", "r1", "r2", "r3 [b] é"]
    assert every.err == ""


async def test_nothing_to_list_is_no_error(bridge: RunningBridge) -> None:
    done = await run("streams", "list", "--session", "s", "--address", bridge.address)
    assert done == Done(0, "", "llmbridge: there is no such stream\n")


@pytest.mark.parametrize("arguments", [("list",), ("list", "--session", "s", "--open"), ("trim", "s", "m")])
async def test_one_of_two_options_is_needed(arguments: tuple[str, ...]) -> None:
    done = await run("streams", *arguments, "--address", NOWHERE)
    assert done.code == 2
    assert done.err.startswith("llmbridge: give either ")


async def test_the_life_of_a_stream(bridge: RunningBridge, client: Client) -> None:
    at = ("--address", bridge.address)
    created = await run("streams", "create", "s", "m", *at, "--max-length", "5", "--retention-ms", "60000")
    ((session, model, response),) = created.rows
    assert (session, model, len(response) > 8) == ("s", "m", True)
    stream = ("s", "m", "--response", response, *at)

    again = await run("streams", "create", *stream)
    assert again.code == 6
    assert again.err.startswith("llmbridge: there is such a stream already")

    async with client.write("s", "m", response) as writer:
        for text in ("one", "two", "three"):
            await writer.text(text)
            await writer.flush()
        (row,) = (await run("streams", "get", *stream)).rows
        assert row[3:10] == ["open", "", "", "1", "3", "0", "3"]
        assert row[14] == writer.cursor
        assert 0 < int(row[13]) <= 60_000
        (trimmed,) = (await run("streams", "trim", *stream, "--keep", "2")).rows
        assert trimmed == ["2", "1"]
        cancelled = await run("streams", "cancel", *stream, "--reason", "enough", "--json")
        (answer,) = cancelled.objects
        assert answer["finishReason"] == "FINISH_REASON_CANCELLED"
        assert answer["sealedNow"] is True
        await asyncio.wait_for(writer.stopped.wait(), 5)
        with pytest.raises(StreamCompleted, match="cancelled"):
            await writer.text("four")

    (info,) = (await run("streams", "get", *stream, "--json")).objects
    assert (info["state"], info["firstSequence"], info["producerEpoch"]) == ("STREAM_STATE_SEALED", "2", "0")
    twice = await run("streams", "cancel", *stream)
    assert twice.rows == [["cancelled", "cancel", "4", info["cursor"]]]
    assert twice.err == f"llmbridge: s/m/{response} had its end already\n"

    assert await run("streams", "delete", *stream) == Done(0, "", f"llmbridge: deleted s/m/{response}\n")
    for command in (("get", *stream), ("delete", *stream), ("trim", *stream, "--keep", "1")):
        gone = await run("streams", *command)
        assert (gone.code, gone.out) == (5, "")
        assert gone.err.startswith("llmbridge: there is no such stream")


async def test_a_refused_field_is_a_wrong_command_line(bridge: RunningBridge) -> None:
    done = await run("streams", "get", "s" * 300, "m", "--address", bridge.address)
    assert done.code == 2
    assert done.err.startswith("llmbridge: stream.session_id: ")


async def test_a_terminal_gets_a_table(bridge: RunningBridge, client: Client) -> None:
    await client.streams.create("a [session]", "m", "r")
    listed = await on_a_terminal("streams", "list", "--session", "a [session]", "--address", bridge.address)
    assert "finish reason" in listed
    assert "a [session]" in listed
    assert "none yet" in listed
    got = await on_a_terminal("streams", "get", "a [session]", "m", "--response", "r", "--address", bridge.address)
    assert "expires in" in got
    assert "\t" not in listed + got


async def test_an_unreachable_bridge_is_given_up_in_time() -> None:
    done = await run("streams", "list", "--open", "--timeout", "0.5", LLMBRIDGE_ADDRESS=NOWHERE)
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith(f"llmbridge: no answer from a bridge at {NOWHERE} ")
    assert done.err.count("\n") == 1


async def test_health_tells_by_exit_code() -> None:
    async with FakeBridge() as fake:
        assert await run("health", "--timeout", "20", "--address", fake.address) == Done(0, "SERVING\n", "")
        await fake.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await run("health", LLMBRIDGE_ADDRESS=fake.address) == Done(1, "NOT_SERVING\n", "")
        unknown = await run("health", "--service", "nix", "--address", fake.address)
        assert unknown == Done(5, "", f"llmbridge: the bridge at {fake.address} has no service of that name\n")
        await fake.stop()
        gone = await run("health", "--address", fake.address)
        assert (gone.code, gone.out) == (4, "")
        assert gone.err.startswith(f"llmbridge: no answer from a bridge at {fake.address} ")


async def test_health_of_a_real_bridge_and_its_services(bridge: RunningBridge) -> None:
    for service in (
        "",
        "llmbridge.v1.BridgeService",
        "llmbridge.v1.StreamAdminService",
        "llmbridge.v1.ConnectionService",
    ):
        done = await run("health", "--service", service, "--address", bridge.address)
        assert done == Done(0, "SERVING\n", "")


async def on_a_terminal(*arguments: str) -> str:
    """What a command prints on a terminal of 100 columns."""
    ours, its = pty.openpty()
    environment = clean_environment() | {"COLUMNS": "100", "TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(*LLMBRIDGE, *arguments, stdout=its, env=environment)
    os.close(its)
    try:
        async with asyncio.timeout(SECONDS):
            shown = await asyncio.to_thread(_read_all, ours)
            assert await process.wait() == 0
    finally:
        os.close(ours)
    return shown


def _read_all(terminal: int) -> str:
    data = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            # Linux says so when the terminal's other end is closed.
            piece = b""
        if not piece:
            return data.decode()
        data += piece
