"""Asks sentinels which server is the primary. Keeps no connection to them: they are asked when one to Redis is made."""

from collections.abc import Mapping
from typing import Any

from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from llmbridge.redis_url import Address, RedisUrl


class Sentinels:
    """The sentinels of a URL. `options` are those of connections to Redis, of which TLS concerns the sentinels too."""

    def __init__(self, url: RedisUrl, options: Mapping[str, Any], timeout_seconds: float) -> None:
        self._service = url.service
        self._addresses = list(url.addresses)
        # All of them can be asked, and the primary connected to, within the time that connecting may take.
        at_most = timeout_seconds / (len(url.addresses) + 1)
        self._options = {name: value for name, value in options.items() if name.startswith("ssl_")} | {
            "ssl": url.tls,
            "username": url.sentinel_username,
            "password": url.sentinel_password,
            "protocol": 2,
            "socket_timeout": at_most,
            "socket_connect_timeout": at_most,
            "retry": Retry(NoBackoff(), 0),
        }

    async def primary(self) -> Address:
        """Ask one sentinel after the other, the one that knew last first. Raises RedisError where none knows."""
        problems: list[str] = []
        for address in tuple(self._addresses):
            try:
                # The library's own asks, and reads the answer: it takes a primary that is down for none.
                asked = Sentinel(  # type: ignore[no-untyped-call]
                    [(address.host, address.port)], sentinel_kwargs=self._options
                )
                try:
                    host, port = await asked.discover_master(self._service)
                finally:
                    await asked.aclose()
            except (RedisError, OSError) as error:
                problems.append(f"{address}: {type(error).__name__}")
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return Address(host, int(port))
        raise MasterNotFoundError(f"no sentinel knows a primary of {self._service!r} ({', '.join(problems)})")
