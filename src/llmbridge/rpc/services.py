"""Which function serves which method, and what else the server offers: health and reflection."""

from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2

from llmbridge.admin.streams import Streams
from llmbridge.groups.dead_letters import DeadLetters
from llmbridge.groups.members import Members
from llmbridge.groups.overview import Overview
from llmbridge.groups.settling import Settling
from llmbridge.groups.watchers import Watchers
from llmbridge.hub.connections import Connections
from llmbridge.produce.append import Produce
from llmbridge.produce.many import ProduceMany
from llmbridge.produce.stop import Stop
from llmbridge.rpc.connections import ConnectionMethods
from llmbridge.rpc.groups import GroupMethods
from llmbridge.rpc.health import Health, register_health
from llmbridge.rpc.lifecycle import WatchStreamsMethod
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.methods import Methods
from llmbridge.rpc.own_connections import OwnConnections
from llmbridge.rpc.produce import ProduceMethod
from llmbridge.rpc.produce_many import ProduceManyMethod
from llmbridge.rpc.reflection import register_reflection
from llmbridge.rpc.siblings import Siblings
from llmbridge.rpc.stop import CancelMethod, KeepAliveMethod
from llmbridge.rpc.streams import StreamAdminMethods
from llmbridge.rpc.subscribe import SubscribeMethod
from llmbridge.rpc.subscribe_many import SubscribeManyMethod
from llmbridge.subscribe.subscriptions import Subscriptions
from llmbridge.v1 import bridge_service_pb2 as bridge_pb
from llmbridge.v1 import connection_service_pb2 as connection_pb
from llmbridge.v1 import group_service_pb2 as group_pb
from llmbridge.v1 import lifecycle_service_pb2 as lifecycle_pb
from llmbridge.v1 import stream_admin_service_pb2 as admin_pb

BRIDGE_SERVICE = bridge_pb.DESCRIPTOR.services_by_name["BridgeService"].full_name
STREAM_ADMIN_SERVICE = admin_pb.DESCRIPTOR.services_by_name["StreamAdminService"].full_name
GROUP_SERVICE = group_pb.DESCRIPTOR.services_by_name["GroupService"].full_name
LIFECYCLE_SERVICE = lifecycle_pb.DESCRIPTOR.services_by_name["LifecycleService"].full_name
CONNECTION_SERVICE = connection_pb.DESCRIPTOR.services_by_name["ConnectionService"].full_name
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVICES = (BRIDGE_SERVICE, STREAM_ADMIN_SERVICE, GROUP_SERVICE, LIFECYCLE_SERVICE, CONNECTION_SERVICE)


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the methods call."""

    produce: Produce
    produce_many: ProduceMany
    stop: Stop
    subscriptions: Subscriptions
    members: Members
    watchers: Watchers
    settling: Settling
    groups: Overview
    dead_letters: DeadLetters
    streams: Streams
    connections: Connections


def register_services(
    server: grpc.aio.Server,
    use_cases: UseCases,
    siblings: Siblings,
    methods: Methods,
    health: Health,
    limits: Limits,
    producer_lost_ms: int,
) -> None:
    """Register everything that the bridge serves."""
    admin = StreamAdminMethods(use_cases.streams, limits)
    groups = GroupMethods(use_cases.settling, use_cases.groups, use_cases.dead_letters, limits)
    connections = ConnectionMethods(OwnConnections(use_cases.connections), siblings, limits)
    services = {
        BRIDGE_SERVICE: {
            "Produce": methods.unary(bridge_pb.ProduceRequest, ProduceMethod(use_cases.produce, limits)),
            "Subscribe": methods.server_stream(
                bridge_pb.SubscribeRequest, SubscribeMethod(use_cases.subscriptions, use_cases.members, limits)
            ),
            "ProduceMany": methods.bidi(ProduceManyMethod(use_cases.produce_many, limits)),
            "SubscribeMany": methods.bidi(SubscribeManyMethod(use_cases.subscriptions, limits)),
            "Cancel": methods.unary(bridge_pb.CancelRequest, CancelMethod(use_cases.stop, limits)),
            "KeepAlive": methods.unary(
                bridge_pb.KeepAliveRequest, KeepAliveMethod(use_cases.stop, limits, producer_lost_ms)
            ),
        },
        STREAM_ADMIN_SERVICE: {
            "CreateStream": methods.unary(admin_pb.CreateStreamRequest, admin.create),
            "GetStream": methods.unary(admin_pb.GetStreamRequest, admin.get),
            "ListStreams": methods.unary(admin_pb.ListStreamsRequest, admin.list),
            "TrimStream": methods.unary(admin_pb.TrimStreamRequest, admin.trim),
            "DeleteStream": methods.unary(admin_pb.DeleteStreamRequest, admin.delete),
        },
        GROUP_SERVICE: {
            "Acknowledge": methods.unary(group_pb.AcknowledgeRequest, groups.acknowledge),
            "ExtendDeadline": methods.unary(group_pb.ExtendDeadlineRequest, groups.extend_deadline),
            "Reject": methods.unary(group_pb.RejectRequest, groups.reject),
            "GetGroup": methods.unary(group_pb.GetGroupRequest, groups.get),
            "ListGroups": methods.unary(group_pb.ListGroupsRequest, groups.list),
            "ListConsumers": methods.unary(group_pb.ListConsumersRequest, groups.list_consumers),
            "DeleteGroup": methods.unary(group_pb.DeleteGroupRequest, groups.delete),
            "ListDeadLetters": methods.unary(group_pb.ListDeadLettersRequest, groups.list_dead_letters),
            "RedriveDeadLetters": methods.unary(group_pb.RedriveDeadLettersRequest, groups.redrive_dead_letters),
            "DeleteDeadLetters": methods.unary(group_pb.DeleteDeadLettersRequest, groups.delete_dead_letters),
        },
        LIFECYCLE_SERVICE: {
            "WatchStreams": methods.server_stream(
                lifecycle_pb.WatchStreamsRequest, WatchStreamsMethod(use_cases.watchers, limits)
            ),
        },
        CONNECTION_SERVICE: {
            "ListConnections": methods.unary(connection_pb.ListConnectionsRequest, connections.list),
            "CountConnections": methods.unary(connection_pb.CountConnectionsRequest, connections.count),
            "DisconnectConnection": methods.unary(connection_pb.DisconnectConnectionRequest, connections.disconnect),
        },
    }
    for service, handlers in services.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    register_health(server, health)
    register_reflection(server, (*SERVICES, HEALTH_SERVICE))
