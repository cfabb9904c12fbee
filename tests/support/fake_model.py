"""A model server with OpenAI's interface that answers as it is told, on loopback."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Delta = dict[str, Any]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@dataclass
class Answer:
    """One answer: what is said in each chunk, and how it ends."""

    deltas: list[Delta]
    finish_reason: str = "stop"
    held_after: int | None = None
    """After so many chunks it waits for `FakeModel.release`."""
    status: int = 200
    rambles: bool = False
    """Goes on for a minute before it ends."""


def text(*pieces: str, held_after: int | None = None, rambles: bool = False) -> Answer:
    return Answer([{"content": piece} for piece in pieces], held_after=held_after, rambles=rambles)


def tool_call(name: str, *arguments: str, call_id: str = "call-1") -> Answer:
    first: Delta = {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": piece}} for piece in arguments]
    return Answer([{"tool_calls": [one]} for one in (first, *rest)], "tool_calls")


@dataclass
class FakeModel:
    """What it was asked, what it will answer, and whether its client left before the end."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    answers: deque[Answer] = field(default_factory=deque)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, request: Request) -> Response:
        self.asked.append(await request.json())
        answer = self.answers.popleft()
        if answer.status != 200:
            return JSONResponse({"error": {"message": "no more GPUs", "type": "server_error"}}, answer.status)
        return StreamingResponse(self._chunks(answer), media_type="text/event-stream")

    async def _chunks(self, answer: Answer) -> AsyncIterator[str]:
        try:
            for at, delta in enumerate(answer.deltas):
                if at == answer.held_after:
                    await self.release.wait()
                yield _event({"index": 0, "delta": delta, "finish_reason": None})
            for _ in range(6_000 if answer.rambles else 0):
                yield _event({"index": 0, "delta": {"content": "more "}, "finish_reason": None})
                await asyncio.sleep(0.01)
            yield _event({"index": 0, "delta": {}, "finish_reason": answer.finish_reason})
            yield _event(None, usage=USAGE)
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise


def _event(choice: dict[str, Any] | None, **fields: Any) -> str:
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "fake-1"}
    return f"data: {json.dumps({**chunk, 'choices': [choice] if choice else [], **fields})}\n\n"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def fake_model() -> AsyncIterator[FakeModel]:
    """Serve until the block is left."""
    model = FakeModel()
    app = Starlette(routes=[Route("/v1/chat/completions", model.serve, methods=["POST"])])
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    server = _Server(config)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        model.url = f"http://127.0.0.1:{port}/v1"
        try:
            yield model
        finally:
            model.release.set()
            server.should_exit = True
