"""The hand-rolled service the bridge is compared with: FastAPI and redis-py, as people write it today.

One XADD per POST, one blocking XREAD per Server-Sent Events reader, one event per entry, in one uvicorn process with
httptools and uvloop. It promises less than the bridge (no retries without duplicates, no fencing, no detection of lost
history), and bodies are read and answered without FastAPI's models, which is all to its advantage here. It must know
nothing of the bridge.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from redis.asyncio import Redis

BLOCK_MS = 15_000
READ_COUNT = 500
MAX_CONNECTIONS = 10_000
"""One blocking read holds one connection, so this bounds the readers."""

_Reply = list[tuple[str, list[tuple[str, dict[str, str]]]]]
"""What XREAD answers: for each stream its name and entries, each an id and fields."""


async def _events(redis: Redis, key: str) -> AsyncIterator[str]:
    last = "0"
    while True:
        reply = cast("_Reply", await redis.xread({key: last}, count=READ_COUNT, block=BLOCK_MS))
        if not reply:
            yield ": keep-alive\n\n"
            continue
        for last, fields in reply[0][1]:
            yield f"id: {last}\ndata: {fields['body']}\n\n"
            if "done" in fields:
                return


def create_app() -> FastAPI:
    """Makes the service on the Redis that the environment variable REDIS_URL names."""
    # redis-py's default socket timeout of 5 s would cut the blocking reads.
    redis = Redis.from_url(
        os.environ["REDIS_URL"], decode_responses=True, socket_timeout=None, max_connections=MAX_CONNECTIONS
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/streams/{name}/tokens")
    async def append(name: str, request: Request) -> JSONResponse:
        body = await request.json()
        entry = {"body": json.dumps(body)} | ({"done": "1"} if body["done"] else {})
        return JSONResponse({"id": await redis.xadd(f"stream:{name}", entry)})  # type: ignore[arg-type]

    @app.get("/streams/{name}")
    async def read(name: str) -> StreamingResponse:
        return StreamingResponse(_events(redis, f"stream:{name}"), media_type="text/event-stream")

    return app
