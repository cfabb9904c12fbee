"""What docs/clients.md shows of piping is run as it stands."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmbridge.client import Client, FinishReason
from tests.support.model_endpoint import chat_answer, model_endpoint, named_answer
from tests.support.piped import read_response
from tests.support.running_bridge import RunningBridge

pytest.importorskip("openai", reason="the extra 'openai' is not installed")
pytest.importorskip("anthropic", reason="the extra 'anthropic' is not installed")

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "clients.md").read_text()
SECTION = DOCUMENT.partition("### From a model into a stream\n")[2].partition("\n## ")[0]
OPENAI, ANTHROPIC, WORDS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)

CHAT = chat_answer(
    {"id": "c", "choices": [{"index": 0, "delta": {"content": "Rayleigh scattering."}, "finish_reason": None}]},
    {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
)
MESSAGE = named_answer(
    {"type": "message_start", "message": {"id": "m", "content": [], "model": "claude"}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Rayleigh scattering."}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
    {"type": "message_stop"},
)


# The SDKs warn of models that will be gone; that the documentation names one of them is no defect of the code.
@pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")
@pytest.mark.parametrize(
    ("code", "answer", "path", "stream"),
    [
        (OPENAI, CHAT, "/v1/chat/completions", ("session", "gpt-6.1-sol", "response-1")),
        (ANTHROPIC, MESSAGE, "/v1/messages", ("session", "claude-sonnet-5-5", "response-2")),
        (WORDS, [], "", ("session", "my-model", "response-3")),
    ],
    ids=["OpenAI", "Anthropic", "strings"],
)
async def test_an_example_pipes_an_answer(
    bridge: RunningBridge,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    answer: list[bytes],
    path: str,
    stream: tuple[str, str, str],
) -> None:
    assert '"127.0.0.1:50051"' in code
    names: dict[str, Any] = {}
    async with model_endpoint(*answer) as endpoint:
        for provider, url in (("OPENAI", f"{endpoint.url}/v1"), ("ANTHROPIC", endpoint.url)):
            monkeypatch.setenv(f"{provider}_API_KEY", "sk-none-needed")
            monkeypatch.setenv(f"{provider}_BASE_URL", url)
        compiled = compile(
            code.replace("127.0.0.1:50051", bridge.address), "clients.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        await eval(compiled, names)
        assert [head.split()[1] for head in endpoint.heads] == ([path] if path else [])
        assert all("sky" in json.dumps(asked) for asked in endpoint.asked)
    async with Client(bridge.address) as client:
        response = await read_response(client, *stream)
    assert (response.text, response.finish_reason) == ("Rayleigh scattering.", FinishReason.STOP)
    assert names["completion"] == response.completion
