"""Piping without an event loop: what a thread reads goes into a stream, and the source ends when it should."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import pytest

from llmbridge.client import Client as AsyncClient
from llmbridge.client import (
    ClientClosed,
    Completion,
    FinishReason,
    SourceError,
    StreamCompleted,
    Token,
    Usage,
)
from llmbridge.client.sync import Client
from llmbridge.v1.token_pb2 import FINISH_REASON_LENGTH
from tests.support.piped import ODD, Response, read_response
from tests.support.running_bridge import RunningBridge

NAME = ("s", "m", "r")
SECONDS = 30.0
_Result = TypeVar("_Result")


class Source:
    """Says what it is given, one thing after the other, and notes where it was read and that it was closed."""

    def __init__(self, *said: object, error: Exception | None = None) -> None:
        self._said = said
        self._error = error
        self.readers: set[str] = set()
        self.closed = 0

    def __iter__(self) -> Iterator[object]:
        for said in self._said:
            self.readers.add(threading.current_thread().name)
            yield said() if callable(said) else said
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed += 1


async def with_client(bridge: RunningBridge, work: Callable[[Client], _Result]) -> _Result:
    def run() -> _Result:
        threading.current_thread().name = "the caller's"
        with Client(bridge.address) as client:
            return work(client)

    async with asyncio.timeout(SECONDS):
        return await asyncio.to_thread(run)


async def read(bridge: RunningBridge) -> Response:
    async with AsyncClient(bridge.address) as client:
        return await read_response(client, *NAME)


async def test_strings_and_tokens_are_read_by_the_caller(bridge: RunningBridge) -> None:
    end = Completion(finish_reason=FINISH_REASON_LENGTH, usage=Usage(total_tokens=3))
    source = Source(*ODD, "a\ud83e", "\udd99", Token(reasoning="hm"), end, "not read")
    assert await with_client(bridge, lambda client: client.pipe(source, *NAME)) == end
    response = await read(bridge)
    assert (response.text, response.reasoning, response.completion) == (f"{ODD}a🦙", "hm", end)
    assert (source.readers, source.closed) == ({"the caller's"}, 1)


async def test_nothing(bridge: RunningBridge) -> None:
    completion = await with_client(bridge, lambda client: client.pipe([], *NAME))
    assert (FinishReason.of(completion), (await read(bridge)).completion) == (FinishReason.STOP, completion)


async def test_another_stream_is_a_source_too(bridge: RunningBridge) -> None:
    def work(client: Client) -> None:
        client.pipe(iter("abc"), "s", "m", "first")
        client.pipe(client.subscribe("s", "m", "first").texts(), *NAME)

    await with_client(bridge, work)
    assert (await read(bridge)).text == "abc"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SourceError("out of words"), "out of words"),
        (ValueError("secret"), "the source of the response failed: ValueError"),
    ],
)
async def test_a_source_that_fails_ends_the_stream(bridge: RunningBridge, error: Exception, told: str) -> None:
    source = Source("a", error=error)
    with pytest.raises(type(error)) as caught:
        await with_client(bridge, lambda client: client.pipe(source, *NAME))
    assert caught.value is error
    response = await read(bridge)
    assert (response.text, response.completion.error_message, source.closed) == ("a", told, 1)


async def endless() -> AsyncIterator[str]:
    yield "a"


@pytest.mark.parametrize("source", [endless(), None, 7])
async def test_what_can_not_be_read_is_told(bridge: RunningBridge, source: Any) -> None:
    with pytest.raises(TypeError, match="without an event loop"):
        await with_client(bridge, lambda client: client.pipe(source, *NAME))
    assert (await read(bridge)).finish_reason is FinishReason.ERROR


async def test_options_that_do_not_exist_are_told(bridge: RunningBridge) -> None:
    source = Source("a")
    options: Any = {"patience": 1}
    with pytest.raises(TypeError, match="patience"):
        await with_client(bridge, lambda client: client.pipe(source, *NAME, **options))
    assert source.closed == 1


async def test_a_cancelled_stream_closes_the_source_when_it_says_the_next_thing(bridge: RunningBridge) -> None:
    def work(client: Client) -> Source:
        def cancelled() -> str:
            client.cancel(*NAME)
            return "b"

        source = Source("a", cancelled, *("c" for _ in range(100_000)))
        with pytest.raises(StreamCompleted):
            client.pipe(source, *NAME)
        return source

    assert (await with_client(bridge, work)).closed == 1
    assert (await read(bridge)).finish_reason is FinishReason.CANCELLED


async def test_a_client_that_is_closed_meanwhile_is_told(bridge: RunningBridge) -> None:
    def work() -> Source:
        client = Client(bridge.address).__enter__()

        def closed() -> str:
            client.__exit__(None, None, None)
            return "b"

        source = Source("a", closed, "c")
        with pytest.raises(ClientClosed):
            client.pipe(source, *NAME)
        return source

    async with asyncio.timeout(SECONDS):
        assert (await asyncio.to_thread(work)).closed == 1


class Opened:
    """What opens a source, as Anthropic's helper does, or fails to."""

    def __init__(self, source: Source, error: Exception | None = None) -> None:
        self._source = source
        self._error = error
        self.left = 0

    def __enter__(self) -> Source:
        if self._error is not None:
            raise self._error
        return self._source

    def __exit__(self, *_: object) -> None:
        self.left += 1


async def test_what_has_to_be_opened_is_opened_and_left(bridge: RunningBridge) -> None:
    opened = Opened(source := Source("a", "b"))
    await with_client(bridge, lambda client: client.pipe(opened, *NAME))
    assert ((await read(bridge)).text, source.closed, opened.left) == ("ab", 1, 1)


async def test_what_can_not_be_opened_ends_the_stream(bridge: RunningBridge) -> None:
    opened = Opened(Source("a"), SourceError("no way in"))
    with pytest.raises(SourceError):
        await with_client(bridge, lambda client: client.pipe(opened, *NAME))
    assert ((await read(bridge)).completion.error_message, opened.left) == ("no way in", 0)


async def test_a_source_that_can_not_be_closed_hides_nothing(
    bridge: RunningBridge, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(Source):
        def close(self) -> None:
            raise OSError("stuck")

    await with_client(bridge, lambda client: client.pipe(Stuck("a"), *NAME))
    assert (await read(bridge)).finish_reason is FinishReason.STOP
    assert "could not close Stuck: OSError" in caplog.text


async def test_a_writer_that_can_take_no_more_is_waited_for(bridge: RunningBridge) -> None:
    """What is read waits in the writer's buffer, which is bounded; so does the source."""
    source = Source(*(f"{number} " for number in range(3_000)))
    await with_client(bridge, lambda client: client.pipe(source, *NAME, max_unsent_tokens=2))
    assert (await read(bridge)).text.split() == [str(number) for number in range(3_000)]
