"""The one place that makes Redis connections, with every timeout explicit.

Connections are used directly, without redis-py's client and its retries: its default re-sends an EVAL whose reply was
cut, which stores an append twice. RESP2, because no reply used here differs in RESP3.
"""

from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff, NoBackoff

READ_SIZE_BYTES = 65_536
"""Large enough that a page of a replay takes few reads."""


LONGEST_PAUSE_SECONDS = 1.0

_BACKOFF = EqualJitterBackoff(cap=LONGEST_PAUSE_SECONDS, base=0.05)

_FAILURES_AT_LONGEST = 10
"""More change nothing, but overflow the library's power of two after some thousand."""


def pause_seconds(failures: int) -> float:
    """Say how long to wait before the next attempt after so many failed ones (the first is 1), with jitter."""
    return float(_BACKOFF.compute(min(failures - 1, _FAILURES_AT_LONGEST)))


class Connector:
    """Makes connections to one Redis. Raises ValueError for a URL that is none."""

    def __init__(self, url: str, connect_timeout_seconds: float) -> None:
        location: dict[str, Any] = dict(parse_url(url))
        self._kind: type[AbstractConnection] = location.pop("connection_class", Connection)
        self._location = location
        self._connect_timeout_seconds = connect_timeout_seconds

    def make(self, purpose: str) -> AbstractConnection:
        """Make a connection, not connected yet; Redis' CLIENT LIST shows it as `llmbridge-<purpose>`."""
        return self._kind(
            **self._location
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
