"""The Redis of a bridge: the configured one, or an embedded one that lives as long as the bridge."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from llmbridge.server.embedded_redis import embedded_redis
from llmbridge.server.starting import CannotStart
from llmbridge.settings import Settings

logger = logging.getLogger(__name__)


@asynccontextmanager
async def which_redis(settings: Settings, stop: asyncio.Event) -> AsyncIterator[str]:
    """Give the URL of the configured Redis, or of an embedded one, whose end sets `stop` and raises CannotStart.

    Raises EmbeddedRedisError.
    """
    if settings.redis_location is not None:
        yield settings.redis_location
        return
    data_dir = Path(settings.data_dir) if settings.data_dir else None
    async with embedded_redis(data_dir=data_dir) as redis:
        logger.info(
            "embedded Redis %s (%s), data in %s",
            ".".join(map(str, redis.version)),
            redis.binary.origin,
            redis.data_dir if data_dir else "a temporary directory: gone when the bridge stops",
        )
        async with asyncio.TaskGroup() as watching:
            watch = watching.create_task(_end_with(redis.wait, stop), name="embedded Redis")
            yield redis.url
            watch.cancel()


async def _end_with(wait: Callable[[], Awaitable[int]], stop: asyncio.Event) -> None:
    await wait()
    if not stop.is_set():
        stop.set()
        raise CannotStart("the embedded Redis has ended by itself; its log tells why")
