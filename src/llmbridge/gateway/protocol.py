"""HTTP/1.1 connections, with limits that the server's own lack: their number, and the size of a request's head.

Knows nothing of what the requests ask for.
"""

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

HEAD_SECONDS = 10.0
"""How long a client may take to send a request's head. Sent byte by byte, it would hold a connection for ever."""


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
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(503, "the gateway has as many connections as it may")
            return
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
        super().on_headers_complete()

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
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._refuse, 408, "the request's head takes too long")

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

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
