"""The client: one channel, and on it writers, readers and everything else that the bridge offers.

Wires the parts together; what they promise is told in their own modules.
"""

from types import TracebackType
from typing import Self, Unpack

from grpc_health.v1 import health_pb2

from llmbridge.client.adapters import Source, pipe, records_of
from llmbridge.client.admin import StreamAdmin
from llmbridge.client.connection import DEFAULT_LINGER, Connection
from llmbridge.client.connection_admin import ConnectionAdmin
from llmbridge.client.groups import GroupAdmin
from llmbridge.client.reader import Subscription, SubscriptionOptions
from llmbridge.client.retry import RetryPolicy
from llmbridge.client.takeover import Takeover, take_over
from llmbridge.client.values import Position, stream_name, stream_ref
from llmbridge.client.watch import Watch
from llmbridge.client.writer import Writer, WriterOptions
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import CancelRequest, CancelResponse
from llmbridge.v1.token_pb2 import Completion

_DEFAULT_RETRY = RetryPolicy()
# Shorter than for writers in general: what generates here is known to cost, and to be stoppable.
_PIPE_KEEP_ALIVE_INTERVAL = 0.5


class Client:
    """A connection to the bridge, as an async context manager. Make one per process and event loop, and share it.

    All its writers share one call and all its readers another, on one channel, which is kept alive: a dead peer is
    noticed within 9 s.

    `address` is `host:port`, several `ip:port` divided by commas (the first that answers is used, the next when it is
    gone), or a target in grpc's syntax. Nothing is sent before the first call. `linger`, in seconds, is how far apart
    the messages with several writers' appends are; a writer who is alone never waits.

    A stream is named by a StreamName or by its session, model and response ids. Everything that talks to the bridge
    raises ClientError (see `errors`), and ClientClosed once the block is left.
    """

    def __init__(
        self, address: str = "127.0.0.1:50051", *, retry: RetryPolicy = _DEFAULT_RETRY, linger: float = DEFAULT_LINGER
    ) -> None:
        self.address = address
        self.retry = retry
        self.linger = linger
        self._open_connection: Connection | None = None

    async def __aenter__(self) -> Self:
        if self._open_connection is not None:
            raise RuntimeError("a client is for one `async with` block")
        self._open_connection = Connection(self.address, self.retry, self.linger)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._connection.close()

    @property
    def _connection(self) -> Connection:
        if self._open_connection is None:
            raise RuntimeError("a client works only inside its `async with` block")
        return self._open_connection

    @property
    def streams(self) -> StreamAdmin:
        """Create, inspect, list, trim and delete streams."""
        return StreamAdmin(self._connection)

    @property
    def groups(self) -> GroupAdmin:
        """Settle deliveries to groups, look at groups, see to dead letters."""
        return GroupAdmin(self._connection)

    @property
    def connections(self) -> ConnectionAdmin:
        """List, count and end the connections of the bridge process."""
        return ConnectionAdmin(self._connection)

    def write(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        producer_epoch: int = 0,
        **options: Unpack[WriterOptions],
    ) -> Writer:
        """Make a writer for one response, to be used with `async with`; see Writer and WriterOptions."""
        name = stream_name(stream, model_id, response_id)
        return Writer(self._connection, name, producer_epoch=producer_epoch, **options)

    async def takeover(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        position: Position = Position.BEGINNING,
        **options: Unpack[WriterOptions],
    ) -> Takeover:
        """Go on with a dead producer's text: read what there is, and make a writer that fences it off; see Takeover.

        `position` EARLIEST accepts that the beginning was trimmed away. Raises StreamNotFound; StreamCompleted if the
        stream has its end; HistoryLost; Unavailable when the retry policy gave up.
        """
        name = stream_name(stream, model_id, response_id)
        return await take_over(self._connection, name, position, **options)

    async def pipe(
        self,
        source: Source,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        producer_epoch: int = 0,
        **options: Unpack[WriterOptions],
    ) -> Completion:
        """Write the whole of an SDK's stream, or of an async iterator of strings, as one response; see `adapters.pipe`.

        Returns the completion when it is stored. The source is closed, at which a model stops generating, when the
        stream is cancelled or taken over: at once, or before anything was stored within `keep_alive_interval`, which is
        0.5 s here if not given.
        """
        options.setdefault("keep_alive_interval", _PIPE_KEEP_ALIVE_INTERVAL)
        async with (
            records_of(source) as records,
            self.write(stream, model_id, response_id, producer_epoch=producer_epoch, **options) as writer,
        ):
            return await pipe(records, writer)

    def subscribe(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        **options: Unpack[SubscriptionOptions],
    ) -> Subscription:
        """Read a stream, to be used with `async for`; see Subscription and SubscriptionOptions."""
        return Subscription(self._connection, stream_name(stream, model_id, response_id), **options)

    def watch(
        self,
        group: str = "",
        *,
        consumer: str = "",
        max_outstanding_events: int = 0,
        ack_deadline_ms: int = 0,
        max_deliveries: int = 0,
        retry_for: float | None = None,
        silence_timeout: float = 45.0,
    ) -> Watch:
        """Watch streams begin and end as a member of a group, to be used with `async for`; see Watch.

        Where empty or 0: the bridge's default group, a random name, 100 events, and the group's deadline and maximum as
        they are. `retry_for` and `silence_timeout` as with `subscribe`.
        """
        return Watch(
            self._connection,
            group=group,
            consumer=consumer,
            max_outstanding_events=max_outstanding_events,
            ack_deadline_ms=ack_deadline_ms,
            max_deliveries=max_deliveries,
            retry_for=retry_for,
            silence_timeout=silence_timeout,
        )

    async def cancel(
        self, stream: StreamName | str, model_id: str = "", response_id: str = "", *, reason: str = ""
    ) -> CancelResponse:
        """Stop a generation: when this returns the stream is sealed; the answer says how, and by whom. Idempotent."""
        request = CancelRequest(stream=stream_ref(stream_name(stream, model_id, response_id)), reason=reason)
        return await self._connection.unary(self._connection.bridge.Cancel, request)

    async def is_serving(self, service: str = "") -> bool:
        """Ask the bridge for its health, or one service's; False while it can't reach Redis or is draining.

        Asks once. Raises Unavailable if there is no answer, BridgeFailure if the service is not known.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        with self._connection.translating(own_deadline=True):
            answer = await self._connection.health.Check(request, timeout=self.retry.attempt_timeout)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
