"""An OpenAI-compatible model server that says what the test wants, over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.tcp_server import tcp_server

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@dataclass
class ModelUpstream:
    """Answers every request with `texts`; after the first of them it waits for `go_on`."""

    texts: tuple[str, ...] = ("Hello", " you")
    status: str = ""
    """A status and body to answer with instead, as `401 Unauthorized`."""
    breaks_off: bool = False
    """Whether the connection ends before the answer does."""
    url: str = ""
    asked: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        self.keys.append(headers.get("authorization", ""))
        self.asked.append(json.loads(await reader.readexactly(int(headers.get("content-length", "0")))))
        if self.status:
            body = json.dumps({"error": {"message": f"refused {headers.get('authorization')}"}}).encode()
            writer.write(f"HTTP/1.1 {self.status}\r\ncontent-type: application/json\r\n".encode())
            writer.write(f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            return
        writer.write(_HEAD)
        gone = asyncio.create_task(reader.read())
        try:
            for text in self.texts:
                writer.write(_event(text))
                going_on = asyncio.create_task(self.go_on.wait())
                await asyncio.wait((going_on, gone), return_when=asyncio.FIRST_COMPLETED)
                going_on.cancel()
                if gone.done():
                    self.abandoned.set()
                    return
            if self.breaks_off:
                writer.transport.abort()
                return
            writer.write(_event("", "stop") + b"data: [DONE]\n\n")
            await writer.drain()
        finally:
            gone.cancel()
            await asyncio.wait((gone,))


def _event(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}
    return f"data: {json.dumps(event)}\n\n".encode()


@asynccontextmanager
async def model_upstream(**fields: Any) -> AsyncIterator[ModelUpstream]:
    """Serve while the block lasts; `url` is the base URL."""
    model = ModelUpstream(**fields)
    async with tcp_server(model.serve) as port:
        model.url = f"http://127.0.0.1:{port}/v1"
        yield model
