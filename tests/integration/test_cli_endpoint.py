"""`produce --prompt`: a model endpoint's streamed answer goes into a stream, and a cancel goes back to the endpoint."""

import asyncio
import json
import signal
from dataclasses import dataclass, field
from typing import Any

import pytest

from llmbridge.client import Client, FinishReason
from tests.support.command import run, running
from tests.support.running_bridge import RunningBridge
from tests.support.tcp_server import tcp_server

pytest.importorskip("openai", reason="the extra 'openai' is not installed")

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
REFUSAL = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
KEY = "sk-very-secret"


def chunk(text: str = "", finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}
    return f"data: {json.dumps(event)}\n\n".encode()


@dataclass
class Endpoint:
    """Answers with `answer`, and then waits for the asker to go if it is `endless`."""

    answer: bytes
    endless: bool = False
    heads: list[str] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line.split(":")[1] for line in head.lower().splitlines() if line.startswith("content-length"))
        self.heads.append(head)
        self.asked.append(json.loads(await reader.readexactly(int(length))))
        writer.write(self.answer)
        if self.endless:
            await reader.read()
            self.abandoned.set()


async def test_an_answer_goes_into_the_stream(bridge: RunningBridge) -> None:
    endpoint = Endpoint(HEAD + chunk("Hé") + chunk("llo") + chunk(finish_reason="length") + b"data: [DONE]\n\n")
    async with tcp_server(endpoint.serve) as port:
        done = await run(
            *("produce", "s", "tiny", "--prompt", "hello?", "--address", bridge.address),
            OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1",
            OPENAI_API_KEY=KEY,
        )
    assert done.code == 0
    assert done.err.startswith("llmbridge: s/tiny: length; tokens: 2; cursor ")
    assert endpoint.asked[0]["model"] == "tiny"
    assert endpoint.asked[0]["messages"] == [{"role": "user", "content": "hello?"}]
    assert KEY in endpoint.heads[0]
    read = await run("tail", "s", "tiny", "--address", bridge.address)
    assert (read.code, read.out) == (0, "Héllo")


@pytest.mark.parametrize("by", ["a reader", "Ctrl-C"])
async def test_the_endpoint_is_told_to_stop(bridge: RunningBridge, by: str) -> None:
    endpoint = Endpoint(HEAD + chunk("half"), endless=True)
    where = ("s", "m", "--address", bridge.address)
    async with tcp_server(endpoint.serve) as port:
        options = ("--prompt", "hello?", "--openai-base-url", f"http://127.0.0.1:{port}/v1", "--openai-model", "tiny")
        async with running("produce", *where, *options) as producer, running("tail", *where) as reader:
            await reader.prints("half")
            if by == "Ctrl-C":
                producer.signal(signal.SIGINT)
            else:
                await run("streams", "cancel", *where)
            produced, read = await producer.done(), await reader.done()
        async with asyncio.timeout(10):
            await endpoint.abandoned.wait()
    assert produced.code == (130 if by == "Ctrl-C" else 9)
    assert "Traceback" not in produced.err
    assert (read.code, read.out) == (9, "half")
    assert endpoint.asked[0]["model"] == "tiny"


async def test_an_endpoint_that_fails_ends_the_stream_with_an_error(bridge: RunningBridge) -> None:
    endpoint = Endpoint(REFUSAL)
    async with tcp_server(endpoint.serve) as port:
        url = f"http://127.0.0.1:{port}/v1"
        done = await run(
            *("produce", "s", "m", "--prompt", "x", "--openai-base-url", url, "--address", bridge.address),
            OPENAI_API_KEY=KEY,
        )
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(f"llmbridge: {url} answered 401: ")
    assert done.err.count("\n") == 1
    assert KEY not in done.err
    async with Client(bridge.address) as client, client.subscribe("s", "m") as messages:
        end = [message async for message in messages][-1]
    assert end.finish_reason is FinishReason.ERROR
    assert end.completion is not None
    assert "answered 401" in end.completion.error_message


async def test_a_key_that_can_not_be_sent_is_told_and_not_shown(bridge: RunningBridge) -> None:
    done = await run(
        *("produce", "s", "m", "--prompt", "x", "--openai-base-url", "http://127.0.0.1:1/v1"),
        *("--address", bridge.address),
        OPENAI_API_KEY=f"{KEY}–",
    )
    assert done.code == 3
    assert done.err == "llmbridge: the key, the address, the model's name or the prompt has what can't be sent\n"


async def test_an_answer_that_ends_without_a_reason_is_an_error(bridge: RunningBridge) -> None:
    endpoint = Endpoint(HEAD + chunk("half") + b"data: [DONE]\n\n")
    async with tcp_server(endpoint.serve) as port:
        done = await run(
            *("produce", "s", "m", "--prompt", "x", "--openai-base-url", f"http://127.0.0.1:{port}/v1"),
            LLMBRIDGE_ADDRESS=bridge.address,
        )
    assert done.code == 8
    assert done.err.startswith("llmbridge: s/m: error; tokens: 1; cursor ")
