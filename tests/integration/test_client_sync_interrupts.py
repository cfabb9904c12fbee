"""Ctrl-C in programs without an event loop: what was waited for ends first, and no thread is left hanging."""

import asyncio
import os
import signal
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest

from llmbridge.client import FinishReason
from llmbridge.client.sync.loop_thread import LoopThread
from tests.support.fake_bridge import KEY, FakeBridge, serving

READ = """
import sys
from llmbridge.client.sync import Client
with Client(sys.argv[1]) as client:
    for message in client.subscribe("s", "m", "r"):
        print(message.text, flush=True)
"""
WRITE = """
import sys
from llmbridge.client.sync import Client
with Client(sys.argv[1]) as client, client.write("s", "m", "r", close_timeout=1.0) as writer:
    writer.text("a")
    writer.flush()
    print("stored", flush=True)
    writer.text("b")
    writer.flush()
"""


@pytest.fixture
async def bridge() -> AsyncIterator[FakeBridge]:
    async with serving() as bridge:
        yield bridge


def interrupt_after(*delays: float) -> list[threading.Timer]:
    timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)) for delay in delays]
    for timer in timers:
        timer.start()
    return timers


@pytest.mark.parametrize("delays", [(0.1,), (0.1, 0.2, 0.25)])
def test_an_interrupted_wait_ends_when_the_work_has_ended(delays: tuple[float, ...]) -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(20):
                # As work that is not to be cut short does it.
                try:
                    await asyncio.sleep(0.02)
                except asyncio.CancelledError:
                    continue
            ended.append(True)

    thread = LoopThread()
    timers = interrupt_after(*delays)
    with pytest.raises(KeyboardInterrupt):
        thread.run(work())
    assert ended
    thread.close()
    for timer in timers:
        timer.join()


async def interrupted(program: str, bridge: FakeBridge, first_line: str) -> str:
    """Run a program up to its first line, interrupt it, and return what it says about that."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, bridge.address, stdout=PIPE, stderr=PIPE
    )
    try:
        assert process.stdout is not None
        assert (await asyncio.wait_for(process.stdout.readline(), 20)).decode() == first_line
        # It has to get to where it waits; how far it is makes no difference to what must hold.
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(process.communicate(), 10)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode != 0
    return errors.decode()


async def test_a_reader_is_interrupted(bridge: FakeBridge) -> None:
    bridge.append("a")
    errors = await interrupted(READ, bridge, "a\n")
    assert errors.rstrip().endswith("KeyboardInterrupt")
    await bridge.until(lambda: bridge.readers == 0)


async def test_a_writer_is_interrupted_and_gives_the_stream_its_end(bridge: FakeBridge) -> None:
    stored = False

    async def hang_once() -> None:
        nonlocal stored
        if len(bridge.produced) == 2:
            stored = True
            await asyncio.Event().wait()

    bridge.before_produce = hang_once
    errors = await interrupted(WRITE, bridge, "stored\n")
    assert stored
    assert "KeyboardInterrupt" in errors
    assert bridge.log.text == "ab"
    assert bridge.log.completion is not None
    assert FinishReason.of(bridge.log.completion) is FinishReason.ERROR


async def test_a_writer_whose_bridge_hangs_is_interrupted_all_the_same(bridge: FakeBridge) -> None:
    async def hang() -> None:
        if len(bridge.produced) > 1:
            await asyncio.Event().wait()

    bridge.before_produce = hang
    errors = await interrupted(WRITE, bridge, "stored\n")
    assert "could not be stored" in errors
    assert KEY in bridge.logs
