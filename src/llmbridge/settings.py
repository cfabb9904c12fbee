"""All settings: read from the environment (and flags), checked before anything starts, never printed with a secret.

Knows nothing of what the settings do. A bad value raises SettingsError, which names the setting as the operator wrote
it. Times are in ms and sizes in bytes; the names say so.
"""

import ipaddress
import sys
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from llmbridge.redis_url import REDIS_PORT, RedisUrl

_DAY_MS = 86_400_000
_TEN_YEARS_MS = 3_650 * _DAY_MS
MAX_WORKERS = 64


class SettingsError(ValueError):
    """A setting is wrong; the message names it and says what it may be."""


def _checked_url(url: SecretStr) -> SecretStr:
    RedisUrl.parse(url.get_secret_value())
    return url


def _checked_redis_host(host: str) -> str:
    try:
        is_one = urlsplit(f"redis://{_in_url(host)}").hostname == host.lower()
    except ValueError:
        is_one = False
    if not is_one:
        raise ValueError("is no host: give a name or an address alone, and the port by REDIS_PORT")
    return host


def _checked_origins(origins: str) -> str:
    for origin in filter(None, map(str.strip, origins.split(","))):
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in ("http", "https") or f"{parts.scheme}://{parts.netloc}" != origin):
            raise ValueError(f"{origin} is no origin (as https://app.example.org; several divided by commas) nor *")
    return origins


