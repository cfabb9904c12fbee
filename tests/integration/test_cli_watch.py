"""`watch` as a process of its own, against a real bridge."""

import json
import signal

from llmbridge.v1.bridge_service_pb2 import CancelRequest
from tests.support.calls import STOP, produce, ref
from tests.support.command import run, running
from tests.support.feed_calls import WatchCall
from tests.support.running_bridge import RunningBridge


async def test_events_are_printed_and_acknowledged(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r 1 é"), "a", "b", first=1, completion=STOP)
    async with running("watch", "--address", bridge.address) as command:
        await command.prints("stop, 2 tokens")
        await bridge.bridge.Cancel(CancelRequest(stream=ref("r2"), reason="no\nmore"))
        await command.prints("s/m/r2: cancelled, 0 tokens, 0.0 s, sealed by cancel, no more\n")
        command.signal(signal.SIGINT)
        done = await command.done()
    assert (done.code, done.err) == (130, "")
    lines = [line.split(" ", 2)[2] for line in done.out.splitlines()]
    assert [line.partition(":")[0] for line in lines] == [
        "created s/m/r 1 é",
        "completed s/m/r 1 é",
        "created s/m/r2",
        "completed s/m/r2",
    ]
    # It goes on from its place: the last event may have been printed and not acknowledged, the others surely were.
    watcher = await WatchCall.begin(bridge.channel, "llmbridge-watch")
    assert (await watcher.info()).lag == 0
    assert (await watcher.info()).pending <= 1
    await watcher.leave()


async def test_json_lines_and_names(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1, completion=STOP)
    arguments = ("--json", "--group", "g", "--consumer", "me", "--address", bridge.address)
    async with running("watch", *arguments) as command:
        await command.prints("FINISH_REASON_STOP")
        await command.prints("\n")
        command.signal(signal.SIGINT)
        done = await command.done()
    created, completed = map(json.loads, done.out.splitlines())
    assert created["type"] == "LIFECYCLE_EVENT_TYPE_CREATED"
    assert completed["stream"] == {"sessionId": "s", "modelId": "m", "responseId": "r"}
    assert completed["completion"] == {"finishReason": "FINISH_REASON_STOP"}
    assert completed["tokens"] == "1"


async def test_a_deleted_group_ends_it(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1)
    async with running("watch", "--group", "g", "--address", bridge.address) as command:
        await command.prints("created")
        deleted = await run("groups", "delete", "--lifecycle", "--group", "g", "--address", bridge.address)
        assert deleted.code == 0
        assert (await command.done()).code == 5


async def test_without_a_bridge_it_says_so() -> None:
    done = await run("watch", "--address", "127.0.0.1:1", "--retry-for", "0.3")
    assert (done.code, done.out) == (4, "")
    assert "no answer from a bridge" in done.err
