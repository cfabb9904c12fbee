"""A bridge in memory that fails on command: a real gRPC server, so that clients meet real connections and statuses.

It keeps the contract where the client's tests rely on it and takes shortcuts elsewhere. Faults are scripted: each call
takes the next of its method's faults; without one it serves.
"""

# ruff: noqa: N802 - the contract names the methods
import asyncio
import random
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Self, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from llmbridge.v1 import bridge_service_pb2 as bridge_pb2
from llmbridge.v1 import stream_pb2, token_pb2
from llmbridge.v1.bridge_service_pb2_grpc import BridgeServiceServicer, add_BridgeServiceServicer_to_server
from llmbridge.v1.connection_service_pb2_grpc import add_ConnectionServiceServicer_to_server
from llmbridge.v1.group_service_pb2_grpc import add_GroupServiceServicer_to_server
from llmbridge.v1.stream_admin_service_pb2_grpc import add_StreamAdminServiceServicer_to_server
from tests.support.fake_admin import FakeAdmin
from tests.support.fake_connections import FakeConnections
from tests.support.fake_groups import FakeGroups
from tests.support.fake_log import Key, Log, Logs, completed, fenced, key_of
from tests.support.fake_produce_many import ProducingCall
from tests.support.fake_subscribe_many import ReadingCall, SubscriptionFailed
from tests.support.faults import Context, Fault, fail, maybe_fail
from tests.support.ports import hold_port
from tests.support.tasks import no_tasks_left

KEY: Key = ("s", "m", "r")
"""The stream that tests use when one is enough."""

