"""The other workers of this instance, each asked at its private socket for what only it knows or can do.

The service they serve each other is no part of the contract: same release on both sides, and messages of the contract
where they fit. Knows nothing of processes; who is not there has nothing to tell.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from llmbridge.errors import ConnectionNotFound, WorkerUnavailable
from llmbridge.hub.serials import worker_of
from llmbridge.log.together import all_of
from llmbridge.rpc.methods import Methods
from llmbridge.rpc.own_connections import OwnConnections
from llmbridge.v1 import connection_service_pb2 as pb

SERVICE = "llmbridge.internal.v1.WorkerService"

ANSWER_SECONDS = 1.0
"""A worker that does not answer for so long hangs: it answers out of its memory."""

END_SECONDS = 5.0
"""How long a worker may take to end a connection, which may have to give something back in Redis."""

_OPTIONS = (
    # Each of these calls is answered anew by whoever asks.
    ("grpc.enable_retries", 0),
    # A count names every session.
    ("grpc.max_receive_message_length", -1),
    # A worker that was restarted is asked again soon.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 200),
)

_Response = TypeVar("_Response", bound=Message)

Report = Mapping[str, Any]
"""What a worker tells of itself: names, and texts, numbers (as float) or truths."""

logger = logging.getLogger(__name__)


class Siblings:
    """The other workers, by number. `open` must be entered before they are asked."""

    def __init__(self, sockets: Mapping[int, str]) -> None:
        self._sockets = sockets
        self._channels: dict[int, grpc.aio.Channel] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Have a channel to each while the context lasts; nothing is sent before the first question."""
        self._channels = {
            worker: grpc.aio.insecure_channel(socket, options=_OPTIONS) for worker, socket in self._sockets.items()
        }
        try:
            yield
        finally:
            channels, self._channels = self._channels, {}
            for channel in channels.values():
                await channel.close()

    async def pages(self, request: pb.ListConnectionsRequest) -> list[pb.ListConnectionsResponse]:
        """Ask for the page of each; without those that do not answer."""
        answers = await self._ask_all("ListConnections", request, pb.ListConnectionsResponse)
        return [answer for answer in answers.values() if answer is not None]

    async def count(self) -> list[pb.CountConnectionsResponse]:
        """Ask for the counts of each, every session named; without those that do not answer."""
        answers = await self._ask_all("CountConnections", pb.CountConnectionsRequest(), pb.CountConnectionsResponse)
        return [answer for answer in answers.values() if answer is not None]

    async def disconnect(self, connection_id: str) -> None:
        """Have the worker that a connection is at end it.

        Raises ConnectionNotFound where there is none, or its worker is no more; WorkerUnavailable where that hangs.
        """
        worker = worker_of(connection_id)
        channel = None if worker is None else self._channels.get(worker)
        if worker is None or channel is None:
            raise ConnectionNotFound(connection_id)
        try:
            await self._ask(
                channel,
                "DisconnectConnection",
                pb.DisconnectConnectionRequest(connection_id=connection_id),
                pb.DisconnectConnectionResponse,
                END_SECONDS,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                raise ConnectionNotFound(connection_id) from None
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise WorkerUnavailable(worker) from None
            raise

    async def reports(self) -> dict[int, Report | None]:
        """Ask each what it tells of itself; None for one that does not answer."""
        answers = await self._ask_all("Report", Empty(), Struct)
        return {
            worker: None if answer is None else MessageToDict(answer, preserving_proto_field_name=True)
            for worker, answer in answers.items()
        }

    async def _ask_all(
        self, method: str, request: Message, response_type: type[_Response]
    ) -> dict[int, _Response | None]:
        async def answer_of(worker: int, channel: grpc.aio.Channel) -> _Response | None:
            try:
                return await self._ask(channel, method, request, response_type)
            except grpc.aio.AioRpcError as error:
                # One that is gone, or about to go, has nothing to tell; of one that hangs the operator should know.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    logger.warning("worker %d does not answer %s: %s", worker, method, error.details())
                return None

        workers = list(self._channels.items())
        answers = await all_of(answer_of(worker, channel) for worker, channel in workers)
        return {worker: answer for (worker, _), answer in zip(workers, answers, strict=True)}

    async def _ask(
        self,
        channel: grpc.aio.Channel,
        method: str,
        request: Message,
        response_type: type[_Response],
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> _Response:
        ask: Any = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response_type.FromString,
        )
        answer: _Response = await ask(request, timeout=timeout_seconds)
        return answer


def register_for_siblings(
    server: grpc.aio.Server, methods: Methods, connections: OwnConnections, report: Callable[[], Report]
) -> None:
    """Serve what siblings ask: each method answers for this worker alone."""

    async def listed(request: pb.ListConnectionsRequest) -> Message:
        return connections.list(request)

    async def counted(_: pb.CountConnectionsRequest) -> Message:
        return connections.count()

    async def disconnect(request: pb.DisconnectConnectionRequest) -> Message:
        await connections.disconnect(request.connection_id)
        return pb.DisconnectConnectionResponse()

    async def told(_: Empty) -> Message:
        answer = Struct()
        answer.update(dict(report()))
        return answer

    handlers = {
        "ListConnections": methods.unary(pb.ListConnectionsRequest, listed),
        "CountConnections": methods.unary(pb.CountConnectionsRequest, counted),
        "DisconnectConnection": methods.unary(pb.DisconnectConnectionRequest, disconnect),
        "Report": methods.unary(Empty, told),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
