"""The whole bridge, assembled in one place: what there is, and who owns which task."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from llmbridge.admin.streams import Streams
from llmbridge.errors import RedisUnavailable
from llmbridge.groups.bells import Bells
from llmbridge.groups.dead_letters import DeadLetters
from llmbridge.groups.members import Members
from llmbridge.groups.overview import Overview
from llmbridge.groups.places import GroupPlaces
from llmbridge.groups.settling import Settling
from llmbridge.groups.watchers import Watchers
from llmbridge.hub.connections import Connections
from llmbridge.hub.fanout import Fanout
from llmbridge.log.appending import AppendLog, LogDefaults
from llmbridge.log.cluster import WrongRedis
from llmbridge.log.cluster_wakeups import channels_of
from llmbridge.log.commands import Commands
from llmbridge.log.dead_letters import DeadLetterLog
from llmbridge.log.ends import Ends
from llmbridge.log.feed import FeedLog
from llmbridge.log.group_state import GroupStates
from llmbridge.log.groups import GroupLog, GroupPolicy, GroupSettings
from llmbridge.log.keys import Keys
from llmbridge.log.open_streams import OpenStreams
from llmbridge.log.partitions import PartitionRecord
from llmbridge.log.reading import LogReader
from llmbridge.log.sealing import SealLog
from llmbridge.log.servers import ReplicaAcks, Servers
from llmbridge.log.streams import StreamLog
from llmbridge.log.watching import RedisWatch
from llmbridge.produce.append import Produce
from llmbridge.produce.lost import LostProducers
from llmbridge.produce.many import ProduceMany
from llmbridge.produce.stop import Stop
from llmbridge.rpc.deliveries import ProtoDeliveries
from llmbridge.rpc.health import Health
from llmbridge.rpc.lifecycle import ProtoFeedWire
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.methods import Gate, Methods
from llmbridge.rpc.own_connections import OwnConnections
from llmbridge.rpc.server import GrpcServer
from llmbridge.rpc.services import SERVICES, UseCases, register_services
from llmbridge.rpc.siblings import register_for_siblings
from llmbridge.rpc.wire import ProtoWire
from llmbridge.server.assignment import Place
from llmbridge.server.http import http_gateway, private_socket
from llmbridge.server.monitor import RedisMonitor
from llmbridge.server.starting import CannotStart
from llmbridge.server.worker_instance import WorkerInstance
from llmbridge.settings import Settings
from llmbridge.subscribe.subscriptions import Subscriptions
from llmbridge.telemetry.tracing import tracing

__all__ = ["REDIS_START_SECONDS", "Bridge", "CannotStart"]

REDIS_START_SECONDS = 30.0
"""How long the start waits for a Redis that is not there yet."""

NEW_GROUP = GroupSettings(ack_deadline_ms=30_000, max_deliveries=5)

logger = logging.getLogger(__name__)


class Bridge:
    """One bridge process on one Redis. `place`: which worker of its instance it is; without, it is alone.

    `tell_serving` is called whenever its health turns.
    """

    def __init__(
        self,
        settings: Settings,
        redis_url: str,
        place: Place | None = None,
        tell_serving: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._place = place
        keys = Keys(settings.key_prefix, settings.partitions)
        acks = ReplicaAcks(settings.replica_acks, settings.replica_ack_timeout_ms)
        try:
            self._servers = Servers(redis_url, settings.redis_timeout_ms / 1000, acks)
        except (ValueError, TypeError) as error:
            raise CannotStart(f"REDIS_URL: {error}") from None
        defaults = LogDefaults(settings.retention_ms, settings.stream_max_length or 0, settings.max_stream_tokens)
        wire = ProtoWire()
        self._wake_ups = channels_of(self._servers)
        self._append_log = AppendLog(self._servers, keys, defaults)
        self._commands = Commands(self._servers)
        log_reader = LogReader(self._commands)
        seal_log = SealLog(self._commands, keys, defaults)
        group_log = GroupLog(
            self._commands,
            GroupPolicy(
                NEW_GROUP,
                settings.connection_cleanup_interval,
                settings.dead_letter_retention_ms,
                settings.max_dead_letters,
            ),
        )
        group_states = GroupStates(self._commands, NEW_GROUP)
        letter_log = DeadLetterLog(self._commands, keys, NEW_GROUP.ack_deadline_ms)
        places = GroupPlaces(keys)
        bells = Bells(self._wake_ups)
        self._partition_record = PartitionRecord(self._commands, keys, settings.max_retention_ms)
        self._fanout = Fanout(log_reader, self._wake_ups, wire, settings.redis_poll_delay, settings.redis_timeout_ms)
        self._connections = Connections(
            settings.heartbeat_ms,
            settings.connection_cleanup_interval,
            settings.max_readers,
            settings.max_consumers,
            worker=place.worker if place else 0,
            instance_id=place.instance_id if place else "",
        )
        self._lost_producers = LostProducers(
            OpenStreams(self._commands, keys),
            seal_log,
            wire,
            settings.partitions,
            settings.producer_lost_ms,
            time.monotonic,
        )
        produce = Produce(self._append_log, wire)
        self._use_cases = UseCases(
            produce=produce,
            produce_many=ProduceMany(produce, self._append_log, Ends(self._wake_ups)),
            stop=Stop(seal_log, wire),
            subscriptions=Subscriptions(
                self._connections, self._fanout, log_reader, keys, wire, ProtoDeliveries(), settings.heartbeat_ms
            ),
            members=Members(
                self._connections,
                group_log,
                bells,
                self._fanout,
                log_reader,
                places,
                wire,
                settings.heartbeat_ms,
                settings.consumer_poll_timeout,
            ),
            watchers=Watchers(
                self._connections,
                group_log,
                FeedLog(self._commands),
                bells,
                places,
                ProtoFeedWire(),
                settings.heartbeat_ms,
                settings.consumer_poll_timeout,
            ),
            settling=Settling(group_log, group_states, places),
            groups=Overview(group_states, places),
            dead_letters=DeadLetters(letter_log, places, keys),
            streams=Streams(StreamLog(self._commands, keys), settings.retention_ms),
            connections=self._connections,
        )
        self._limits = Limits(
            max_request_bytes=settings.max_request_bytes,
            max_token_bytes=settings.max_token_bytes,
            max_tokens_per_request=settings.max_tokens_per_request,
            max_id_bytes=settings.max_id_bytes,
            max_retention_ms=settings.max_retention_ms,
            consumer_group=settings.consumer_group,
        )
        self._gate = Gate()
        self._health = Health(SERVICES, tell_serving)
        self._instance = WorkerInstance(place, self._health, self._connections)
        self._monitor = RedisMonitor(RedisWatch(self._commands), self._health.set_serving)

    @property
    def idle(self) -> bool:
        """Whether no call is attached or open and no stream followed."""
        return len(self._connections) == 0 and self._fanout.tails == 0 and self._use_cases.produce_many.idle

    async def run(
        self,
        stop: asyncio.Event,
        announce: Callable[[int], None],
        announce_http: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Serve until `stop` is set, then drain. `announce` gets the port as soon as calls are served.

        With an HTTP port configured, the gateway serves too, `announce_http` gets its port, and it drains first.
        Raises CannotStart, HttpCannotStart, PartitionMismatch or TracingNotInstalled.
        """
        with tracing(self._settings.otlp_endpoint) as interceptors:
            async with self._background():
                await self._wait_for_redis()
                server = GrpcServer(interceptors, shares_port=self._place is not None)
                self._register(server)
                try:
                    port = server.listen(self._settings.host, self._settings.port)
                except OSError as error:
                    raise CannotStart(f"LLMBRIDGE_HOST, LLMBRIDGE_PORT: {error}") from None
                await self._monitor.check()
                async with self._private_socket() as socket, self._instance.siblings.open():
                    if socket:
                        server.listen_privately(socket)
                    async with server.serving():
                        announce(port)
                        async with asyncio.TaskGroup() as watching:
                            monitor = watching.create_task(self._monitor.run(), name="Redis monitor")
                            drain_ms = await self._serve(stop, socket, announce_http)
                            monitor.cancel()
                        await self._drain(drain_ms)

    async def _serve(self, stop: asyncio.Event, socket: str, announce_http: Callable[[int], None]) -> float:
        """Serve until `stop` is set, and drain HTTP; returns how many ms of the drain's time are left."""
        limit_ms = self._settings.drain_timeout_ms
        if self._settings.http_port is None:
            await stop.wait()
            return limit_ms
        # What the gateway's requests still have to store, the bridge must take: it drains after them, in what is left.
        async with http_gateway(self._settings, socket, limit_ms // 2, self._instance.of_gateways) as http_port:
            announce_http(http_port)
            await stop.wait()
            clock = asyncio.get_running_loop().time
            begun = clock()
        return max(limit_ms / 2, limit_ms - (clock() - begun) * 1000)

    def _register(self, server: GrpcServer) -> None:
        methods = Methods(self._gate, self._limits)
        siblings = self._instance.siblings
        register_services(
            server.grpc,
            self._use_cases,
            siblings,
            methods,
            self._health,
            self._limits,
            self._settings.producer_lost_ms,
        )
        if self._place is not None:
            register_for_siblings(server.grpc, methods, OwnConnections(self._connections), self._instance.report)

    def _private_socket(self) -> AbstractAsyncContextManager[str]:
        """Give the address for siblings and the gateway in this process, empty where there are neither."""
        if self._place is not None:
            return nullcontext(self._place.socket)
        return nullcontext("") if self._settings.http_port is None else private_socket()

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        """Run what serves the calls, for longer than the last of them."""
        runs = {
            "servers": self._servers.run,
            "append": self._append_log.run,
            "commands": self._commands.run,
            "wake-ups": self._wake_ups.run,
            "hub": self._fanout.run,
            "connections": self._connections.run,
            "lost producers": self._lost_producers.run,
            "partition record": self._partition_record.run,
        }
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(), name=name) for name, run in runs.items()]
            yield
            for task in tasks:
                task.cancel()

    async def _wait_for_redis(self) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + REDIS_START_SECONDS
        while True:
            try:
                await self._servers.prepare()
                await self._partition_record.agree()
            except WrongRedis as error:
                raise CannotStart(f"REDIS_URL: {error}") from None
            except RedisUnavailable as error:
                if loop.time() >= give_up_at:
                    raise CannotStart(f"{error.message}. Check REDIS_URL, or REDIS_HOST and REDIS_PORT") from error
                logger.warning("waiting for Redis: %s", error)
                await asyncio.sleep(1)
            else:
                return

    async def _drain(self, timeout_ms: float) -> None:
        logger.info("draining: %d connections", len(self._connections))
        self._gate.close()
        self._connections.drain()
        self._use_cases.produce_many.drain()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._health.drain()
                await self._gate.wait_until_empty()
        except TimeoutError:
            logger.warning("LLMBRIDGE_DRAIN_TIMEOUT_MS has passed, the calls still open are cut")
