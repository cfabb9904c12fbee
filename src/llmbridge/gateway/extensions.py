"""What the gateway's own HTTP server offers to the application besides ASGI, in a request's `extensions`.

Knows neither the server nor the application: both go through here, and the application runs on any other server too.
"""

from collections.abc import Callable, MutableMapping
from typing import Any

__all__ = ["break_off", "is_beyond_limit", "offer"]

_BREAK_OFF = "llmbridge.break_off"
_BEYOND_LIMIT = "llmbridge.beyond_limit"

_Scope = MutableMapping[str, Any]


def offer(scope: _Scope, *, break_off: Callable[[], None], is_beyond_limit: bool) -> None:
    """Say, as the server, how to break this response off, and whether the connection is one more than there may be."""
    scope["extensions"] = {_BREAK_OFF: break_off, _BEYOND_LIMIT: is_beyond_limit}


def break_off(scope: _Scope) -> None:
    """Close a request's connection in the middle of its response, on purpose, behind what was sent.

    A server without this closes it as well when the application returns, and takes that for the application's mistake.
    """
    action: Callable[[], None] | None = scope.get("extensions", {}).get(_BREAK_OFF)
    if action is not None:
        action()


def is_beyond_limit(scope: _Scope) -> bool:
    """Whether a request is to be refused since it came on a connection for which there is no room."""
    return bool(scope.get("extensions", {}).get(_BEYOND_LIMIT))
