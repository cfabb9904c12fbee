"""HTTP/1.1 connections, with limits that the server's own lack: their number, and the size of a request's head.

A connection that is one too many has its request read and marked, so that the application refuses it in the way that
its client understands. Knows nothing of what the requests ask for.
"""

import asyncio
from collections.abc import MutableMapping
from functools import partial
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from llmbridge.gateway.extensions import offer

HEAD_SECONDS = 10.0
"""How long a client may take to send a request's head. Sent byte by byte, it would hold a connection for ever."""

REFUSED_AT_ONCE = 1_000
"""How many connections beyond the limit may be open to be refused by the application; more are refused unread."""

REFUSED_HEAD_SECONDS = 1.0
"""How long such a one may take to send its request's head."""

_FULL = "the gateway has as many connections as it may"


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A subclass made by `limited_protocol` says what it allows."""

    max_connections: int
    max_header_bytes: int

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_bytes = 0
        self._in_head = True
        self._refused = False
        self._is_beyond_limit = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        excess = len(self.connections) - self.max_connections
        if excess > REFUSED_AT_ONCE:
            self._refuse(503, _FULL)
            return
        self._is_beyond_limit = excess > 0
        self._start_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._refused:
            return
        super().data_received(data)
        # The parser hands a header out when it is complete: one without an end is seen here only.
        if self._in_head and self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > self.max_header_bytes:
                self._refuse(431, "the request's head is too large")

    def on_message_begin(self) -> None:
        """See HttpToolsProtocol."""
        super().on_message_begin()
        if not self._in_head:
            self._start_head()

    def on_headers_complete(self) -> None:
        """See HttpToolsProtocol."""
        self._stop_timer()
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.max_header_bytes:
            self._refuse(431, "the request's head is too large")
            return
        if self._is_beyond_limit and self.parser.should_upgrade():
            self._refuse(503, _FULL)
            return
        super().on_headers_complete()
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope:
            # Its task has not begun to run yet.
            offer(
                cast("MutableMapping[str, Any]", self.scope),
                break_off=partial(self._break_off, cycle),
                is_beyond_limit=self._is_beyond_limit,
            )

    def handle_websocket_upgrade(self) -> None:
        """See HttpToolsProtocol."""
        if not self._refused:
            super().handle_websocket_upgrade()

    def on_body(self, body: bytes) -> None:
        """See HttpToolsProtocol."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See HttpToolsProtocol."""
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """See HttpToolsProtocol."""
        if not self._refused:
            super().send_400_response(msg)

    def _start_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._stop_timer()
        if self._is_beyond_limit:
            self._head_timer = self.loop.call_later(REFUSED_HEAD_SECONDS, self._refuse, 503, _FULL)
        else:
            late = "the request's head takes too long"
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._refuse, 408, late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _break_off(self, cycle: RequestResponseCycle) -> None:
        # What the server notes when a client leaves: then nobody is blamed for a response without an end.
        cycle.disconnected = True
        self.transport.close()

    def _refuse(self, status: int, why: str) -> None:
        """Answer in plain text and close: there is no request yet that the application could answer."""
        self._stop_timer()
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        content = why.encode()
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
            + b"content-length: %d\r\n\r\n" % len(content)
            + content
        )
        self.transport.close()


def limited_protocol(max_connections: int, max_header_bytes: int) -> type[asyncio.Protocol]:
    """Make the protocol class of one server; the server makes its connections of it."""
    return cast(
        "type[asyncio.Protocol]",
        type(
            "Protocol",
            (LimitedProtocol,),
            {"max_connections": max_connections, "max_header_bytes": max_header_bytes},
        ),
    )
