"""The demo as users run it: real bridge, real Redis, real model; it passes, and it fails when it should."""

import asyncio
import io
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, quote

import httpx
import psutil
import pytest
from rich.console import Console

from llmbridge.cli import openai_source
from llmbridge.cli.demo import FAILED, INTERRUPTED, NOT_RUN, PASSED, DemoOptions, run_demo
from llmbridge.cli.model_server import ModelServerError, find_model
from llmbridge.client.adapters import openai_records
from llmbridge.server.embedded_redis import EmbeddedRedisError, find_redis_server
from llmbridge.v1.token_pb2 import Completion, Token
from tests.support.event_stream import read_to_end
from tests.support.model_endpoint import chat_answer, model_endpoint
from tests.support.processes import ended

pytest.importorskip("openai", reason="the extra 'openai' is not installed")


def missing(*finders: Callable[[], object]) -> str:
    try:
        for find in finders:
            find()
    except (ModelServerError, EmbeddedRedisError) as error:
        return str(error)
    return ""


def needs(*finders: Callable[[], object]) -> pytest.MarkDecorator:
    reason = missing(*finders)
    return pytest.mark.skipif(bool(reason), reason=reason or "all is there")


needs_redis = needs(find_redis_server)
needs_everything = needs(find_redis_server, find_model)
QUICK = DemoOptions(max_tokens=160, cut_after=20, down_seconds=0.1, page=False)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def run(options: DemoOptions = QUICK) -> tuple[int, str]:
    out = io.StringIO()
    before = set(children())
    code = await run_demo(options, Console(file=out, width=160))
    assert set(children()) == before
    return code, out.getvalue()


@needs_everything
async def test_it_passes_and_leaves_nothing_behind() -> None:
    code, shown = await run()
    assert code == PASSED, shown
    assert shown.splitlines()[-1] == "PASS"
    # At the twentieth; on a busy machine several come at once.
    cut = re.search(r"reader B : cut off after (\d+) tokens", shown)
    assert cut is not None, shown
    assert int(cut[1]) >= 20
    assert "reader B : resumed after token" in shown
    assert "✗" not in shown
    assert shown.count("✓") == 7
    assert "the answer is also at" not in shown


@needs_everything
async def test_the_page_shows_the_answer_while_it_comes() -> None:
    for needed in ("httptools", "starlette", "uvicorn", "websockets"):
        pytest.importorskip(needed, reason="the extra 'gateway' is not installed")
    out = io.StringIO()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run_demo(replace(QUICK, page=True), Console(file=out, width=240)))
        while (told := re.search(r"also at (http://\S+)/#(\S+)", out.getvalue())) is None:
            assert not running.done(), out.getvalue()
            await asyncio.sleep(0.05)
        names = dict(parse_qsl(told[2]))
        path = "/v1/sessions/{session}/models/{model}/responses/{response}/events".format_map(
            {name: quote(value, safe="") for name, value in names.items()}
        )
        async with httpx.AsyncClient(base_url=told[1], timeout=20, trust_env=False) as http:
            assert "<html" in (await http.get("/")).text
            stream = await read_to_end(http, path)
    assert stream.names[-1] == "complete"
    assert stream.text
    assert running.result() == PASSED, out.getvalue()


def misheard(at: int) -> Callable[..., AsyncIterator[Token | Completion]]:
    """Records of which the one with this number is another than the endpoint sent."""

    async def mishear(chunks: Any, **options: Any) -> AsyncIterator[Token | Completion]:
        number = 0
        async for record in openai_records(chunks, **options):
            number += 1
            if isinstance(record, Token) and number == at:
                record.text += "!"
            yield record

    return mishear


@needs_everything
async def test_a_wrong_text_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_source, "openai_records", misheard(at=30))
    code, shown = await run()
    assert code == FAILED
    assert shown.splitlines()[-1] == "FAIL"
    assert "✗ reader A: the text is what the model sent: at character" in shown
    assert "✗ reader B: the text is what the model sent: at character" in shown


@needs_everything
async def test_a_short_answer_is_asked_for_again_and_cut_earlier() -> None:
    code, shown = await run(DemoOptions(max_tokens=10, cut_after=20, page=False))
    assert code == PASSED, shown
    assert (
        "the answer ended after 10 tokens, before the connection was to be cut: asking again, to cut after 5" in shown
    )
    assert "✗" not in shown


def answer(*texts: str) -> list[bytes]:
    said = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return chat_answer(*({**head, "choices": [choice]} for choice in (*said, end)))


@needs_redis
@pytest.mark.parametrize(("texts", "questions"), [(["a"], {1}), (["a", "b", "c"], {2, 3})])
async def test_an_answer_too_short_to_be_cut_is_no_failure(texts: list[str], questions: set[int]) -> None:
    async with model_endpoint(*answer(*texts)) as endpoint:
        code, shown = await run(DemoOptions(base_url=f"{endpoint.url}/v1", model="tiny", page=False))
    assert code == PASSED, shown
    assert shown.splitlines()[-1] == "PASS"
    assert len(endpoint.asked) in questions
    if questions == {1}:
        assert "– reader B: not cut in the middle, resumed on a new connection: the answer ended after 1 tok" in shown


@needs_redis
async def test_a_wrong_text_fails_it_however_short_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_source, "openai_records", misheard(at=1))
    async with model_endpoint(*answer("a", "b")) as endpoint:
        code, shown = await run(DemoOptions(base_url=f"{endpoint.url}/v1", model="tiny", page=False))
    assert code == FAILED
    assert shown.splitlines()[-1] == "FAIL"
    assert len(endpoint.asked) == 1


@needs_everything
async def test_it_ends_in_time_and_says_who_was_not_done() -> None:
    code, shown = await run(DemoOptions(time_limit_seconds=0.5, page=False))
    assert code == FAILED
    assert "· stopped after 0.5 s" in shown
    assert "the producer did not complete" in shown


@needs_everything
async def test_an_endpoint_that_is_not_there_is_told() -> None:
    code, shown = await run(DemoOptions(base_url="http://127.0.0.1:1/v1"))
    assert code == NOT_RUN
    assert "the connection to http://127.0.0.1:1/v1 failed" in shown


DEMO = """
import typer
from llmbridge.cli.demo import demo
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(demo)
app()
"""


@needs_everything
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_nothing_is_left_when_it_is_stopped_in_the_middle(number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DEMO, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    async with asyncio.timeout(50):
        while line := await process.stdout.readline():
            if line.startswith(b"reader B :"):
                break
        assert line, "the demo ended before it was stopped"
        started = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        # The bridge, its Redis with a guard, and the model.
        assert len(started) == 4
        process.send_signal(number)
        await process.communicate()
        assert process.returncode == (INTERRUPTED if number is signal.SIGINT else -number)
        assert await ended(started)
