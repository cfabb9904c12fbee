"""Write a response and read it back, in one process: start `llmbridge serve`, then run this."""

import asyncio
import secrets
import sys

from llmbridge.client import Client


async def write(client: Client, response_id: str) -> None:
    """Play the model backend."""
    async with client.write("session-1", "demo-model", response_id) as writer:
        for word in ("every", "token,", "once,", "in", "order,", "with", "an", "end"):
            await writer.text(word + " ")


async def read(client: Client, response_id: str) -> None:
    """Play the frontend's backend. It may start before the first token, and resumes by itself when it is cut off."""
    async for piece in client.subscribe("session-1", "demo-model", response_id).texts():
        print(piece, end="", flush=True)
    print()


async def main() -> None:
    """Do both at once."""
    response_id = secrets.token_hex(4)
    async with Client(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051") as client, asyncio.TaskGroup() as both:
        both.create_task(read(client, response_id))
        both.create_task(write(client, response_id))


asyncio.run(main())
