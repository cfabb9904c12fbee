"""The one place that makes Redis connections, with every timeout explicit, and says when to try again.

Connections are used directly, without redis-py's client and its retries: its default re-sends an EVAL whose reply was
cut, which stores an append twice. RESP2, because no reply used here differs in RESP3.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import hiredis
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError as NotConnected

from llmbridge.errors import RedisUnavailable
from llmbridge.log.sentinels import Sentinels
from llmbridge.redis_url import Address, RedisUrl, Topology

READ_SIZE_BYTES = 65_536
"""Large enough that a page of a replay takes few reads."""

LONGEST_PAUSE_SECONDS = 1.0

_BACKOFF = EqualJitterBackoff(cap=LONGEST_PAUSE_SECONDS, base=0.05)

_FAILURES_AT_LONGEST = 10
"""More change nothing, but overflow the library's power of two after some thousand."""


def pause_seconds(failures: int) -> float:
    """Say how long to wait before the next attempt after so many failed ones (the first is 1), with jitter."""
    return float(_BACKOFF.compute(min(failures - 1, _FAILURES_AT_LONGEST)))


class NotSent(ConnectionError):
    """The connection had ended before anything was sent on it."""


async def write(connection: AbstractConnection, packed: bytes) -> None:
    """Send packed commands. Raises NotSent where the connection turns out to have ended, else what redis-py does."""
    try:
        await connection.send_packed_command(packed, check_health=False)
    except RuntimeError as error:
        # How uvloop tells that the peer has reset a connection: its transport takes nothing any more.
        raise NotSent(str(error)) from error


def replies_at_hand(connection: AbstractConnection) -> Iterator[Any]:
    """Give what came together with the reply just read; redis-py's own way takes 3 to 4 µs for each.

    Gives nothing where redis-py was told to use another parser than hiredis. Raises an error reply.
    """
    reader = getattr(connection._parser, "_reader", None)
    if not isinstance(reader, hiredis.Reader):
        return
    while (reply := reader.gets()) is not NOT_ENOUGH_DATA:
        if isinstance(reply, Exception):
            raise reply
        yield reply


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
    """Makes and opens connections. Raises ValueError for a URL that is none."""

    def __init__(self, url: str, connect_timeout_seconds: float) -> None:
        self.url = RedisUrl.parse(url)
        location: dict[str, Any] = dict(parse_url(self.url.server))
        self._kind: type[AbstractConnection] = location.pop("connection_class", Connection)
        self._location = location
        self._connect_timeout_seconds = connect_timeout_seconds
        # Raises TypeError for an option that no connection has: better now than at the first connection.
        self.make("check")
        self._sentinels = (
            Sentinels(self.url, self._location, connect_timeout_seconds)
            if self.url.topology is Topology.SENTINEL
            else None
        )

    def make(self, purpose: str, address: Address | None = None) -> AbstractConnection:
        """Make a connection, not opened yet; Redis' CLIENT LIST shows it as `llmbridge-<purpose>`.

        To `address`, or to the one that the URL names; with Sentinel, that is found out when it is opened.
        """
        place = {} if address is None else {"host": address.host, "port": address.port}
        return self._kind(
            **self._location
            | place
            | {
                "client_name": f"llmbridge-{purpose}",
                "protocol": 2,
                # Callers bound whole exchanges. redis-py's own limit (5 s by default) also cuts reads meant to wait.
                "socket_timeout": None,
                "socket_connect_timeout": self._connect_timeout_seconds,
                "socket_read_size": READ_SIZE_BYTES,
                "retry": Retry(NoBackoff(), 0),
                "health_check_interval": 0,
                "driver_info": None,
            }
        )

    async def open(self, connection: AbstractConnection) -> None:
        """Connect, to what is the primary now. The caller bounds the time. Raises RedisError, OSError, TimeoutError."""
        if self._sentinels is None:
            await connection.connect()  # type: ignore[no-untyped-call]
            return
        assert isinstance(connection, Connection), "sentinels name hosts and ports"
        primary = await self._sentinels.primary()
        connection.host, connection.port = primary.host, primary.port
        await connection.connect()  # type: ignore[no-untyped-call]
        # A sentinel may not have heard yet, and a server that comes back takes itself for what it was.
        await connection.send_command("ROLE", check_health=False)
        role = await connection.read_response()
        if role[0] != b"master":
            await connection.disconnect(nowait=True)
            raise NotConnected(f"{primary}, which the sentinels call the primary, is a replica")
