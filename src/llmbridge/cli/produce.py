"""`llmbridge produce`: pipe standard input, or the answer of an OpenAI-compatible endpoint, into a stream.

Whatever happens, the stream gets an end: with the input, when somebody cancels it, when the source fails, at Ctrl-C.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from llmbridge.cli.errors import ExitCode, exit_code_of, fail, reporting, say
from llmbridge.cli.openai_source import Endpoint, Question, load_openai, pipe_answer
from llmbridge.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    Model,
    Response,
    RetryFor,
    Session,
    bridge_client,
    check_text,
    path_of,
    tell_if_not_serving,
    words_of,
)
from llmbridge.cli.standard_input import arriving_text
from llmbridge.client import (
    Client,
    Completion,
    Disconnected,
    FinishReason,
    HistoryLost,
    LimitExceeded,
    Position,
    ProducerFenced,
    SequenceGap,
    StreamCompleted,
    StreamName,
    Token,
    Unavailable,
    Usage,
    Writer,
)
from llmbridge.client import Role as WireRole
from llmbridge.model.records import MAX_SEQUENCE

# A person who has pressed Ctrl-C should learn soon why it is not over yet.
_PATIENCE_SECONDS = 1.0
# After a second Ctrl-C, what is left for storing the stream's end.
_CLOSE_SECONDS = 2.0

_ANOTHER_RESPONSE = "--response names another answer"
_HINTS = dict.fromkeys((StreamCompleted, SequenceGap, ProducerFenced), _ANOTHER_RESPONSE)


class Role(StrEnum):
    """Who speaks."""

    ASSISTANT = "assistant"
    USER = "user"
    SYSTEM = "system"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class _Job:
    stream: StreamName
    epoch: int
    role: Role
    endpoint: Endpoint | None
    """None: standard input."""
    question: Question
    retry_for: float


def produce(
    session: Session,
    model: Model,
    response: Response = "",
    prompt: Annotated[
        str | None,
        typer.Option(callback=check_text, help="Ask an OpenAI-compatible endpoint this; its answer is piped."),
    ] = None,
    openai_base_url: Annotated[
        str | None, typer.Option(help="The endpoint to ask, as http://127.0.0.1:8000/v1 (env OPENAI_BASE_URL).")
    ] = None,
    openai_model: Annotated[
        str | None, typer.Option(help="The endpoint's name of the model (env OPENAI_MODEL, else MODEL).")
    ] = None,
    role: Annotated[Role | None, typer.Option(help="Who speaks on standard input [assistant].")] = None,
    epoch: Annotated[
        int, typer.Option(min=0, max=MAX_SEQUENCE, help="The producer's epoch; a higher one fences off all lower.")
    ] = 0,
    address: Address = DEFAULT_ADDRESS,
    retry_for: RetryFor = 30.0,
) -> None:
    """Pipe standard input, or a model's answer, into a stream as it arrives.

    Whatever there is to read at once becomes a token; the end of standard input ends the stream. With --prompt an
    OpenAI-compatible endpoint (its key in OPENAI_API_KEY) is asked instead, and told to stop when somebody cancels the
    stream. Ctrl-C ends the stream as cancelled. A summary with the last record's cursor goes to standard error.

    Exit codes: 0 done, 3 the endpoint or the input failed, 4 no answer from the bridge, 6 the stream has its end
    already or another producer, 7 Redis has lost too much of it to store that again, 8 the model ended with an error, 9
    the stream was cancelled, 130 Ctrl-C.
    """
    url = openai_base_url or os.environ.get("OPENAI_BASE_URL", "")
    if prompt is None and openai_base_url:
        raise fail("--openai-base-url needs --prompt", ExitCode.USAGE)
    if prompt is not None and not url:
        raise fail("--prompt needs --openai-base-url (or OPENAI_BASE_URL)", ExitCode.USAGE)
    if prompt is not None and role is not None:
        raise fail("--role is for standard input; in an answer the model speaks", ExitCode.USAGE)
    job = _Job(
        stream=StreamName(session, model, response),
        epoch=epoch,
        role=role or Role.ASSISTANT,
        endpoint=None if prompt is None else Endpoint(url, os.environ.get("OPENAI_API_KEY") or "none"),
        question=Question(openai_model or os.environ.get("OPENAI_MODEL") or model, prompt or ""),
        retry_for=retry_for,
    )
    with reporting(address, _HINTS):
        if job.endpoint is not None:
            # Before there is a stream, since without the package it would be ended at once.
            load_openai()
        code = asyncio.run(_run(job, address))
    raise typer.Exit(code)


async def _run(job: _Job, address: str) -> ExitCode:
    async with bridge_client(address, job.retry_for) as client:
        await tell_if_not_serving(client, job.retry_for)
        writer = client.write(job.stream, producer_epoch=job.epoch, close_timeout=_CLOSE_SECONDS)
        async with writer:
            output = _Output(writer)
            code, finish_reason = await _until_ended(job, client, output)
    parts = (f"{path_of(job.stream)}: {words_of(finish_reason)}", f"tokens: {output.tokens}", f"cursor {writer.cursor}")
    say("; ".join(parts))
    return code


class _Output:
    """The writer, with what this command wants to know of it. A RecordWriter."""

    def __init__(self, writer: Writer) -> None:
        self.tokens = 0
        self.completing = False
        """The stream's end is being stored, or is."""
        self._writer = writer

    async def write(self, token: Token, /) -> None:
        await self._writer.write(token)
        self.tokens += 1

    async def complete(
        self,
        finish_reason: FinishReason,
        *,
        error_message: str = "",
        usage: Usage | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Returns when the end is stored, and with it everything before."""
        self.completing = True
        await self._writer.complete(finish_reason, error_message=error_message, usage=usage, attributes=attributes)
        await self._writer.flush()

    async def until_stopped(self) -> None:
        """Waits until nothing more can be written; what the reason is, the next call raises."""
        await self._writer.stopped.wait()


async def _until_ended(job: _Job, client: Client, output: _Output) -> tuple[ExitCode, FinishReason]:
    """Pipes until the source or somebody else has ended the stream, the writer can't go on, or a signal came."""
    with _signals() as stop:
        piping = asyncio.create_task(_pipe(job, output), name="pipe")
        elsewhere = asyncio.create_task(_ended_elsewhere(client, job.stream), name="watch for another end")
        signalled = asyncio.create_task(stop.wait(), name="watch for signals")
        stopped = asyncio.create_task(output.until_stopped(), name="watch for failures")
        tasks: tuple[asyncio.Task[Any], ...] = (piping, elsewhere, signalled, stopped)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if output.completing:
                # What the watcher saw may be our own end; and a signal comes too late to stop anything.
                await asyncio.wait((piping,))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not piping.cancelled():
            finish_reason = FinishReason.of(piping.result())
            return exit_code_of(finish_reason), finish_reason
        await _complete_as_cancelled(output, None if elsewhere.cancelled() else elsewhere.result())
        return stop.exit_code, FinishReason.CANCELLED


async def _pipe(job: _Job, output: _Output) -> Completion:
    if job.endpoint is not None:
        return await pipe_answer(job.endpoint, job.question, output)
    if sys.stdin is not None and sys.stdin.isatty():
        say("reading from the terminal, line by line; Ctrl-D ends")
    role = WireRole.Value(f"ROLE_{job.role.upper()}")
    async for text in arriving_text(0):
        await output.write(Token(text=text, role=role, timestamp_ms=time.time_ns() // 1_000_000))
    await output.complete(FinishReason.STOP)
    return Completion(finish_reason=FinishReason.STOP.on_wire)


async def _ended_elsewhere(client: Client, stream: StreamName) -> Completion:
    """Waits for the stream's end. Without this a producer would learn of it some seconds later, and not why."""
    while True:
        async with client.subscribe(stream, position=Position.LATEST) as messages:
            try:
                async for message in messages:
                    if message.completion is not None:
                        return message.completion
            except HistoryLost:
                # The writer stores again what was lost or deleted; or it can't, and tells.
                continue
            except (Unavailable, LimitExceeded, Disconnected):
                # Then the writer has to do, which also tells what stands in its way.
                never: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
                return await never


async def _complete_as_cancelled(output: _Output, end: Completion | None) -> None:
    """Ends the stream; if it has an `end` already, raises StreamCompleted, in which the bridge says whose it is."""
    try:
        with _explaining_delay():
            await output.complete(FinishReason.CANCELLED, error_message="stopped at the producer")
    except StreamCompleted as error:
        if end is not None and end.error_message:
            error.add_note(end.error_message)
        raise


class _Stop(asyncio.Event):
    """Set by a signal; `exit_code` tells which."""

    exit_code = ExitCode.INTERRUPTED


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Has the first SIGINT or SIGTERM set an event. The second one ends the program."""
    loop = asyncio.get_running_loop()
    stop = _Stop()
    codes = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}

    def heed(number: signal.Signals) -> None:
        forget()
        stop.exit_code = codes[number]
        stop.set()

    def forget() -> None:
        for number in codes:
            loop.remove_signal_handler(number)

    for number in codes:
        loop.add_signal_handler(number, heed, number)
    try:
        yield stop
    finally:
        forget()


@contextmanager
def _explaining_delay() -> Iterator[None]:
    timer = asyncio.get_running_loop().call_later(
        _PATIENCE_SECONDS, say, "still trying to store the stream's end; Ctrl-C again gives that up"
    )
    try:
        yield
    finally:
        timer.cancel()
