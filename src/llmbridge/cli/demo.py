"""`llmbridge demo`: the main job, for real, in one terminal.

A language model's streamed answer goes through a bridge to two readers; one of them loses its connection in the middle
and resumes. Bridge, Redis and model are processes of their own. Then everything that the readers received is compared
with what the model said. Nothing is scripted but the cut: see demo_checks for what has to hold.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer
from rich.console import Console
from rich.text import Text

from llmbridge.cli.child import Child, ChildError, running_child
from llmbridge.cli.demo_checks import Outcome, Reading, Receipt, Said, figures
from llmbridge.cli.demo_display import Display, make_display, show_result
from llmbridge.cli.demo_line import CuttableLine, cuttable_line
from llmbridge.cli.model_server import ModelServerError, running_model_server
from llmbridge.cli.openai_source import (
    Endpoint,
    ModelEndpointError,
    Question,
    find_model_name,
    load_openai,
    pipe_answer,
)
from llmbridge.client import Client, ClientError, StreamName
from llmbridge.v1.token_pb2 import Token

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk
    from openai.types.chat.chat_completion_chunk import ChoiceDelta

__all__ = ["DemoOptions", "demo", "run_demo"]

PASSED = 0
FAILED = 1
NOT_RUN = 3
"""Something that the demo needs could not be had, such as the model, or broke down."""
INTERRUPTED = 130

_PROMPT = "Explain in a few paragraphs how a message travels over the internet from one computer to another."
_STEADY, _CUT = "reader A", "reader B"
# How often to ask for an answer that can be cut in the middle.
_QUESTIONS = 3
_BRIDGE_START_SECONDS = 30.0
# Everything else is a defect and keeps its traceback.
_TELLABLE = (ChildError, ClientError, ModelServerError, ModelEndpointError)
_SERVES_PAGE = re.compile(r"serves HTTP at (http://127\.0\.0\.1:\d+)$")
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)$")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo is to do."""

    prompt: str = _PROMPT
    base_url: str = ""
    """An OpenAI-compatible endpoint; empty: a model of this machine."""
    api_key: str = ""
    model: str = ""
    """Empty: the endpoint's only one."""
    max_tokens: int = 400
    """For the model of this machine; an endpoint's answer is as long as it likes."""
    cut_after: int = 60
    """How many tokens the second reader has when its connection is cut; fewer if the answer turns out to be short."""
    down_seconds: float = 0.5
    """How long it can't connect again."""
    time_limit_seconds: float = 55.0
    """For an answer, after set-up."""
    page: bool = True
    """Whether to serve the page that shows the answer too, if what that needs is installed."""


