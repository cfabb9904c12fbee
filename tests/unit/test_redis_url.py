"""REDIS_URL in all its forms, and what is wrong with those that are none."""

from urllib.parse import quote

import pytest
from redis.asyncio.connection import SSLConnection, parse_url

from llmbridge.log.connections import Connector
from llmbridge.redis_url import Address, RedisUrl, Topology

SECRET = "hidden/?#@%:secret"


@pytest.mark.parametrize("url", ["redis://u:p@h:1/2", "rediss://h", "redis://[::1]:7", "unix:///run/redis.sock?db=1"])
def test_one_server(url: str) -> None:
    assert RedisUrl.parse(url) == RedisUrl(Topology.STANDALONE, url)


@pytest.mark.parametrize(
    ("url", "addresses", "service", "db"),
    [
        ("redis+sentinel://a/main", [("a", 26379)], "main", 0),
        ("redis+sentinel://a:1,b,c:3/main/2", [("a", 1), ("b", 26379), ("c", 3)], "main", 2),
        ("redis+sentinel://[::1]:1,[fe80::2]/a%2Fb/", [("::1", 1), ("fe80::2", 26379)], "a/b", 0),
        ("redis+cluster://a,b:7000", [("a", 6379), ("b", 7000)], "", 0),
        ("redis+cluster://a:7000/0", [("a", 7000)], "", 0),
    ],
)
def test_several_servers(url: str, addresses: list[tuple[str, int]], service: str, db: int) -> None:
    parsed = RedisUrl.parse(url)
    assert parsed.addresses == tuple(Address(host, port) for host, port in addresses)
    assert parsed.service == service
    assert parse_url(parsed.server)["db"] == db
    assert parsed.topology is (Topology.SENTINEL if "sentinel" in url else Topology.CLUSTER)


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_login_tls_and_options_are_those_of_each_server(kind: str) -> None:
    service = "/main" if kind == "sentinel" else ""
    url = f"rediss+{kind}://user:{quote(SECRET, safe='')}@a:1,b:2{service}?ssl_ca_certs=/ca%20x.pem"
    parsed = RedisUrl.parse(url)
    assert parsed.tls
    location = dict(parse_url(parsed.server))
    assert (location["username"], location["password"]) == ("user", SECRET)
    assert location["ssl_ca_certs"] == "/ca x.pem"
    assert location["connection_class"] is SSLConnection


def test_sentinels_have_a_login_of_their_own() -> None:
    url = f"redis+sentinel://:{quote(SECRET, safe='')}@a/main?sentinel_username=u&sentinel_password=other-secret"
    parsed = RedisUrl.parse(url)
    assert (parsed.sentinel_username, parsed.sentinel_password) == ("u", "other-secret")
    assert parse_url(parsed.server) == {"host": "a", "port": 26379, "db": 0, "password": SECRET}
    for text in (repr(parsed), str(parsed)):
        assert "secret" not in text


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://u:hidden-secret@h", "must begin with"),
        ("redis+sentinels://u:hidden-secret@h/main", "must begin with"),
        ("http+sentinel://u:hidden-secret@h/main", "must begin with"),
        ("redis+sentinel:u:hidden-secret@h/main", "must begin with"),
        ("redis+sentinel://u:hidden-secret@h", "must name the service"),
        ("redis+sentinel://u:hidden-secret@h/main/x", "database after the service must be a number"),
        ("redis+sentinel://u:hidden-secret@/main", "must name servers"),
        ("redis+sentinel://u:hidden-secret@a,,b/main", "must name servers"),
        ("redis+sentinel://u:hidden-secret@a:0/main", "must name servers"),
        ("redis+sentinel://u:hidden-secret@a:x/main", "must name servers"),
        ("redis+sentinel://u:hidden-secret@[a/main", "must name servers"),
        ("redis+sentinel://u:hidden/secret@a/main", "must name servers"),
        ("redis+sentinel://u:hidden#secret@a/main", "is not a URL of Redis"),
        ("redis+sentinel://u@x:hidden-secret@a/main", "is not a URL of Redis"),
        ("redis+cluster://u:hidden-secret@a/1", "only database 0"),
        ("redis+cluster://u:hidden-secret@a?sentinel_password=hidden-secret", "has no sentinels"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refused:
        RedisUrl.parse(url)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_an_option_that_no_connection_has_is_found_at_once() -> None:
    with pytest.raises(TypeError, match="colour"):
        Connector("redis+cluster://a?colour=blue", 1.0)
