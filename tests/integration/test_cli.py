"""`produce` and `tail` as processes of their own, against a real bridge."""

import asyncio
import os
import signal
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from llmbridge.client import Client, FinishReason, RetryPolicy, Role, Sealer, Token
from llmbridge.v1.stream_pb2 import STREAM_STATE_OPEN, StreamInfo
from tests.support.command import LLMBRIDGE, SECONDS, Done, run, running
from tests.support.fake_bridge import FakeBridge
from tests.support.running_bridge import RunningBridge

NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def client(bridge: RunningBridge) -> Any:
    async with Client(bridge.address, retry=RetryPolicy(give_up_after=SECONDS)) as connected:
        yield connected


async def info_of(client: Client, *stream: str) -> StreamInfo:
    return await client.streams.get(*stream)


async def tokens_of(client: Client, *stream: str) -> list[Token]:
    async with client.subscribe(*stream) as messages:
        return [token async for message in messages for token in message.tokens]


async def written(client: Client, *texts: str, end: FinishReason = FinishReason.STOP, message: str = "") -> None:
    async with client.write("s", "m") as writer:
        for text in texts:
            await writer.text(text)
            await writer.flush()
        await writer.complete(end, error_message=message)


async def test_input_reaches_a_reader_as_it_arrives_and_not_when_it_ends(bridge: RunningBridge) -> None:
    where = ("s", "m", "--response", "r", "--address", bridge.address)
    async with running("tail", *where) as reader, running("produce", *where) as producer:
        await producer.feed(b"no line end")
        await reader.prints("no line end")
        await producer.feed(" – né".encode()[:-1])
        await reader.prints(" – n")
        await producer.feed("é\n".encode()[1:])
        await reader.prints("né\n")
        producer.end_input()
        produced, read = await producer.done(), await reader.done()
    assert (produced.code, produced.out) == (0, "")
    assert produced.err.startswith("llmbridge: s/m/r: stop; tokens: 3; cursor ")
    cursor = produced.err.split()[-1]
    assert read == Done(0, "no line end – né\n", f"llmbridge: s/m/r: stop; cursor {cursor}\n")


async def test_what_is_there_at_once_becomes_a_token(bridge: RunningBridge, client: Client) -> None:
    data = os.urandom(40_000)
    done = await run("produce", "s", "m", "--role", "tool", "--address", bridge.address, data=data)
    assert done.code == 0
    tokens = await tokens_of(client, "s", "m")
    assert "".join(token.text for token in tokens) == data.decode(errors="replace")
    assert 3 <= len(tokens) <= 40
    assert {token.role for token in tokens} == {Role.Value("ROLE_TOOL")}
    assert all(token.timestamp_ms > 0 for token in tokens)


