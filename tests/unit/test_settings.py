"""Settings: where they come from, what is refused and how it is said, and that no secret gets out."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from llmbridge.settings import Settings, SettingsError

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
SECRET = "p@ss:w/ör?d#"


def _alias(field: str) -> str:
    alias = Settings.model_fields[field].validation_alias
    assert isinstance(alias, str)
    return alias


def test_the_defaults_are_safe_and_valid() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port, settings.allow_insecure) == ("127.0.0.1", 50051, False)
    assert settings.redis_location is None
    assert (settings.stream_max_length, settings.retention_ms, settings.producer_lost_ms) == (None, 86_400_000, 120_000)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("LLMBRIDGE_HOST", "localhost", "host", "localhost"),
        ("LLMBRIDGE_PORT", "0", "port", 0),
        ("REDIS_HOST", "redis.internal", "redis_host", "redis.internal"),
        ("REDIS_PORT", "6380", "redis_port", 6380),
        ("REDIS_DB", "3", "redis_db", 3),
        ("REDIS_STREAM_MAX_LENGTH", "10", "stream_max_length", 10),
        ("REDIS_STREAM_RETENTION_MS", "200000", "retention_ms", 200_000),
        ("REDIS_POLL_DELAY", "50", "redis_poll_delay", 50),
        ("REDIS_CONSUMER_GROUP", "workers", "consumer_group", "workers"),
        ("MAX_CONSUMERS_PER_INSTANCE", "8", "max_consumers", 8),
        ("CONSUMER_POLL_TIMEOUT", "50", "consumer_poll_timeout", 50),
        ("CONNECTION_CLEANUP_INTERVAL", "60000", "connection_cleanup_interval", 60_000),
        ("LLMBRIDGE_KEY_PREFIX", "my.app-1", "key_prefix", "my.app-1"),
        ("LLMBRIDGE_ALLOW_INSECURE", "true", "allow_insecure", True),
        ("LLMBRIDGE_HTTP_PORT", "0", "http_port", 0),
        ("LLMBRIDGE_HTTP_HOST", "::1", "http_host", "::1"),
        ("LLMBRIDGE_HTTP_CORS_ORIGINS", "https://a.org, http://b:1", "cors_origins", ("https://a.org", "http://b:1")),
        ("LLMBRIDGE_HTTP_CORS_ORIGINS", "*", "cors_origins", ("*",)),
        ("LLMBRIDGE_HTTP_MAX_BODY_BYTES", "2048", "http_max_body_bytes", 2_048),
        ("LLMBRIDGE_UPSTREAM_URL", "http://127.0.0.1:8080/v1", "upstream_url", "http://127.0.0.1:8080/v1"),
        ("LLMBRIDGE_MAX_CHATS", "3", "max_chats", 3),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317", "otlp_endpoint", "http://localhost:4317"),
    ],
)
def test_the_environment_is_read(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, field: str, value: object
) -> None:
    monkeypatch.setenv(name, text)
    assert getattr(Settings.load(), field) == value


def test_flags_win_over_the_environment_and_none_is_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMBRIDGE_PORT", "1")
    monkeypatch.setenv("LLMBRIDGE_HOST", "localhost")
    settings = Settings.load(port=2, host=None)
    assert (settings.port, settings.host) == (2, "localhost")


@pytest.mark.parametrize("field", Settings.model_fields)
def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setenv(_alias(field), "")
    assert Settings.load() == Settings.model_construct()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LLMBRIDGE_PORT", "65536"),
        ("LLMBRIDGE_PORT", "http"),
        ("LLMBRIDGE_WORKERS", "0"),
        ("LLMBRIDGE_WORKERS", "65"),
        ("LLMBRIDGE_LOG_LEVEL", "LOUD"),
        ("REDIS_PORT", "0"),
        ("REDIS_DB", "-1"),
        ("REDIS_URL", "http://localhost"),
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_POLL_DELAY", "9"),
        ("REDIS_STREAM_MAX_LENGTH", "0"),
        ("REDIS_STREAM_RETENTION_MS", "999"),
        ("LLMBRIDGE_PRODUCER_LOST_MS", "1e3"),
        ("LLMBRIDGE_KEY_PREFIX", "a:b"),
        ("LLMBRIDGE_KEY_PREFIX", "{a}"),
        ("LLMBRIDGE_KEY_PREFIX", "a\n"),
        ("LLMBRIDGE_PARTITIONS", "0"),
        ("LLMBRIDGE_PARTITIONS", "16385"),
        ("LLMBRIDGE_MAX_REQUEST_BYTES", "3145729"),
        ("LLMBRIDGE_MAX_ID_BYTES", "15"),
        ("LLMBRIDGE_MAX_READERS", "0"),
        ("MAX_CONSUMERS_PER_INSTANCE", "0"),
        ("CONSUMER_POLL_TIMEOUT", "9"),
        ("CONNECTION_CLEANUP_INTERVAL", "999"),
        ("LLMBRIDGE_ALLOW_INSECURE", "perhaps"),
        ("LLMBRIDGE_HTTP_PORT", "-1"),
        ("LLMBRIDGE_HTTP_MAX_BODY_BYTES", "1"),
        ("LLMBRIDGE_HTTP_MAX_HEADER_BYTES", "1"),
        ("LLMBRIDGE_HTTP_MAX_CONNECTIONS", "0"),
        ("LLMBRIDGE_HTTP_CORS_ORIGINS", "app.example.org"),
        ("LLMBRIDGE_HTTP_CORS_ORIGINS", "https://a.org,https://b.org/"),
        ("LLMBRIDGE_UPSTREAM_URL", "127.0.0.1:8080"),
        ("LLMBRIDGE_UPSTREAM_URL", "http://user:word@h/v1"),
        ("LLMBRIDGE_MAX_CHATS", "0"),
        ("REDIS_HOST", "redis:6379"),
        ("REDIS_HOST", "redis/0"),
        ("REDIS_HOST", "user@redis"),
        ("REDIS_HOST", "[::1]"),
        ("REDIS_HOST", "redis://redis"),
    ],
)
def test_a_bad_value_names_its_setting(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError, match=f"^{name}: \\w") as refused:
        Settings.load()
    assert "\n" not in str(refused.value)
    assert "pydantic" not in str(refused.value)


def test_several_bad_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMBRIDGE_PORT", "x")
    monkeypatch.setenv("REDIS_DB", "y")
    with pytest.raises(SettingsError, match=r"^LLMBRIDGE_PORT: .*; REDIS_DB: "):
        Settings.load()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            {"producer_lost_ms": 2_000, "retention_ms": 2_000},
            ["LLMBRIDGE_PRODUCER_LOST_MS (2000)", "REDIS_STREAM_RETENTION_MS (2000)"],
        ),
        ({"max_retention_ms": 86_399_999}, ["REDIS_STREAM_RETENTION_MS", "LLMBRIDGE_MAX_RETENTION_MS (86399999)"]),
        ({"redis_url": "redis://a", "redis_host": "b"}, ["REDIS_URL", "REDIS_HOST"]),
        ({"replica_acks": 1}, ["LLMBRIDGE_REPLICA_ACKS", "embedded Redis"]),
        (
            {"redis_url": "redis://a", "replica_acks": 1, "replica_ack_timeout_ms": 2_000},
            ["LLMBRIDGE_REPLICA_ACK_TIMEOUT_MS (2000)", "LLMBRIDGE_REDIS_TIMEOUT_MS (2000)"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(flags: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.load(**flags)
    assert all(name in str(refused.value) for name in named)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "unix:/run/bridge.sock"])
def test_a_loopback_address_needs_no_permission(host: str) -> None:
    assert Settings.load(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "10.0.0.1", "example.org", "localhost.example.org", "*"])
def test_an_open_listener_must_be_asked_for_by_name(host: str) -> None:
    with pytest.raises(SettingsError, match=r"LLMBRIDGE_HTTP_HOST \(.*LLMBRIDGE_ALLOW_INSECURE"):
        Settings.load(http_host=host)
    assert Settings.load(http_host=host, allow_insecure=True).http_host == host
    with pytest.raises(SettingsError, match=r"LLMBRIDGE_HOST \(.*LLMBRIDGE_ALLOW_INSECURE"):
        Settings.load(host=host)
    assert Settings.load(host=host, allow_insecure=True).host == host


def test_the_parts_of_a_redis_location_are_put_together() -> None:
    assert Settings.load(redis_host="h").redis_location == "redis://h:6379/0"
    location = Settings.load(redis_host="h", redis_port=1, redis_db=2, redis_password=SECRET).redis_location
    assert location is not None
    url = urlsplit(location)
    assert (url.scheme, url.hostname, url.port, url.path) == ("redis", "h", 1, "/2")
    assert unquote(url.password or "") == SECRET


@pytest.mark.parametrize(
    ("name", "text", "location"),
    [
        ("REDIS_PORT", "6399", "redis://127.0.0.1:6399/0"),
        ("REDIS_PORT", "6379", "redis://127.0.0.1:6379/0"),
        ("REDIS_PASSWORD", "word", "redis://:word@127.0.0.1:6379/0"),
        ("REDIS_DB", "3", "redis://127.0.0.1:6379/3"),
    ],
)
def test_any_part_of_a_redis_location_means_that_there_is_one(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, location: str
) -> None:
    monkeypatch.setenv(name, text)
    assert Settings.load().redis_location == location
    # A URL says all of it: neither may be ignored without a word.
    with pytest.raises(SettingsError, match=f"REDIS_URL and {name} are both set"):
        Settings.load(redis_url="redis://a")


def test_a_redis_host_may_be_an_ipv6_address() -> None:
    location = Settings.load(redis_host="::1").redis_location
    assert location is not None
    assert (urlsplit(location).hostname, urlsplit(location).port) == ("::1", 6379)


@pytest.mark.parametrize("url", ["redis://u:p@h:1/2", "rediss://h", "unix:///run/redis.sock?db=1"])
def test_a_redis_url_is_taken_as_it_is(url: str) -> None:
    assert Settings.load(redis_url=url).redis_location == url


def test_no_secret_is_printed() -> None:
    for settings in (
        Settings.load(redis_host="h", redis_password=SECRET),
        Settings.load(redis_url="redis://user:hidden-secret@h"),
        Settings.load(upstream_key="hidden-secret"),
    ):
        for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
            assert SECRET not in text
            assert "hidden-secret" not in text


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hidden-secret@h",
        # Not percent-encoded: the slash ends the address, and what is before it looks like a port.
        "redis://user:hidden-secret/x@h:6379/0",
        "redis://user:hidden-secret#x@h:6379/0",
        "redis://:hidden-secret?x@h:6379/0",
        "redis://user:hidden-secret@[h",
        # A character that looks like several; Python's message repeats the whole address.
        "redis://user:hidden-secret@h\u2100",
    ],
)
def test_a_bad_url_is_refused_without_its_secret(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(SettingsError, match=r"^REDIS_URL: \w") as refused:
        Settings.load()
    assert "hidden-secret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(field: str) -> None:
    alias = _alias(field)
    rows = re.findall(rf"^\| [^|]*`{alias}`[^|]* \|.*$", OPERATIONS.read_text(), re.MULTILINE)
    assert len(rows) == 1
    default = Settings.model_fields[field].default
    if isinstance(default, int):
        assert str(default).lower() in rows[0]


def test_settings_do_not_change() -> None:
    settings = Settings.load()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1
