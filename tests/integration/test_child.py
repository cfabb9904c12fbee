"""Child processes and their leash: heard, ended, and never left behind."""

import asyncio
import re
import signal
import sys

import pytest

from llmbridge.cli.child import ChildError, running_child
from tests.support.processes import ended

READY = re.compile(r"^ready (\d+)$")
# Waits for ever, and would outlive anybody who forgets it.
HANGING = "import time; print('ready 1', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {HANGING}"


async def test_it_is_heard_and_then_ended() -> None:
    async with running_child("it", [sys.executable, "-c", HANGING]) as child:
        assert (await child.says(READY, 20))[1] == "1"
        # What was said before is found too.
        assert (await child.says(READY, 0.1))[1] == "1"
    assert await ended([child.pid])


async def test_one_that_does_not_want_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmbridge.cli.child._STOP_SECONDS", 0.2)
    async with running_child("it", [sys.executable, "-c", STUBBORN]) as child:
        await child.says(READY, 20)
    assert await ended([child.pid])


async def test_its_end_is_told_with_its_last_line() -> None:
    async with running_child("it", [sys.executable, "-c", "print('no disk'); print(); raise SystemExit(7)"]) as child:
        with pytest.raises(ChildError, match=r"^it ended with exit code 7; its last line: no disk$"):
            await child.says(READY, 20)
        with pytest.raises(ChildError, match="exit code 7"):
            await child.ended()


async def test_silence_is_told_too() -> None:
    async with running_child("it", [sys.executable, "-c", "pass"]) as child:
        with pytest.raises(ChildError, match=r"^it ended with exit code 0; it printed nothing$"):
            await child.says(READY, 20)


async def test_much_output_and_long_lines_hold_nothing_up() -> None:
    code = "print('x' * 3_000_000); [print(i) for i in range(50_000)]; print('ready 2', end='')"
    async with running_child("it", [sys.executable, "-c", code]) as child:
        assert (await child.says(READY, 20))[1] == "2"
        assert len(child.lines) < 1000


async def test_leaving_by_an_exception_ends_it() -> None:
    with pytest.raises(ZeroDivisionError):
        async with running_child("it", [sys.executable, "-c", HANGING]) as child:
            raise ZeroDivisionError
    assert await ended([child.pid])


LEASHED = """
import signal, sys, time
from llmbridge.cli.leash import exit_with_parent

def asked():
    print("asked", flush=True)
    if {ends}:
        signal.raise_signal(signal.SIGTERM)

exit_with_parent(ask=asked if {asks} else None, grace_seconds=0.2)
print("ready 1", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("asks", "ends"), [(False, False), (True, True), (True, False)])
async def test_a_leashed_process_ends_when_its_standard_input_does(asks: bool, ends: bool) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        LEASHED.format(asks=asks, ends=ends),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"ready 1\n"
        process.stdin.close()
        assert await process.stdout.read() == (b"asked\n" if asks else b"")
        assert await process.wait() == (-signal.SIGTERM if ends else 1)
