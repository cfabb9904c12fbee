"""One channel to the bridge, and requests over it that are tried again until they are answered.

Knows nothing of streams and sequences: that a request may be sent twice is for its callers to make sure of.
"""

import asyncio
import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub

from llmbridge.client.appender import Appender
from llmbridge.client.attempts import until_answered
from llmbridge.client.errors import ClientClosed, GenerationOver, error_from_rpc
from llmbridge.client.produce_call import ProduceCall
from llmbridge.client.reading import Reading
from llmbridge.client.retry import RetryPolicy
from llmbridge.client.shared import Shared
from llmbridge.client.subscribe_call import SubscribeCall
from llmbridge.v1.bridge_service_pb2 import (
    ProduceManyResponse,
    SubscribeManyResponse,
    SubscribeRequest,
    WriterStart,
)
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
_Bidi: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, _Response]"

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

_PRODUCE_MANY = "/llmbridge.v1.BridgeService/ProduceMany"
_SUBSCRIBE_MANY = "/llmbridge.v1.BridgeService/SubscribeMany"
_TRANSPORT_KEY = "llmbridge-transport"

DEFAULT_LINGER = 0.005
"""In seconds; chosen by measurement, see docs/design.md."""

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

    def __init__(self, address: str, policy: RetryPolicy, linger: float = DEFAULT_LINGER) -> None:
        """`linger` is the least time between two messages with several writers' appends, in seconds."""
        if linger < 0:
            raise ValueError("linger can't be negative")
        self.policy = policy
        self._channel = grpc.aio.insecure_channel(grpc_target(address), options=_OPTIONS)
        self.bridge: BridgeServiceAsyncStub = BridgeServiceStub(self._channel)
        self.admin: StreamAdminServiceAsyncStub = StreamAdminServiceStub(self._channel)
        self.groups: GroupServiceAsyncStub = GroupServiceStub(self._channel)
        self.lifecycle: LifecycleServiceAsyncStub = LifecycleServiceStub(self._channel)
        self.connections: ConnectionServiceAsyncStub = ConnectionServiceStub(self._channel)
        self.health = HealthStub(self._channel)
        # Their requests are encoded already.
        produce_many: _Bidi[ProduceManyResponse] = self._channel.stream_stream(
            _PRODUCE_MANY, request_serializer=None, response_deserializer=ProduceManyResponse.FromString
        )
        self._subscribe_many: _Bidi[SubscribeManyResponse] = self._channel.stream_stream(
            _SUBSCRIBE_MANY, request_serializer=None, response_deserializer=SubscribeManyResponse.FromString
        )
        self._appends = Shared(lambda: ProduceCall(produce_many, linger), "append")
        self._subscriptions: dict[str, Shared[SubscribeCall]] = {}
        self._closed = False

    async def close(self) -> None:
        """End all calls; they raise ClientClosed."""
        self._closed = True
        try:
            await asyncio.gather(self._appends.close(), *(shared.close() for shared in self._subscriptions.values()))
        finally:
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
        """Send the request until it is answered; see `until_answered`."""

        async def attempt(seconds: float) -> _Response:
            with self.translating(own_deadline=True):
                return await method(request, timeout=seconds)

        return await until_answered(self.policy, attempt, give_up_after)

    def appender(self, start: WriterStart, on_over: Callable[[GenerationOver], None]) -> Appender:
        """Make a writer's way to the bridge. `start` says who it is, without a number."""
        return Appender(self._appends, self.policy, start, on_over)

    def subscribe(self, request: SubscribeRequest, transport: str = "", *, silence_timeout: float = 45.0) -> Reading:
        """Read a stream by a subscription on the call that all readers of the same `transport` share; see Reading.

        `transport` tells the bridge how these readers came here (see ConnectionService); empty: by gRPC. Groups can't
        be read so. Raises ClientClosed.
        """
        if (subscriptions := self._subscriptions.get(transport)) is None:
            metadata = ((_TRANSPORT_KEY, transport),) if transport else None
            subscriptions = self._subscriptions[transport] = Shared(
                lambda: SubscribeCall(lambda: self._subscribe_many(metadata=metadata)), "subscribe"
            )
        return Reading(subscriptions, request, silence_timeout)
