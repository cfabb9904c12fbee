"""The one place that makes Redis connections, with every timeout explicit, and says when to try again.

redis-py connects, authenticates and selects; from then on a connection is a `Link`. Its client, with its retries, is
not used: its default re-sends an EVAL whose reply was cut, which stores an append twice. RESP2, because no reply used
here differs in RESP3.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError as NotConnected

from llmbridge.errors import RedisUnavailable
from llmbridge.log.link import Link, refuse
from llmbridge.log.sentinels import Sentinels
from llmbridge.redis_url import Address, RedisUrl, Topology

LONGEST_PAUSE_SECONDS = 1.0

_BACKOFF = EqualJitterBackoff(cap=LONGEST_PAUSE_SECONDS, base=0.05)

_FAILURES_AT_LONGEST = 10
"""More change nothing, but overflow the library's power of two after some thousand."""


def pause_seconds(failures: int) -> float:
    """Say how long to wait before the next attempt after so many failed ones (the first is 1), with jitter."""
    return float(_BACKOFF.compute(min(failures - 1, _FAILURES_AT_LONGEST)))


class Breaker:
    """When something that failed may be tried again: one attempt at a time, each after a longer pause than the last.

    It is open from the first failure to the first success, also while an attempt is under way: meanwhile nobody else
    should wait for what will probably fail. The policy of everything here that connects to Redis.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._trying = False
        self._closed_until = 0.0

    def raise_if_open(self) -> None:
        """Raise RedisUnavailable where a caller would only wait: while a pause lasts or an attempt is under way."""
        if self.failures and (self._trying or self.pause_left > 0):
            raise RedisUnavailable("it could not be reached a moment ago")

    @property
    def pause_left(self) -> float:
        """How many seconds to wait before the next attempt."""
        return max(0.0, self._closed_until - asyncio.get_running_loop().time()) if self.failures else 0.0

    def begin(self) -> None:
        """Note that an attempt begins. Raises RedisUnavailable while a pause lasts."""
        self.raise_if_open()
        self._trying = True

    def failed(self) -> None:
        """Note that it failed."""
        self._trying = False
        self.failures += 1
        self._closed_until = asyncio.get_running_loop().time() + pause_seconds(self.failures)

    def succeeded(self) -> None:
        """Note that it worked."""
        self._trying = False
        self.failures = 0

    def abandoned(self) -> None:
        """Note that it was cut short from outside, which says nothing of Redis."""
        self._trying = False


class Connector:
    """Opens connections. Raises ValueError for a URL that is none.

    The timeout bounds making a connection, and each answer on it.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self.url = RedisUrl.parse(url)
        location: dict[str, Any] = dict(parse_url(self.url.server))
        self._kind: type[AbstractConnection] = location.pop("connection_class", Connection)
        self._location = location
        self.timeout_seconds = timeout_seconds
        # Raises TypeError for an option that no connection has: better now than at the first connection.
        self._make("check", None)
        self._sentinels = (
            Sentinels(self.url, self._location, timeout_seconds) if self.url.topology is Topology.SENTINEL else None
        )

    async def open(self, purpose: str, address: Address | None = None, hear: Callable[[Any], None] = refuse) -> Link:
        """Connect; Redis' CLIENT LIST shows it as `llmbridge-<purpose>`. For `hear` see Link.

        To `address`, or to the one that the URL names; with Sentinel, to what is the primary now. The caller bounds the
        time and closes the link. Raises RedisError, OSError, TimeoutError.
        """
        if self._sentinels is not None:
            address = await self._sentinels.primary()
        connection = self._make(purpose, address)
        link = Link(self.timeout_seconds, hear)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await link.take(connection)
        finally:
            # Where the link has it, there is nothing left to end.
            await connection.disconnect(nowait=True)
        if self._sentinels is not None:
            await self._check_role(link, address)
        return link

    async def _check_role(self, link: Link, address: Address | None) -> None:
        """See whether it is a primary: a sentinel may not have heard yet, and what comes back takes itself for one."""
        [role] = await link.ask(pack_command(("ROLE",)), 1)
        if isinstance(role, list) and role[0] == b"master":
            return
        await link.close()
        problem = "is a replica" if isinstance(role, list) else f"does not say what it is: {role}"
        raise NotConnected(f"{address}, which the sentinels call the primary, {problem}")

    def _make(self, purpose: str, address: Address | None) -> AbstractConnection:
        place = {} if address is None else {"host": address.host, "port": address.port}
        return self._kind(
            **self._location
            | place
            | {
                "client_name": f"llmbridge-{purpose}",
                "protocol": 2,
                # Callers bound whole exchanges; redis-py's own limit is 5 s.
                "socket_timeout": None,
                "socket_connect_timeout": self.timeout_seconds,
                "retry": Retry(NoBackoff(), 0),
                "health_check_interval": 0,
                "driver_info": None,
            }
        )
