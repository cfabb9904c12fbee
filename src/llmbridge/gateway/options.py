"""What the gateway may be told. Plain values: where they come from is for the settings to know."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Options:
    """The HTTP settings of one gateway; names and defaults are those of the settings. Times in ms, sizes in bytes."""

    http_host: str = "127.0.0.1"
    http_port: int = 0
    """0 takes a free one."""
    shares_port: bool = False
    """Whether other workers of the same instance listen on the port, too."""
    http_cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call; `*` alone means all, without cookies. Empty: only pages of its own origin."""
    http_max_body_bytes: int = 1_048_576
    http_max_header_bytes: int = 16_384
    http_max_connections: int = 10_000
    drain_timeout_ms: int = 10_000
    upstream_url: str = ""
    """The OpenAI-compatible server that `POST /chat/start` asks, as http://127.0.0.1:8000/v1. Empty: there is none."""
    upstream_key: str = field(default="", repr=False)
    upstream_model: str = ""
    """The upstream's name of the model, where a request does not name one."""
    max_chats: int = 64
    """How many answers of the upstream may be under way at once."""
