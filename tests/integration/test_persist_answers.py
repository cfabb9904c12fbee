"""The example that keeps every finished answer, as it stands: several workers, killed and started again."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmbridge.client import Client
from llmbridge.client.groups import GroupName
from llmbridge.v1.stream_admin_service_pb2 import DeleteStreamRequest, TrimStreamRequest
from tests.support.calls import STOP, produce, ref
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

# The example's processes take a second to start, and some more on a busy machine.
pytestmark = pytest.mark.timeout(150)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "persist_answers.py"
GROUP = GroupName(None, "persist-answers")
SECONDS = 45.0


@asynccontextmanager
async def worker(address: str, database: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the example; it never ends by itself, so it is killed."""
    process = await asyncio.create_subprocess_exec(sys.executable, str(EXAMPLE), address, str(database))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def rows_of(database: Path, columns: str) -> list[Any]:
    if not database.exists():
        return []
    with sqlite3.connect(database, timeout=30) as connection:
        try:
            found = connection.execute(f"SELECT {columns} FROM answers").fetchall()
        except sqlite3.OperationalError:
            # It has made the file and not yet the table.
            found = []
    connection.close()
    return found


async def persisted(database: Path, count: int) -> None:
    async with asyncio.timeout(SECONDS):
        while len(rows_of(database, "cursor")) < count:
            await asyncio.sleep(0.05)


async def all_settled(client: Client) -> None:
    async with asyncio.timeout(SECONDS):
        while (info := await client.groups.get(GROUP)).pending or info.lag:
            await asyncio.sleep(0.05)


async def write(client: Client, number: int) -> None:
    async with client.write(f"session {number % 40}", "m", str(number)) as writer:
        for i in range(3):
            await writer.text(f"{number}.{i} ")


async def test_three_workers_persist_200_answers_once_each_though_some_are_killed(
    shared_redis: RedisProcess, key_prefix: str, tmp_path: Path
) -> None:
    database = tmp_path / "answers.db"
    settings: dict[str, Any] = {"beside": True, "key_prefix": key_prefix}
    async with (
        running_bridge(shared_redis.url, **settings) as one,
        running_bridge(shared_redis.url, **settings) as two,
        Client(one.address) as client,
    ):
        # Half of it before anybody is there, and no reader is ever connected.
        await asyncio.gather(*(write(client, number) for number in range(100)))
        async with (
            worker(one.address, database),
            worker(two.address, database),
            worker(one.address, database) as doomed,
        ):
            await persisted(database, 20)
            doomed.kill()
            await asyncio.gather(*(write(client, number) for number in range(100, 200)))
            await persisted(database, 150)
            async with worker(two.address, database):
                await persisted(database, 200)
                await all_settled(client)
        rows = rows_of(database, "session_id, response_id, finish_reason, text, lost")
        assert len(rows) == 200
        assert sorted(rows) == sorted(
            (f"session {number % 40}", str(number), "stop", f"{number}.0 {number}.1 {number}.2 ", None)
            for number in range(200)
        )
        assert (await client.groups.get(GROUP)).pending == 0


async def test_every_end_is_persisted_and_what_is_gone_is_recorded_as_that(
    bridge: RunningBridge, tmp_path: Path
) -> None:
    database = tmp_path / "answers.db"
    async with Client(bridge.address) as client:
        await client.cancel("s", "m", "cancelled")
        for name in ("trimmed", "deleted", "anew"):
            await produce(bridge.bridge, ref(name), "a", first=1)
            await produce(bridge.bridge, ref(name), "b", first=2, completion=STOP)
        await bridge.admin.TrimStream(TrimStreamRequest(stream=ref("trimmed"), keep_tokens=1))
        await bridge.admin.DeleteStream(DeleteStreamRequest(stream=ref("deleted")))
        await bridge.admin.DeleteStream(DeleteStreamRequest(stream=ref("anew")))
        # Open: reading it by its name alone would wait for its end.
        await produce(bridge.bridge, ref("anew"), "c", first=1)
        async with worker(bridge.address, database):
            await persisted(database, 4)
            await all_settled(client)
        assert sorted(rows_of(database, "response_id, finish_reason, text, lost")) == [
            ("anew", "stop", None, "RESTARTED"),
            ("cancelled", "cancelled", "", None),
            ("deleted", "stop", None, "EXPIRED"),
            ("trimmed", "stop", None, "TRIMMED"),
        ]
        # Started again, it goes on from where it was, and keeps both answers of one name apart.
        await produce(bridge.bridge, ref("anew"), "d", first=2, completion=STOP)
        async with worker(bridge.address, database):
            await persisted(database, 5)
            await all_settled(client)
        found = sorted(rows_of(database, "response_id, text, lost"), key=str)
        assert [row for row in found if row[0] == "anew"] == [("anew", "cd", None), ("anew", None, "RESTARTED")]
