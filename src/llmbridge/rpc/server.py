"""The gRPC server itself: its options, its address, its beginning and end."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from llmbridge.rpc.interceptors import fitted

OPTIONS = (
    # Above the request limit, so that the bridge itself can refuse with a reason.
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    # A peer that vanished without a word is noticed within 40 s; clients may ask every 5 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this one gRPC waits a minute for the answer to a ping.
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Documented under another name (min_recv_…), which gRPC takes in silence and ignores.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)

GOODBYE_SECONDS = 0.5
"""How long calls that never end by themselves (health watches, reflection) may last after the drain."""


class GrpcServer:
    """A server to register services with, then to start."""

    def __init__(self, interceptors: Sequence[Any], *, shares_port: bool = False) -> None:
        # Two servers that share a port by accident would each see half of the calls: only workers may, which share it
        # on purpose and whose supervisor keeps others out.
        options = (*OPTIONS, ("grpc.so_reuseport", int(shares_port)))
        self.grpc = grpc.aio.server(options=options, interceptors=fitted(interceptors))

    def listen(self, host: str, port: int) -> int:
        """Take an address; returns the port, a free one for 0. Raises OSError where the address can't be had."""
        address = f"[{host}]:{port}" if ":" in host and not host.startswith(("[", "unix:")) else f"{host}:{port}"
        try:
            return self.grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"can't listen on {address}, is it taken? ({error})") from None

    def listen_privately(self, address: str) -> None:
        """Take a Unix socket, `unix:<path>`, beside the address. Raises OSError where it can't be had."""
        try:
            self.grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"can't listen on {address} ({error})") from None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context lasts."""
        await self.grpc.start()
        try:
            yield
        finally:
            await self.grpc.stop(GOODBYE_SECONDS)