async def test_files_are_input_too(bridge: RunningBridge, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("a file\n")

    async def produce(response: str, path: str, mode: int) -> tuple[int | None, str]:
        """As with a shell's redirection: the process reads the file itself, not a pipe."""
        where = ("s", "m", "--response", response, "--address", bridge.address)
        descriptor = os.open(path, mode)
        process = await asyncio.create_subprocess_exec(*LLMBRIDGE, "produce", *where, stdin=descriptor, stderr=PIPE)
        os.close(descriptor)
        _, err = await asyncio.wait_for(process.communicate(), SECONDS)
        return process.returncode, err.decode()

    assert (await produce("file", str(file), os.O_RDONLY))[0] == 0
    assert [token.text for token in await tokens_of(client, "s", "m", "file")] == ["a file\n"]
    assert (await produce("nothing", os.devnull, os.O_RDONLY))[0] == 0
    assert await tokens_of(client, "s", "m", "nothing") == []
    assert await produce("unreadable", str(file), os.O_WRONLY) == (
        3,
        "llmbridge: can't read standard input: Bad file descriptor\n",
    )
    assert (await info_of(client, "s", "m", "unreadable")).finish_reason == FinishReason.ERROR


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_producer_that_is_stopped_ends_its_stream(
    bridge: RunningBridge, client: Client, number: signal.Signals, code: int
) -> None:
    async with running("produce", "s", "m", "--address", bridge.address) as producer:
        await producer.feed(b"half")
        await _has_records(client)
        producer.signal(number)
        done = await producer.done()
    assert done.code == code
    assert "Traceback" not in done.err
    async with client.subscribe("s", "m") as messages:
        assert [token.text async for message in messages for token in message.tokens] == ["half"]
        assert messages.completion is not None
        assert FinishReason.of(messages.completion) is FinishReason.CANCELLED
    assert (await info_of(client, "s", "m")).sealer == Sealer.PRODUCER


async def test_a_silent_producer_learns_at_once_that_its_stream_was_cancelled(bridge: RunningBridge) -> None:
    where = ("s", "m", "--address", bridge.address)
    async with running("produce", *where) as producer, running("tail", *where) as reader:
        await producer.feed(b"half")
        await reader.prints("half")
        assert (await run("streams", "cancel", *where, "--reason", "enough")).code == 0
        # Its input has not ended, and nothing more comes.
        produced, read = await producer.done(), await reader.done()
    assert produced == Done(9, "", "llmbridge: the stream was cancelled; enough; --response names another answer\n")
    assert (read.code, read.out) == (9, "half")
    assert read.err.startswith("llmbridge: s/m: cancelled; enough; cursor ")


async def test_a_producer_outlives_an_operator_who_ends_its_watching(bridge: RunningBridge, client: Client) -> None:
    """It also reads its stream, to notice another end: that is a connection like any other."""
    async with running("produce", "s", "m", "--address", bridge.address) as producer:
        await producer.feed(b"half ")
        async with asyncio.timeout(SECONDS):
            while not (found := [one.id async for one in client.connections.list("s")]):
                await asyncio.sleep(0.02)
        await client.connections.disconnect(found[0])
        await producer.feed(b"whole")
        producer.end_input()
        assert (await producer.done()).code == 0
    assert "".join(token.text for token in await tokens_of(client, "s", "m")) == "half whole"


async def test_a_producer_writes_a_deleted_stream_anew(bridge: RunningBridge, client: Client) -> None:
    """From its side that is the same as a Redis that has lost everything; and it still notices a cancel."""
    where = ("s", "m", "--address", bridge.address)
    async with running("produce", *where) as producer:
        await producer.feed(b"half ")
        async with client.subscribe("s", "m") as messages:
            assert (await anext(messages)).text == "half "
            await client.streams.delete("s", "m")
        await producer.feed(b"whole")
        async with client.subscribe("s", "m") as messages:
            text = ""
            while text != "half whole":
                text += (await anext(messages)).text
        assert (await run("streams", "cancel", *where, "--reason", "enough")).code == 0
        assert (await producer.done()).err == (
            "llmbridge: the stream was cancelled; enough; --response names another answer\n"
        )


async def test_a_stream_with_an_end_or_another_producer_takes_nothing(bridge: RunningBridge, client: Client) -> None:
    where = ("s", "m", "--address", bridge.address)
    assert (await run("produce", *where, "--epoch", "7", data=b"x")).code == 0
    assert (await info_of(client, "s", "m")).producer_epoch == 7
    again = await run("produce", *where, data=b"x")
    assert again.code == 6
    assert again.err == (
        "llmbridge: the stream has its end already, with finish reason stop; --response names another answer\n"
    )

    async with client.write("s", "m", "taken", producer_epoch=2) as writer:
        await writer.text("mine")
        await writer.flush()
        fenced = await run("produce", *where, "--response", "taken", "--epoch", "1", data=b"x")
        beside = await run("produce", *where, "--response", "taken", "--epoch", "3", data=b"x")
    assert fenced.code == 6
    assert fenced.err.startswith("llmbridge: another producer has the stream, with epoch 2")
    assert beside.code == 6
    assert beside.err.startswith("llmbridge: the stream's next record is 2, this producer's is 1")


async def test_json_has_every_record_and_a_cursor_goes_on_behind_it(bridge: RunningBridge, client: Client) -> None:
    await written(client, "one ", "two ", "three")
    where = ("s", "m", "--address", bridge.address)
    lines = (await run("tail", *where, "--json")).objects
    tokens = [token for line in lines for token in line.get("tokens", [])]
    assert [token["text"] for token in tokens] == ["one ", "two ", "three"]
    assert lines[0]["firstSequence"] == "1"
    assert lines[-1]["completion"] == {"finishReason": "FINISH_REASON_STOP"}

    async with client.subscribe("s", "m") as messages:
        cursors = [message.cursor async for message in messages]
    assert lines[-1]["cursor"] == cursors[-1]
    # After the end there is nothing; how it ended is told all the same.
    after = await run("tail", *where, "--after", cursors[-1])
    assert after == Done(0, "", f"llmbridge: s/m: stop; cursor {cursors[-1]}\n")


async def test_an_interrupted_reader_says_how_to_go_on(bridge: RunningBridge, client: Client) -> None:
    where = ("s", "m", "--address", bridge.address)
    async with client.write("s", "m") as writer:
        await writer.text("one ")
        await writer.flush()
        async with running("tail", *where) as reader:
            await reader.prints("one ")
            reader.signal(signal.SIGINT)
            done = await reader.done()
        assert (done.code, done.out) == (130, "one ")
        assert done.err == f"llmbridge: interrupted; --after {writer.cursor} goes on from here\n"
        async with running("tail", *where, "--after", writer.cursor) as resumed:
            await writer.text("two")
            await resumed.prints("two")
            await writer.complete()
            await writer.flush()
            assert (await resumed.done()).out == "two"


async def test_only_what_comes_from_now_on(bridge: RunningBridge, client: Client) -> None:
    async with client.write("s", "m") as writer:
        await writer.text("old")
        await writer.flush()
        async with running("tail", "s", "m", "--from", "latest", "--address", bridge.address) as reader:
            async with asyncio.timeout(SECONDS):
                # When it has begun to read can't be seen from here.
                while not reader.out:
                    await writer.text("new")
                    await writer.flush()
            await writer.complete()
            await writer.flush()
            done = await reader.done()
    assert done.out == "new" * (len(done.out) // 3)


async def test_an_error_at_the_end_is_told_after_the_text(bridge: RunningBridge, client: Client) -> None:
    await written(client, "half", end=FinishReason.ERROR, message="the model broke")
    done = await run("tail", "s", "m", "--address", bridge.address)
    assert (done.code, done.out) == (8, "half")
    assert done.err.startswith("llmbridge: s/m: error; the model broke; cursor ")


async def test_lost_history_is_told_and_what_is_left_can_be_read(bridge: RunningBridge, client: Client) -> None:
    await written(client, "one", "two", "three")
    await client.streams.trim("s", "m", keep_tokens=1)
    where = ("s", "m", "--address", bridge.address)
    lost = await run("tail", *where)
    assert (lost.code, lost.out) == (7, "")
    assert "trimmed" in lost.err
    assert lost.err.endswith("--from earliest reads what is left\n")
    assert lost.err.count("\n") == 1
    assert (await run("tail", *where, "--from", "earliest")).out == "three"


async def test_what_is_no_text_is_left_out_of_a_pipe_and_that_is_told(bridge: RunningBridge, client: Client) -> None:
    async with client.write("s", "m") as writer:
        await writer.reasoning("hm")
        await writer.text("answer \x1b[31m")
        await writer.write(Token(json='{"a": 1}'))
    done = await run("tail", "s", "m", "--address", bridge.address)
    assert done.out == "answer \x1b[31m"
    assert "; tokens that are no text, left out: 2 (--json shows them); cursor " in done.err


async def test_a_reader_whose_reader_has_gone_ends_quietly(bridge: RunningBridge, client: Client) -> None:
    read_end, write_end = os.pipe()
    async with client.write("s", "m") as writer:
        await writer.text("one")
        process = await asyncio.create_subprocess_exec(
            *LLMBRIDGE, "tail", "s", "m", "--address", bridge.address, stdout=write_end, stderr=PIPE
        )
        os.close(write_end)
        assert await asyncio.to_thread(os.read, read_end, 100) == b"one"
        os.close(read_end)
        # The pipe's end is noticed at the next write.
        await writer.text("two")
        _, err = await asyncio.wait_for(process.communicate(), SECONDS)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize("command", ["produce", "tail"])
async def test_no_bridge_is_told_at_once_and_given_up_in_time(command: str) -> None:
    async with running(command, "s", "m", "--address", NOWHERE, "--retry-for", "1") as waiting:
        await waiting.feed(b"x")
        await waiting.says("trying for 1 s\n")
        waiting.end_input()
        done = await waiting.done()
    assert (done.code, done.out) == (4, "")
    assert done.err.splitlines()[-1].startswith(f"llmbridge: no answer from a bridge at {NOWHERE} ")
    assert "Traceback" not in done.err


async def test_a_bridge_that_can_not_serve_yet_is_waited_for_and_that_is_told() -> None:
    async with FakeBridge() as fake:
        await fake.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        async with running("tail", "s", "m", "--address", fake.address) as reader:
            await reader.says("can't serve at present; trying for 30 s\n")
            async with Client(fake.address) as client:
                await written(client, "one")
            done = await reader.done()
    assert (done.code, done.out) == (0, "one")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("tail", "--after", "x", "--from", "latest"), "either --after or --from"),
        (("produce", "--openai-base-url", "http://127.0.0.1:1/v1"), "needs --prompt"),
        (("produce", "--prompt", "x"), "needs --openai-base-url"),
        (("produce", "--prompt", "x", "--openai-base-url", "http://127.0.0.1:1/v1", "--role", "user"), "--role"),
        (("tail", "--address", "a:1,b:2"), "not ip:port"),
    ],
)
async def test_a_wrong_command_line_is_explained(arguments: tuple[str, ...], complaint: str) -> None:
    command, *options = arguments
    done = await run(command, "s", "m", *options)
    assert done.code == 2
    assert complaint in done.err


async def test_a_name_that_is_not_utf8_is_refused() -> None:
    done = await run("tail", os.fsdecode(b"\xff"), "m", "--address", NOWHERE)
    assert done.code == 2
    assert "is not UTF-8" in done.err


async def _has_records(client: Client) -> None:
    async with client.subscribe("s", "m") as messages:
        await anext(messages)
    assert (await info_of(client, "s", "m")).state == STREAM_STATE_OPEN