@dataclass(frozen=True, slots=True)
class _Bridge:
    """A bridge that runs."""

    port: int
    child: Child
    page: str
    """The page's address; empty: it is not served."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """What is set up before the answer begins."""

    endpoint: Endpoint
    question: Question
    bridge: _Bridge
    children: tuple[Child, ...]


async def run_demo(options: DemoOptions, console: Console) -> int:
    """Runs the demo and returns its exit code: 0 only if everything held. All its processes are gone afterwards."""
    display = make_display(console)
    try:
        async with _set_up(options, display) as stage:
            outcome = await _answer_with_a_cut(options, stage, display)
    except ExceptionGroup as group:
        return _not_run(console, _expected(group))
    except _TELLABLE as error:
        return _not_run(console, error)
    not_cut = "" if outcome.was_cut.passed else f"{_CUT}: not {outcome.was_cut.what}: {outcome.was_cut.problem}"
    show_result(console, outcome.results, not_shown=not_cut)
    return PASSED if outcome.is_right else FAILED


@asynccontextmanager
async def _set_up(options: DemoOptions, display: Display) -> AsyncIterator[_Stage]:
    # Not during the answer: it would hold up the readers.
    load_openai()
    async with _running_bridge(display, with_page=options.page and _can_serve_pages()) as bridge:
        if options.base_url:
            endpoint = Endpoint(options.base_url, options.api_key or "none")
            model = options.model or await find_model_name(endpoint)
            # Not every endpoint takes every parameter, so none is given.
            yield _Stage(endpoint, Question(model, options.prompt), bridge, (bridge.child,))
            return
        async with running_model_server(progress=display.step) as server:
            question = Question(server.model, options.prompt, temperature=0.0, max_tokens=options.max_tokens)
            yield _Stage(Endpoint(server.base_url, server.api_key), question, bridge, (bridge.child, server.child))


def _can_serve_pages() -> bool:
    return all(find_spec(name) is not None for name in ("httptools", "starlette", "uvicorn", "websockets"))


@asynccontextmanager
async def _running_bridge(display: Display, *, with_page: bool) -> AsyncIterator[_Bridge]:
    display.step("starting a bridge with a Redis of its own")
    # What is set for a real bridge is not meant for this one: above all, another Redis.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "LLMBRIDGE_"))}
    command = [sys.executable, "-m", "llmbridge.cli.leash", "serve", "--host", "127.0.0.1", "--port", "0"]
    if with_page:
        command += ["--http-port", "0"]
    async with running_child("the bridge", command, environment) as child:
        listening = await child.says(_LISTENING, _BRIDGE_START_SECONDS)
        display.step(f"bridge is {listening[0]}")
        page = (await child.says(_SERVES_PAGE, _BRIDGE_START_SECONDS))[1] if with_page else ""
        yield _Bridge(int(listening[1]), child, page)


async def _answer_with_a_cut(options: DemoOptions, stage: _Stage, display: Display) -> Outcome:
    """Has the model answer; again, for an earlier cut, where all is right but the answer was over before it."""
    questions = _QUESTIONS
    while True:
        outcome = await _answer(options, stage, display)
        questions -= 1
        if outcome.was_cut.passed or not outcome.is_right or outcome.tokens < 2 or not questions:
            return outcome
        options = replace(options, cut_after=max(1, min(options.cut_after, outcome.tokens) // 2))
        display.step(f"{outcome.was_cut.problem}: asking again, to cut after {options.cut_after}")


async def _answer(options: DemoOptions, stage: _Stage, display: Display) -> Outcome:
    """Has the model answer into a stream while both readers read it."""
    stream = StreamName("demo", stage.question.model, secrets.token_hex(4))
    said, steady, cut = Said(), Reading(_STEADY), Reading(_CUT)
    if stage.bridge.page:
        # As the page itself writes it.
        names = {"session": stream.session_id, "model": stream.model_id, "response": stream.response_id}
        display.step(f"the answer is also at {stage.bridge.page}/#{urlencode(names)} as long as this runs")
    async with cuttable_line("127.0.0.1", stage.bridge.port) as line, asyncio.TaskGroup() as group:
        cut.connected_at = line.connected_at
        watchers = [group.create_task(child.ended()) for child in stage.children]
        display.begin(stage.question.model, stage.question.prompt, (_STEADY, _CUT))
        scissors = _Scissors(options, line, cut, said, display)
        try:
            work = [
                group.create_task(_produce(stage, stream, said, display)),
                group.create_task(_read(stage.bridge.port, stream, steady, display, lambda: None)),
                group.create_task(_read(line.port, stream, cut, display, scissors.after_message)),
            ]
            _, late = await asyncio.wait(work, timeout=options.time_limit_seconds)
        finally:
            display.end()
        if late:
            # The checks tell who had not come to the end.
            display.step(f"stopped after {options.time_limit_seconds:g} s")
        for task in (*late, *watchers):
            task.cancel()
    return Outcome(said, steady, cut)


async def _produce(stage: _Stage, stream: StreamName, said: Said, display: Display) -> None:
    def note_chunk(chunk: ChatCompletionChunk) -> None:
        # From what the endpoint sent, not from what was made of it: that is among the things to be checked.
        for choice in getattr(chunk, "choices", None) or ():
            delta: ChoiceDelta | None = getattr(choice, "delta", None)
            if delta is not None:
                extra = delta.model_extra or {}
                said.text += delta.content or delta.refusal or ""
                said.reasoning += extra.get("reasoning_content") or extra.get("reasoning") or ""

    def note_token(_: Token) -> None:
        said.sent_at.append(time.monotonic())
        display.sent()

    def note_prompt() -> None:
        said.prompt_at = time.monotonic()

    async with Client(f"127.0.0.1:{stage.bridge.port}") as client, client.write(stream) as writer:
        said.completion = await pipe_answer(
            stage.endpoint, stage.question, writer, on_ask=note_prompt, on_chunk=note_chunk, on_token=note_token
        )


async def _read(
    port: int, stream: StreamName, reading: Reading, display: Display, after_message: Callable[[], None]
) -> None:
    """Reads the stream to its end. Over how many connections is the client's business, not the demo's."""
    try:
        async with Client(f"127.0.0.1:{port}") as client, client.subscribe(stream) as messages:
            async for message in messages:
                now = time.monotonic()
                for sequence, token in enumerate(message.tokens, start=message.first_sequence):
                    reading.receipts.append(Receipt(sequence, token, now))
                    display.received(reading.name, token.text or token.reasoning)
                if message.completion is not None:
                    reading.completions.append((message.last_sequence, message.completion))
                after_message()
    except ClientError as error:
        # A finding, not an accident: the checks report it, and the other reader goes on.
        reading.error = f"{type(error).__name__}: {error}"
        display.status(reading.name, reading.error)
    else:
        display.status(reading.name, "complete")


class _Scissors:
    """Cuts the line when its reader has had enough tokens, and says when the reader is back."""

    def __init__(
        self, options: DemoOptions, line: CuttableLine, reading: Reading, said: Said, display: Display
    ) -> None:
        self._options = options
        self._line = line
        self._reading = reading
        self._said = said
        self._display = display
        self._back = False

    def after_message(self) -> None:
        """To be called when the reader has handled a message."""
        if self._reading.cut_at is None:
            if len(self._reading.receipts) >= self._options.cut_after and not self._reading.completions:
                self._reading.cut_at = time.monotonic()
                self._line.cut(self._options.down_seconds)
                self._display.status(self._reading.name, f"cut off after {len(self._reading.receipts)} tokens")
        elif not self._back and (absence := figures(self._said, self._reading).cut) is not None:
            self._back = True
            self._display.status(
                self._reading.name,
                f"resumed after token {absence.after}; {absence.missed} came in {absence.away_seconds:.1f} s away",
            )


def _not_run(console: Console, error: BaseException) -> int:
    console.print(Text(f"the demo could not be run: {error}", style="bold red"), soft_wrap=True)
    return NOT_RUN


def _expected(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group if it is one that can be told in a line; raises the group if there is any other."""
    known, others = group.split(_TELLABLE)
    if known is None or others is not None:
        raise group
    error: BaseException = known
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def demo(
    prompt: Annotated[str, typer.Option(help="What to ask the model.")] = _PROMPT,
    model: Annotated[str, typer.Option(envvar="OPENAI_MODEL", help="The endpoint's model, if it has several.")] = "",
    openai_base_url: Annotated[
        str, typer.Option(envvar="OPENAI_BASE_URL", help="An OpenAI-compatible endpoint instead of the local model.")
    ] = "",
    cut_after: Annotated[int, typer.Option(min=1, help="Cut reader B's connection after so many tokens.")] = 60,
    max_tokens: Annotated[int, typer.Option(min=2, help="The local model's longest answer, in tokens.")] = 400,
    page: Annotated[bool, typer.Option(help="Serve the page that shows the answer too, if that is installed.")] = True,
) -> None:
    """Show the main job: a model's answer reaches two readers, one of which is cut off and resumes.

    Starts a bridge with its own Redis and a small language model on this machine (or asks OPENAI_BASE_URL, with
    OPENAI_API_KEY) and checks that both readers received exactly what the model said. Exit codes: 0 everything held,
    1 something did not, 3 the demo could not be run.
    """
    options = DemoOptions(
        prompt=prompt,
        base_url=openai_base_url,
        api_key=os.environ.get("OPENAI_API_KEY", ""),
        model=model,
        max_tokens=max_tokens,
        cut_after=cut_after,
        page=page,
    )
    try:
        code = asyncio.run(run_demo(options, Console()))
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise typer.Exit(code)