def _checked_upstream(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and parts.hostname and not parts.username and not parts.password
    except ValueError:
        is_one = None
    if url and not is_one:
        raise ValueError("is not a URL of a model server, as http://127.0.0.1:8000/v1, without user and password in it")
    return url


class Settings(BaseSettings):
    """The settings of one bridge, of all its workers alike. Frozen; made by `load`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, validate_by_name=True)

    host: str = Field("127.0.0.1", validation_alias="LLMBRIDGE_HOST")
    port: int = Field(50051, ge=0, le=65535, validation_alias="LLMBRIDGE_PORT")
    allow_insecure: bool = Field(False, validation_alias="LLMBRIDGE_ALLOW_INSECURE")
    workers: int = Field(1, ge=1, le=MAX_WORKERS, validation_alias="LLMBRIDGE_WORKERS")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", validation_alias="LLMBRIDGE_LOG_LEVEL")
    drain_timeout_ms: int = Field(10_000, ge=0, validation_alias="LLMBRIDGE_DRAIN_TIMEOUT_MS")
    otlp_endpoint: str = Field("", validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")

    http_host: str = Field("127.0.0.1", validation_alias="LLMBRIDGE_HTTP_HOST")
    http_port: int | None = Field(None, ge=0, le=65535, validation_alias="LLMBRIDGE_HTTP_PORT")
    http_cors_origins: Annotated[str, AfterValidator(_checked_origins)] = Field(
        "", validation_alias="LLMBRIDGE_HTTP_CORS_ORIGINS"
    )
    http_max_body_bytes: int = Field(1_048_576, ge=1_024, validation_alias="LLMBRIDGE_HTTP_MAX_BODY_BYTES")
    http_max_header_bytes: int = Field(16_384, ge=1_024, validation_alias="LLMBRIDGE_HTTP_MAX_HEADER_BYTES")
    http_max_connections: int = Field(10_000, ge=1, validation_alias="LLMBRIDGE_HTTP_MAX_CONNECTIONS")
    upstream_url: Annotated[str, AfterValidator(_checked_upstream)] = Field(
        "", validation_alias="LLMBRIDGE_UPSTREAM_URL"
    )
    upstream_key: SecretStr = Field(SecretStr(""), validation_alias="LLMBRIDGE_UPSTREAM_KEY")
    upstream_model: str = Field("", validation_alias="LLMBRIDGE_UPSTREAM_MODEL")
    max_chats: int = Field(64, ge=1, validation_alias="LLMBRIDGE_MAX_CHATS")

    redis_url: Annotated[SecretStr, AfterValidator(_checked_url)] | None = Field(None, validation_alias="REDIS_URL")
    redis_host: Annotated[str, AfterValidator(_checked_redis_host)] | None = Field(None, validation_alias="REDIS_HOST")
    redis_port: int | None = Field(None, ge=1, le=65535, validation_alias="REDIS_PORT")
    redis_password: SecretStr | None = Field(None, validation_alias="REDIS_PASSWORD")
    redis_db: int | None = Field(None, ge=0, validation_alias="REDIS_DB")
    redis_timeout_ms: int = Field(2_000, ge=10, validation_alias="LLMBRIDGE_REDIS_TIMEOUT_MS")
    redis_poll_delay: int = Field(100, ge=10, le=5_000, validation_alias="REDIS_POLL_DELAY")
    replica_acks: int = Field(0, ge=0, le=16, validation_alias="LLMBRIDGE_REPLICA_ACKS")
    replica_ack_timeout_ms: int = Field(1_000, ge=10, validation_alias="LLMBRIDGE_REPLICA_ACK_TIMEOUT_MS")
    data_dir: str = Field("", validation_alias="LLMBRIDGE_DATA_DIR")
    key_prefix: str = Field("llm", pattern="^[A-Za-z0-9_.-]{1,32}$", validation_alias="LLMBRIDGE_KEY_PREFIX")
    partitions: int = Field(64, ge=1, le=16_384, validation_alias="LLMBRIDGE_PARTITIONS")

    retention_ms: int = Field(_DAY_MS, ge=1_000, le=_TEN_YEARS_MS, validation_alias="REDIS_STREAM_RETENTION_MS")
    max_retention_ms: int = Field(
        30 * _DAY_MS, ge=1_000, le=_TEN_YEARS_MS, validation_alias="LLMBRIDGE_MAX_RETENTION_MS"
    )
    stream_max_length: int | None = Field(None, ge=1, validation_alias="REDIS_STREAM_MAX_LENGTH")
    producer_lost_ms: int = Field(120_000, ge=100, validation_alias="LLMBRIDGE_PRODUCER_LOST_MS")
    heartbeat_ms: int = Field(15_000, ge=100, validation_alias="LLMBRIDGE_HEARTBEAT_MS")

    max_request_bytes: int = Field(262_144, ge=1_024, le=3_145_728, validation_alias="LLMBRIDGE_MAX_REQUEST_BYTES")
    max_token_bytes: int = Field(65_536, ge=16, validation_alias="LLMBRIDGE_MAX_TOKEN_BYTES")
    max_tokens_per_request: int = Field(1_024, ge=1, validation_alias="LLMBRIDGE_MAX_TOKENS_PER_REQUEST")
    max_id_bytes: int = Field(256, ge=16, le=1_024, validation_alias="LLMBRIDGE_MAX_ID_BYTES")
    max_stream_tokens: int = Field(1_000_000, ge=1, validation_alias="LLMBRIDGE_MAX_STREAM_TOKENS")
    max_readers: int = Field(10_000, ge=1, validation_alias="LLMBRIDGE_MAX_READERS")
    connection_cleanup_interval: int = Field(300_000, ge=1_000, validation_alias="CONNECTION_CLEANUP_INTERVAL")

    consumer_group: str = Field("llmbridge", min_length=1, max_length=256, validation_alias="REDIS_CONSUMER_GROUP")
    max_consumers: int | None = Field(None, ge=1, validation_alias="MAX_CONSUMERS_PER_INSTANCE")
    consumer_poll_timeout: int = Field(1_000, ge=10, le=60_000, validation_alias="CONSUMER_POLL_TIMEOUT")
    max_dead_letters: int = Field(10_000, ge=1, validation_alias="LLMBRIDGE_MAX_DEAD_LETTERS")
    dead_letter_retention_ms: int = Field(
        7 * _DAY_MS, ge=1_000, le=_TEN_YEARS_MS, validation_alias="LLMBRIDGE_DEAD_LETTER_RETENTION_MS"
    )

    @classmethod
    def load(cls, **flags: Any) -> Self:
        """Read the environment; `flags` (field names) win over it, None meaning not given. Raises SettingsError."""
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            raise SettingsError(_explain(error)) from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.producer_lost_ms >= self.retention_ms:
            raise ValueError(
                f"LLMBRIDGE_PRODUCER_LOST_MS ({self.producer_lost_ms}) must be below REDIS_STREAM_RETENTION_MS "
                f"({self.retention_ms}): a stream must not expire before its producer is found lost"
            )
        if self.retention_ms > self.max_retention_ms:
            raise ValueError(
                f"REDIS_STREAM_RETENTION_MS ({self.retention_ms}) must not exceed LLMBRIDGE_MAX_RETENTION_MS "
                f"({self.max_retention_ms})"
            )
        if self.replica_acks and self.redis_location is None:
            raise ValueError(
                "LLMBRIDGE_REPLICA_ACKS is set, but the embedded Redis has no replicas: configure a Redis that has, or "
                "leave it at 0"
            )
        if self.replica_acks and self.replica_ack_timeout_ms >= self.redis_timeout_ms:
            raise ValueError(
                f"LLMBRIDGE_REPLICA_ACK_TIMEOUT_MS ({self.replica_ack_timeout_ms}) must be below "
                f"LLMBRIDGE_REDIS_TIMEOUT_MS ({self.redis_timeout_ms}), the longest wait for any answer of Redis"
            )
        if self.redis_url is not None and self._redis_parts:
            raise ValueError(f"REDIS_URL and {', '.join(self._redis_parts)} are both set: leave one of them out")
        if self.workers > 1 and (sys.platform != "linux" or self.host.startswith("unix:")):
            raise ValueError(
                f"LLMBRIDGE_WORKERS ({self.workers}) must be 1 here: several share a TCP port, whose connections only "
                "Linux spreads over them"
            )
        listening = {"LLMBRIDGE_HOST": self.host, "LLMBRIDGE_HTTP_HOST": self.http_host}
        for name, host in listening.items():
            if self.allow_insecure or _is_loopback(host):
                continue
            raise ValueError(
                f"{name} ({host}) is not a loopback address and calls are not authenticated: listen on "
                "127.0.0.1, or set LLMBRIDGE_ALLOW_INSECURE=true where the network itself keeps strangers out"
            )
        return self

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """The origins whose pages may call the HTTP gateway."""
        return tuple(filter(None, map(str.strip, self.http_cors_origins.split(","))))

    @property
    def _redis_parts(self) -> list[str]:
        """The settings that say in parts where Redis is: any of them means that there is one."""
        parts = {
            "REDIS_HOST": self.redis_host,
            "REDIS_PORT": self.redis_port,
            "REDIS_PASSWORD": self.redis_password,
            "REDIS_DB": self.redis_db,
        }
        return [name for name, value in parts.items() if value is not None]

    @property
    def redis_location(self) -> str | None:
        """The URL of the Redis that is configured, password included; None when there is none."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        if not self._redis_parts:
            return None
        password = f":{quote(self.redis_password.get_secret_value(), safe='')}@" if self.redis_password else ""
        host = _in_url(self.redis_host or "127.0.0.1")
        return f"redis://{password}{host}:{self.redis_port or REDIS_PORT}/{self.redis_db or 0}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _explain(error: ValidationError) -> str:
    return "; ".join(
        ": ".join([*(str(part) for part in problem["loc"]), problem["msg"].removeprefix("Value error, ")])
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    )
