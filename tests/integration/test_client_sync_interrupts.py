"""Ctrl-C in programs without an event loop: what was waited for ends first, and no thread is left hanging."""

import asyncio
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
with Client(sys.argv[1]) as client, client.write("s", "m", "r", close_timeout=float(sys.argv[2])) as writer:
    writer.text("a")
    writer.flush()
    print("stored", flush=True)
    writer.text("b")
    writer.flush()
"""
PIPING = """
import sys, time
from llmbridge.client.sync import Client
def said():
    try:
        yield "a"
        print("read on", flush=True)
        time.sleep(60)
    finally:
        print("closed", file=sys.stderr)
with Client(sys.argv[1]) as client:
    client.pipe(said(), "s", "m", "r")
"""


@pytest.fixture
async def bridge() -> AsyncIterator[FakeBridge]:
    async with serving() as bridge:
        yield bridge


@pytest.mark.parametrize("interruptions", [1, 3])
def test_an_interrupted_wait_ends_when_the_work_has_ended(interruptions: int) -> None:
    ended = []

    def interrupt() -> None:
        # To the thread that waits: another one of the process would not wake it up.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    async def work() -> None:
        # By the work itself, so that none comes when nobody waits for it any more. Until then the wait has begun.
        asyncio.get_running_loop().call_later(0.1, interrupt)
        try:
            await asyncio.Event().wait()
        finally:
            for turn in range(20):
                if turn < interruptions - 1:
                    interrupt()
                # As work that is not to be cut short does it.
                try:
                    await asyncio.sleep(0.02)
                except asyncio.CancelledError:
                    continue
            ended.append(True)

    thread = LoopThread()
    with pytest.raises(KeyboardInterrupt):
        thread.run(work())
    assert ended
    thread.close()


async def interrupted(program: str, bridge: FakeBridge, first_line: str, appends: int, *arguments: str) -> str:
    """Run a program up to its first line and so many appends, interrupt it, and return what it says about that."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, bridge.address, *arguments, stdout=PIPE, stderr=PIPE
    )
    try:
        assert process.stdout is not None
        assert (await asyncio.wait_for(process.stdout.readline(), 30)).decode() == first_line
        await bridge.until(lambda: len(bridge.produced) == appends)
        # It has to get to where it waits; how far it is makes no difference to what must hold.
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode != 0
    return errors.decode()


async def test_a_reader_is_interrupted(bridge: FakeBridge) -> None:
    bridge.append("a")
    errors = await interrupted(READ, bridge, "a\n", 0)
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
    errors = await interrupted(WRITE, bridge, "stored\n", 2, "10")
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
    errors = await interrupted(WRITE, bridge, "stored\n", 2, "1")
    assert "could not be stored" in errors
    assert KEY in bridge.logs


async def test_a_pipe_whose_source_is_silent_is_interrupted_and_gives_the_stream_its_end(bridge: FakeBridge) -> None:
    errors = await interrupted(PIPING, bridge, "read on\n", 1)
    assert errors.startswith("closed\n")
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert bridge.log.text == "a"
    assert bridge.log.completion is not None
    assert bridge.log.completion.error_message == "producer cancelled"
