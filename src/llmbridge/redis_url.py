"""What REDIS_URL says: which servers, how they belong together, and how to log in.

    redis://[user:password@]host[:port][/db]                              rediss:// with TLS
    unix://[user:password@]/path[?db=db]
    redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]   rediss+sentinel:// with TLS
    redis+cluster://[user:password@]host[:port][,host[:port]…]                 rediss+cluster:// with TLS

Connects to nothing. No message repeats the URL, since a password may be in it.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

SENTINEL_PORT = 26379
REDIS_PORT = 6379

_SCHEMES = "redis://, rediss:// or unix://, redis+sentinel:// or redis+cluster:// (rediss+… with TLS)"
_ENCODE = "percent-encode what is special in user name and password (/ ? # @ %)"


class Topology(Enum):
    """How the servers belong together."""

    STANDALONE = auto()
    SENTINEL = auto()
    CLUSTER = auto()


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL taken apart. `addresses` are of sentinels or of some of a cluster's nodes; none where there is one server.

    `server` is the URL of a single server with the same login, database and options; only its host says nothing where
    there are `addresses`. The sentinels' own login is apart from it.
    """

    topology: Topology
    server: str = field(repr=False)
    addresses: tuple[Address, ...] = ()
    service: str = ""
    tls: bool = False
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> "RedisUrl":
        """Take a URL apart. Raises ValueError, with what is wrong."""
        scheme, separator, rest = url.partition("://")
        first, _, kind = scheme.partition("+")
        if kind in ("sentinel", "cluster") and first in ("redis", "rediss") and separator:
            return _several(first, Topology[kind.upper()], rest)
        return _single(url)


def _single(url: str) -> RedisUrl:
    try:
        parts = urlsplit(url)
        has_place = parts.path if parts.scheme == "unix" else parts.hostname and parts.port != 0
    except ValueError:
        # Python's message would repeat the address, and the password in it.
        raise ValueError(f"is not a URL of Redis: {_ENCODE}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"must begin with {_SCHEMES}")
    if not has_place or (parts.fragment and parts.scheme != "unix"):
        raise ValueError(f"is not a URL of Redis: {_ENCODE}")
    return RedisUrl(Topology.STANDALONE, url)


def _several(scheme: str, topology: Topology, rest: str) -> RedisUrl:
    rest, hash_sign, _ = rest.partition("#")
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    login, at, hosts = place.rpartition("@")
    if hash_sign or "@" in login:
        raise ValueError(f"is not a URL of Redis: {_ENCODE}")
    default_port = SENTINEL_PORT if topology is Topology.SENTINEL else REDIS_PORT
    addresses = tuple(_address(host, default_port) for host in hosts.split(","))
    options = dict(parse_qsl(query, keep_blank_values=True))
    service, db = _service(path) if topology is Topology.SENTINEL else ("", _no_database(path))
    sentinel = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    if topology is Topology.CLUSTER and any(sentinel.values()):
        raise ValueError("a cluster has no sentinels: leave sentinel_username and sentinel_password out")
    suffix = f"?{urlencode(options)}" if options else ""
    return RedisUrl(
        topology,
        f"{scheme}://{login}{at}{addresses[0]}/{db}{suffix}",
        addresses,
        service,
        scheme == "rediss",
        sentinel["username"],
        sentinel["password"],
    )


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"redis://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0 or "/" in text:
        raise ValueError(f"must name servers as host:port,host:port,…: {_ENCODE}")
    return Address(host, port or default_port)


def _service(path: str) -> tuple[str, int]:
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise ValueError("must name the service that the sentinels watch: redis+sentinel://host:port,…/service")
    if db and not db.isdecimal():
        raise ValueError("the database after the service must be a number: redis+sentinel://host:port,…/service/0")
    return unquote(service), int(db or 0)


def _no_database(path: str) -> int:
    if path.strip("/") not in ("", "0"):
        raise ValueError("a Redis Cluster has only database 0: leave the path out")
    return 0
