"""One channel to the bridge, and requests over it that are tried again until they are answered.

Knows nothing of streams and sequences: that a request may be sent twice is for its callers to make sure of.
"""

import asyncio
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub

from llmbridge.client.errors import ClientClosed, ClientError, Unavailable, error_from_rpc
from llmbridge.client.retry import Backoff, RetryPolicy
from llmbridge.v1.bridge_service_pb2 import ProduceResponse
from llmbridge.v1.bridge_service_pb2_grpc import BridgeServiceStub
from llmbridge.v1.connection_service_pb2_grpc import ConnectionServiceStub
from llmbridge.v1.group_service_pb2_grpc import GroupServiceStub
from llmbridge.v1.lifecycle_service_pb2_grpc import LifecycleServiceStub
from llmbridge.v1.stream_admin_service_pb2_grpc import StreamAdminServiceStub

if TYPE_CHECKING:
    # These exist for type checkers only.
    from llmbridge.v1.bridge_service_pb2_grpc import BridgeServiceAsyncStub
    from llmbridge.v1.connection_service_pb2_grpc import ConnectionServiceAsyncStub
    from llmbridge.v1.group_service_pb2_grpc import GroupServiceAsyncStub
    from llmbridge.v1.lifecycle_service_pb2_grpc import LifecycleServiceAsyncStub
    from llmbridge.v1.stream_admin_service_pb2_grpc import StreamAdminServiceAsyncStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_OPTIONS = (
    # Which request may be repeated, and for how long, is decided here and not by grpc.
    ("grpc.enable_retries", 0),
    # A dead peer is noticed within 9 s while a call is open. The bridge takes a ping every 5 s; the rest is for timers
    # that are early and pings that come in bunches. Without calls nothing is sent: servers take that ill.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Without this grpc waits a minute for the answer to a ping, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A reader only receives; by default grpc would stop its pings after two.
    ("grpc.http2.max_pings_without_data", 0),
    # grpc waits between connection attempts, too, by default up to 2 minutes: our attempts would fail all that time.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In spite of its name, how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # The bridge's messages fit: no stored entry is larger than 3 MiB.
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
)

_PRODUCE = "/llmbridge.v1.BridgeService/Produce"

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")


def grpc_target(address: str) -> str:
    """Turn `host:port`, several `ip:port` divided by commas, or a target in grpc's own syntax into grpc's syntax.

    Of several addresses the first that answers is used, the next when it is gone. Raises ValueError if they are not all
    IP addresses of one family: grpc takes only those, or one name that resolves to all of them.
    """
    if address.startswith(_SCHEMES) or "," not in address:
        return address
    parts = [part.strip() for part in address.split(",")]
    families = {_family(part) for part in parts}
    if len(families) != 1:
        raise ValueError(f"{address!r}: several addresses must be IP addresses of one family")
    return f"{families.pop()}:{','.join(parts)}"


def _family(address: str) -> str:
    host, _, _port = address.rpartition(":")
    try:
        version = ipaddress.ip_address(host.strip("[]")).version
    except ValueError:
        raise ValueError(f"{address!r} is not ip:port; give one name that resolves to all addresses instead") from None
    return f"ipv{version}"


class Connection:
    """The channel and its stubs. Belongs to the event loop it was made in; shared by all of a client's calls.

    One is enough for many writers and readers: calls on a channel don't wait for each other.
    """

    def __init__(self, address: str, policy: RetryPolicy) -> None:
        self.policy = policy
        self._channel = grpc.aio.insecure_channel(grpc_target(address), options=_OPTIONS)
        self.bridge: BridgeServiceAsyncStub = BridgeServiceStub(self._channel)
        self.produce: grpc.aio.UnaryUnaryMultiCallable[bytes, ProduceResponse] = self._channel.unary_unary(
            _PRODUCE, request_serializer=None, response_deserializer=ProduceResponse.FromString
        )
        """BridgeService.Produce, for requests that are encoded already."""
        self.admin: StreamAdminServiceAsyncStub = StreamAdminServiceStub(self._channel)
        self.groups: GroupServiceAsyncStub = GroupServiceStub(self._channel)
        self.lifecycle: LifecycleServiceAsyncStub = LifecycleServiceStub(self._channel)
        self.connections: ConnectionServiceAsyncStub = ConnectionServiceStub(self._channel)
        self.health = HealthStub(self._channel)
        self._closed = False

    async def close(self) -> None:
        """End all calls; they raise ClientClosed."""
        self._closed = True
        await self._channel.close()

    @contextmanager
    def translating(self, *, own_deadline: bool) -> Iterator[None]:
        """Turn what grpc raises into ClientErrors, and nothing else.

        grpc raises CancelledError for calls that end with their channel, in tasks that nobody cancelled.
        """
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, own_deadline=own_deadline) from error
        except grpc.aio.UsageError:
            if self._closed:
                raise ClientClosed from None
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise ClientClosed from None
            raise

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        give_up_after: float | None = None,
    ) -> _Response:
        """Send the request until it is answered, waiting as the policy and the bridge's RetryInfo say.

        Raises Unavailable when `give_up_after` seconds (by default the policy's) would pass before the next attempt,
        and every other ClientError at once. The error's `outcome_unknown` is about all attempts.
        """
        limit = self.policy.give_up_after if give_up_after is None else give_up_after
        clock = asyncio.get_running_loop().time
        deadline = clock() + limit
        backoff = Backoff(self.policy)
        outcome_unknown = False
        attempt = 0
        while True:
            attempt += 1
            timeout = min(self.policy.attempt_timeout, max(deadline - clock(), 0.0))
            try:
                with self.translating(own_deadline=True):
                    return await method(request, timeout=timeout)
            except ClientError as error:
                outcome_unknown = outcome_unknown or error.outcome_unknown
                error.attempts, error.outcome_unknown = attempt, outcome_unknown
                if not isinstance(error, Unavailable):
                    raise
                delay = backoff.next_delay(error.retry_delay)
                if clock() + delay >= deadline:
                    raise
            await asyncio.sleep(delay)
