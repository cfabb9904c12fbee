"""Keep every finished answer for good, exactly once, whether or not anybody ever read it.

Start `llmbridge serve`, then as many of these as you like: they share the work. One that is killed loses nothing, since
it acknowledges an answer only when that is stored; what comes again is recognised by the stream's name and cursor.
"""

import asyncio
import sqlite3
import sys
from contextlib import closing

from llmbridge.client import Client, HistoryLost, StreamEvent

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    session_id TEXT, model_id TEXT, response_id TEXT, cursor TEXT, finish_reason TEXT, text TEXT, lost TEXT,
    PRIMARY KEY (session_id, model_id, response_id, cursor)
)
"""


async def text_of(client: Client, event: StreamEvent) -> str:
    """Read the answer from its beginning to its end; it may have ended long ago."""
    answer = client.subscribe(event.stream, after_cursor=event.start_cursor)
    return "".join([message.text async for message in answer])


async def persist(client: Client, database: sqlite3.Connection, event: StreamEvent) -> None:
    """Store one answer; if it is gone (trimmed, deleted, expired), store that."""
    text, lost = None, None
    try:
        text = await text_of(client, event)
    except HistoryLost as error:
        lost = error.reason
    stream, finish_reason = event.stream, event.finish_reason
    assert finish_reason is not None, "only what is completed is persisted"
    key = (stream.session_id, stream.model_id, stream.response_id, event.cursor)
    with database:
        database.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*key, finish_reason.name.lower(), text, lost),
        )


async def main(address: str, path: str) -> None:
    """Persist answers until interrupted."""
    with closing(sqlite3.connect(path, timeout=30)) as database:
        database.execute(SCHEMA)
        async with Client(address) as client, client.watch("persist-answers") as events:
            async for event in events:
                if event.completed:
                    await persist(client, database, event)
                await event.acknowledge()


if __name__ == "__main__":
    arguments = dict(enumerate(sys.argv))
    asyncio.run(main(arguments.get(1, "127.0.0.1:50051"), arguments.get(2, "answers.db")))
