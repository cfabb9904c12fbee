"""A model's HTTP endpoint that says what the test wants, over a real socket, in the wire formats of the providers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.tcp_server import tcp_server

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def piece(data: bytes) -> bytes:
    """A chunk of a body in chunked transfer encoding."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def document(status: str, body: object) -> bytes:
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    return head.encode() + text


def openai_event(event: object) -> bytes:
    return piece(f"data: {json.dumps(event)}\n\n".encode())


def named_event(event: dict[str, Any]) -> bytes:
    """An event whose name is its type, as Anthropic's API and OpenAI's Responses API send them."""
    return piece(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


def chat_answer(*events: dict[str, Any]) -> list[bytes]:
    return [STREAM, *map(openai_event, events), piece(b"data: [DONE]\n\n"), END]


def named_answer(*events: dict[str, Any]) -> list[bytes]:
    return [STREAM, *map(named_event, events), END]


@dataclass
class ModelEndpoint:
    """Answers each request with `answer`, in order; None resets the connection, with the answer half said."""

    answer: list[bytes | None]
    port: int = 0
    connections: int = 0
    heads: list[str] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    said: asyncio.Event = field(default_factory=asyncio.Event)
    """Everything of an answer was sent; unless that is its end, the model is silent now."""
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)
    """The asker has closed its connection."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:
                self.abandoned.set()
                return
            lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length")]
            self.heads.append(head)
            self.asked.append(json.loads(await reader.readexactly(int(lengths[0]) if lengths else 0) or b"null"))
            for part in self.answer:
                if part is None:
                    writer.transport.abort()
                    return
                writer.write(part)
                await writer.drain()
            self.said.set()


@asynccontextmanager
async def model_endpoint(*answer: bytes | None) -> AsyncIterator[ModelEndpoint]:
    endpoint = ModelEndpoint(list(answer))
    async with asyncio.timeout(40), tcp_server(endpoint.serve) as endpoint.port:
        yield endpoint
