"""Health and reflection, as probes, load balancers and tools use them."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.calls import PATIENCE_SECONDS
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

SERVICES = [
    "",
    "llmbridge.v1.BridgeService",
    "llmbridge.v1.StreamAdminService",
    "llmbridge.v1.GroupService",
    "llmbridge.v1.LifecycleService",
    "llmbridge.v1.ConnectionService",
]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN_SERVICE = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def health(bridge: RunningBridge) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(bridge.channel)


async def next_status(watch: Any) -> int:
    async with asyncio.timeout(PATIENCE_SECONDS):
        status: int = (await watch.read()).status
        return status


@pytest.mark.parametrize("service", SERVICES)
async def test_check(bridge: RunningBridge, service: str) -> None:
    # Right after the start: what is announced as listening is ready to serve.
    assert (await health(bridge).Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING


async def test_check_of_a_service_that_is_not_here(bridge: RunningBridge) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await health(bridge).Check(health_pb2.HealthCheckRequest(service="llmbridge.v1.Nothing"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_sees_redis_go_and_come_for_every_service(own_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(own_redis.url, key_prefix=key_prefix, redis_timeout_ms=10_000) as bridge:
        watches = [health(bridge).Watch(health_pb2.HealthCheckRequest(service=service)) for service in SERVICES]
        nothing = health(bridge).Watch(health_pb2.HealthCheckRequest(service="nothing"))
        assert [await next_status(watch) for watch in watches] == [SERVING] * len(SERVICES)
        assert await next_status(nothing) == UNKNOWN_SERVICE
        own_redis.kill()
        assert [await next_status(watch) for watch in watches] == [NOT_SERVING] * len(SERVICES)
        for service in SERVICES:
            assert (await health(bridge).Check(health_pb2.HealthCheckRequest(service=service))).status == NOT_SERVING
        own_redis.start()
        assert [await next_status(watch) for watch in watches] == [SERVING] * len(SERVICES)
        for watch in (*watches, nothing):
            watch.cancel()


async def test_watch_sees_the_bridge_drain(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix) as bridge:
        watches = [health(bridge).Watch(health_pb2.HealthCheckRequest(service=service)) for service in SERVICES]
        assert [await next_status(watch) for watch in watches] == [SERVING] * len(SERVICES)
        bridge.stop.set()
        assert [await next_status(watch) for watch in watches] == [NOT_SERVING] * len(SERVICES)


async def ask(bridge: RunningBridge, **question: str) -> reflection_pb2.ServerReflectionResponse:
    talk = reflection_pb2_grpc.ServerReflectionStub(bridge.channel).ServerReflectionInfo()
    await talk.write(reflection_pb2.ServerReflectionRequest(**question))
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer: reflection_pb2.ServerReflectionResponse = await talk.read()
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
    return answer


async def test_reflection_lists_the_services(bridge: RunningBridge) -> None:
    listed = {service.name for service in (await ask(bridge, list_services="")).list_services_response.service}
    assert listed == {*SERVICES[1:], "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_reflection_describes_the_methods(bridge: RunningBridge) -> None:
    answer = await ask(bridge, file_containing_symbol="llmbridge.v1.BridgeService")
    files = [FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_response.file_descriptor_proto]
    [service] = [service for file in files for service in file.service if service.name == "BridgeService"]
    names = {method.name for method in service.method}
    assert names == {"Produce", "Subscribe", "ProduceMany", "SubscribeMany", "Cancel", "KeepAlive"}


async def test_reflection_of_what_is_not_here(bridge: RunningBridge) -> None:
    answer = await ask(bridge, file_containing_symbol="llmbridge.v1.Nothing")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