_Message = TypeVar("_Message")

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    # As the real bridge: clients may ping every 10 s.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class FakeBridge(BridgeServiceServicer):
    """Use as `async with FakeBridge() as bridge`; `address` stays the same over `stop` and `start`."""

    def __init__(self, *, seed: int = 0, heartbeat: float = 15.0, lost_ms: int = 120_000) -> None:
        self.heartbeat = heartbeat
        self.lost_ms = lost_ms
        self.largest_message = 8
        self.tokens_per_request = 1_024
        self.token_bytes = 65_536
        self.tells_ends = False
        """Whether writers are told without an append that their stream was cancelled or taken over."""
        self.logs = Logs()
        self.admin = FakeAdmin(self.logs, self.notify)
        self.connections = FakeConnections()
        self.groups = FakeGroups()
        self.health = health.aio.HealthServicer()
        self.produce_faults: deque[Fault] = deque()
        self.subscribe_faults: deque[Fault] = deque()
        self.cancel_faults: deque[Fault] = deque()
        self.keep_alive_faults: deque[Fault] = deque()
        self.alter_response: Callable[[bridge_pb2.SubscribeResponse], None] = lambda response: None
        self.alter_receipt: Callable[[bridge_pb2.Receipt], None] = lambda receipt: None
        self.before_produce: Callable[[], Awaitable[None]] = _nothing
        """Carried out when an append has come, before it is served."""
        self.produce_calls = 0
        self.subscribe_calls = 0
        self.transports: list[str] = []
        """Where each SubscribeMany call says that its readers come from."""
        self.produce_messages: list[bridge_pb2.ProduceManyRequest] = []
        self.subscribe_messages: list[bridge_pb2.SubscribeManyRequest] = []
        self.produced: list[bridge_pb2.ProduceRequest] = []
        """Each append, as the ProduceRequest that would be the same."""
        self.subscribed: list[bridge_pb2.SubscribeRequest] = []
        """Each subscription that began."""
        self.beats = 0
        """How many heartbeats were sent."""
        self.kept_alive: list[bridge_pb2.KeepAliveRequest] = []
        self.readers = 0
        self.endings: list[str] = []
        """How each subscription ended: `served` to its end, `failed`, or `cancelled` by the client."""
        self._port = 0
        self._held: socket.socket | None = None
        self._random = random.Random(seed)
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        add_BridgeServiceServicer_to_server(self, self._server)
        add_StreamAdminServiceServicer_to_server(self.admin, self._server)
        add_GroupServiceServicer_to_server(self.groups, self._server)
        add_ConnectionServiceServicer_to_server(self.connections, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self._server.add_insecure_port(self.address)
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self) -> None:
        """Break all connections."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    async def __aenter__(self) -> Self:
        self._held = hold_port()
        self._port = self._held.getsockname()[1]
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()
        if self._held is not None:
            self._held.close()

    @property
    def log(self) -> Log:
        """The log of the stream that tests use when one is enough."""
        return self.logs[KEY]

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that happens here makes the condition true."""
        async with asyncio.timeout(20):
            while not condition():
                await self._changed.wait()

    def append(self, *texts: str, key: Key = KEY) -> None:
        """Append text tokens without a call."""
        self.logs.get_or_create(key).tokens.extend(token_pb2.Token(text=text) for text in texts)
        self.notify()

    def seal(
        self,
        finish_reason: token_pb2.FinishReason.ValueType = token_pb2.FINISH_REASON_STOP,
        message: str = "",
        *,
        sealer: stream_pb2.Sealer.ValueType = stream_pb2.SEALER_PRODUCER,
        key: Key = KEY,
    ) -> None:
        """Append a completion without a call."""
        log = self.logs.get_or_create(key)
        log.completion = token_pb2.Completion(finish_reason=finish_reason, error_message=message)
        log.sealer = sealer
        self.notify()

    def lose_tail(self, keep: int, key: Key = KEY) -> None:
        """Go back to the first `keep` records, as a failover to a replica that lags does."""
        self.logs.lose_tail(key, keep)
        self.notify()

    async def Produce(self, request: bridge_pb2.ProduceRequest, context: Context) -> bridge_pb2.ProduceResponse:
        """The client has another way."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the client appends by ProduceMany")

    async def Subscribe(  # type: ignore[override] # writes nothing
        self, request: bridge_pb2.SubscribeRequest, context: Context
    ) -> None:
        """The client has another way."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the client reads by SubscribeMany")

    async def ProduceMany(  # type: ignore[override] # writes by itself
        self, requests: AsyncIterator[bridge_pb2.ProduceManyRequest], context: Context
    ) -> None:
        self.produce_calls += 1
        call = ProducingCall(context, self._append, self._ending_of, lambda: self._changed.wait())
        await call.serve(self._noted(requests, self.produce_messages))

    async def _append(self, request: bridge_pb2.ProduceRequest) -> bridge_pb2.Receipt | Fault:
        self.produced.append(request)
        self.notify()
        await self.before_produce()
        fault = self.produce_faults.popleft() if self.produce_faults else None
        if fault is None or fault.after_storing:
            refusal = self._check_limits(request) or self.logs.append(request)
            if refusal is not None:
                return refusal
            self.notify()
        if fault is not None and fault.hang:
            await asyncio.Event().wait()
        if fault is not None:
            return fault
        last = request.first_sequence + len(request.tokens) + request.HasField("completion") - 1
        receipt = bridge_pb2.Receipt(cursor=self.logs[key_of(request.stream)].cursor(last), last_sequence=last)
        self.alter_receipt(receipt)
        return receipt

    def _ending_of(self, writer: bridge_pb2.WriterStart) -> Fault | None:
        """How a writer is told that it can append no more, without being asked."""
        log = self.logs.get(key_of(writer.stream))
        if log is None or not self.tells_ends:
            return None
        if log.completion is not None and log.sealer != stream_pb2.SEALER_PRODUCER:
            return completed(log)
        return None if log.admits(writer.producer_epoch, writer.producer_id) else fenced(log)

    async def _noted(self, requests: AsyncIterator[_Message], messages: list[_Message]) -> AsyncIterator[_Message]:
        async for request in requests:
            messages.append(request)
            self.notify()
            yield request

    def _check_limits(self, request: bridge_pb2.ProduceRequest) -> Fault | None:
        exceeded = (
            len(request.tokens) > self.tokens_per_request
            or request.ByteSize() > 262_144
            or any(token.ByteSize() > self.token_bytes for token in request.tokens)
        )
        return Fault("LIMIT_EXCEEDED") if exceeded else None

    async def Cancel(self, request: bridge_pb2.CancelRequest, context: Context) -> bridge_pb2.CancelResponse:
        key = key_of(request.stream)
        async with maybe_fail(self.cancel_faults, context):
            log = self.logs.get_or_create(key)
            sealed_now = log.completion is None
            if sealed_now:
                cancelled = token_pb2.FINISH_REASON_CANCELLED
                self.seal(cancelled, request.reason, sealer=stream_pb2.SEALER_CANCEL, key=key)
        assert log.completion is not None
        return bridge_pb2.CancelResponse(
            cursor=log.cursor(log.last),
            last_sequence=log.last,
            finish_reason=log.completion.finish_reason,
            sealer=log.sealer,
            sealed_now=sealed_now,
        )

    async def KeepAlive(self, request: bridge_pb2.KeepAliveRequest, context: Context) -> bridge_pb2.KeepAliveResponse:
        self.kept_alive.append(request)
        self.notify()
        async with maybe_fail(self.keep_alive_faults, context):
            log = self.logs.get(key_of(request.stream))
            if log is None:
                await fail(context, Fault("STREAM_NOT_FOUND"))
            if log.completion is not None:
                await fail(context, completed(log))
            if not log.admits(request.producer_epoch, request.producer_id):
                await fail(context, fenced(log))
        return bridge_pb2.KeepAliveResponse(producer_lost_ms=self.lost_ms)

    async def SubscribeMany(  # type: ignore[override] # writes by itself
        self, requests: AsyncIterator[bridge_pb2.SubscribeManyRequest], context: Context
    ) -> None:
        self.subscribe_calls += 1
        self.transports.append(str(dict(context.invocation_metadata() or ()).get("llmbridge-transport", "")))
        call = ReadingCall(context, self._subscription, self.heartbeat, self._note_beat, self._note_ending)
        await call.serve(self._noted(requests, self.subscribe_messages))

    def _note_beat(self) -> None:
        self.beats += 1
        self.notify()

    def _note_ending(self, ending: str) -> None:
        self.readers -= 1
        self.endings.append(ending)
        self.notify()

    def _begin(self, request: bridge_pb2.SubscribeRequest) -> Fault | None:
        self.subscribed.append(request)
        self.readers += 1
        self.notify()
        return self.subscribe_faults.popleft() if self.subscribe_faults else None

    async def _subscription(self, request: bridge_pb2.SubscribeRequest) -> AsyncGenerator[bridge_pb2.SubscribeResponse]:
        fault = self._begin(request)
        async with aclosing(self._serve(request, fault)) as responses:
            async for response in responses:
                self.alter_response(response)
                yield response

    async def _serve(
        self, request: bridge_pb2.SubscribeRequest, fault: Fault | None
    ) -> AsyncGenerator[bridge_pb2.SubscribeResponse]:
        key = key_of(request.stream)
        position = self._attach(request)
        left = fault.after_records if fault is not None else 0
        if request.position == bridge_pb2.POSITION_LATEST:
            log = self.logs.get(key)
            yield bridge_pb2.SubscribeResponse(cursor=log.cursor(position) if log and position else "")
        while True:
            if fault is not None and left == 0:
                raise SubscriptionFailed(fault)
            log = self.logs.get(key)
            if log is None and position:
                raise SubscriptionFailed(Fault("EXPIRED", metadata={"earliest_cursor": ""}))
            if log is not None and log.last < position:
                earliest = {"earliest_cursor": log.cursor(log.first - 1)}
                raise SubscriptionFailed(Fault("LOST", metadata=earliest))
            if log is None or log.last <= position:
                if log is not None and log.completion is not None:
                    return
                await self._changed.wait()
                continue
            count = min(self._random.randint(1, self.largest_message), log.last - position)
            if fault is not None:
                count = min(count, left)
                left -= count
            yield _message(log, position, count)
            position += count

    def _attach(self, request: bridge_pb2.SubscribeRequest) -> int:
        """Say after which sequence the reader begins."""
        log = self.logs.get(key_of(request.stream))
        if log is None:
            if request.after_cursor:
                raise SubscriptionFailed(Fault("EXPIRED", metadata={"earliest_cursor": ""}))
            return 0
        earliest = {"earliest_cursor": log.cursor(log.first - 1)}
        if request.after_cursor:
            incarnation, _, sequence = request.after_cursor.partition("-")
            if int(incarnation) != log.incarnation:
                raise SubscriptionFailed(Fault("RESTARTED", metadata=earliest))
            position = int(sequence)
        elif request.position == bridge_pb2.POSITION_LATEST:
            return len(log.tokens)
        elif request.position == bridge_pb2.POSITION_EARLIEST:
            return log.first - 1
        else:
            position = 0
        if position + 1 < log.first:
            raise SubscriptionFailed(Fault("TRIMMED", metadata=earliest))
        return position


async def _nothing() -> None:
    pass


@asynccontextmanager
async def serving() -> AsyncIterator[FakeBridge]:
    """Run a bridge, and check afterwards that nobody left a task behind."""
    before = asyncio.all_tasks()
    async with FakeBridge() as bridge:
        yield bridge
    await no_tasks_left(before)


def _message(log: Log, position: int, count: int) -> bridge_pb2.SubscribeResponse:
    tokens = log.tokens[position : position + count]
    return bridge_pb2.SubscribeResponse(
        tokens=tokens,
        completion=log.completion if len(tokens) < count else None,
        first_sequence=position + 1,
        cursor=log.cursor(position + count),
        appended_ms=1_700_000_000_000 + position + count,
    )
