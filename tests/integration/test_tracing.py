"""Tracing: the standard interceptor's spans arrive at a real OTLP collector, and calls work as without it."""

import asyncio
import logging
import queue
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmbridge.telemetry.tracing import TracingNotInstalled, tracing
from llmbridge.v1.bridge_service_pb2 import ProduceRequest, SubscribeRequest
from llmbridge.v1.token_pb2 import Token
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, attached, failure, produce, ref, until
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

EXTRA = "the extra 'tracing' is not installed"
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason=EXTRA)
pytest.importorskip("opentelemetry.instrumentation.grpc", reason=EXTRA)
collector_pb2 = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason=EXTRA)
collector_grpc = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc", reason=EXTRA)

STREAM = ref("r")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE_PARENT = (("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01"),)


class Collector:
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.server = grpc.server(ThreadPoolExecutor(2))
        collector_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract names it
        self.received.put(request)
        return collector_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, Any]:
        """All spans received so far, by their method's name; and what made them."""
        found: dict[str, Any] = {}
        while not self.received.empty():
            for resource_spans in self.received.get().resource_spans:
                [self.service] = [
                    a.value.string_value for a in resource_spans.resource.attributes if a.key == "service.name"
                ]
                for scope in resource_spans.scope_spans:
                    found |= {span.name.rsplit("/", 1)[1]: span for span in scope.spans}
        return found


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    yield collector
    collector.server.stop(None).wait()


@pytest.fixture
async def traced(collector: Collector, shared_redis: RedisProcess, key_prefix: str) -> AsyncIterator[RunningBridge]:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix) as running:
        yield running


async def end(bridge: RunningBridge) -> None:
    """End the bridge, which sends the spans that were not sent yet."""
    bridge.stop.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.wait([bridge.ended])


async def test_spans_arrive_and_continue_the_callers_trace(traced: RunningBridge, collector: Collector) -> None:
    request = ProduceRequest(stream=STREAM, tokens=[Token(text="a")], first_sequence=1, completion=STOP)
    await traced.bridge.Produce(request, metadata=TRACE_PARENT)
    call = traced.bridge.Subscribe(SubscribeRequest(stream=STREAM), metadata=TRACE_PARENT)
    assert (await Received().read(call)).text == "a"
    await end(traced)
    spans = collector.spans()
    assert set(spans) == {"Produce", "Subscribe"}
    assert collector.service == "llmbridge"
    for span in spans.values():
        assert span.trace_id.hex() == TRACE_ID
        assert span.parent_span_id.hex() == "b7ad6b7169203331"
        assert span.end_time_unix_nano > span.start_time_unix_nano


async def test_failed_calls_say_so_as_without_tracing(traced: RunningBridge, collector: Collector) -> None:
    failed = await failure(produce(traced.bridge, STREAM, "a", first=5))
    assert failed.reason == "SEQUENCE_GAP"
    await produce(traced.bridge, STREAM, "a", first=1)
    bad = traced.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor="1-1-00000000"))
    failed = await failure(Received().read(bad))
    assert failed.reason == "RESTARTED"
    assert failed.metadata["earliest_cursor"]
    await end(traced)
    spans = collector.spans()
    codes = {a.key: a.value.int_value for a in spans["Subscribe"].attributes}
    assert codes["rpc.grpc.status_code"] == grpc.StatusCode.OUT_OF_RANGE.value[0]


async def test_streams_live_as_without_tracing(traced: RunningBridge, caplog: pytest.LogCaptureFixture) -> None:
    watch = health_pb2_grpc.HealthStub(traced.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    gone = await attached(traced.bridge, SubscribeRequest(stream=ref("other")))
    call = await attached(traced.bridge, SubscribeRequest(stream=STREAM))
    for i in range(1, 20):
        await produce(traced.bridge, STREAM, f"{i} ", first=i)
    received = await Received().read(call, through=19)
    gone.cancel()
    await until(lambda: traced.core._fanout.tails == 1)
    traced.stop.set()
    drained = await failure(received.read(call))
    assert (drained.reason, drained.trailers["llmbridge-cursor"]) == ("DRAINING", received.cursor)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await end(traced)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_service_can_be_named(
    collector: Collector, shared_redis: RedisProcess, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "tokens")
    async with running_bridge(shared_redis.url, key_prefix=key_prefix) as bridge:
        await produce(bridge.bridge, STREAM, "a", first=1)
    assert "Produce" in collector.spans()
    assert collector.service == "tokens"


async def test_a_collector_that_is_away_harms_nothing(
    shared_redis: RedisProcess, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with running_bridge(shared_redis.url, key_prefix=key_prefix) as bridge:
        took = []
        for i in range(1, 50):
            began = time.monotonic()
            await produce(bridge.bridge, STREAM, "a", first=i)
            took.append(time.monotonic() - began)
        # The median, since a busy machine may hold up one of them for as long as the exporter waits.
        assert sorted(took)[len(took) // 2] < 0.5


def test_nothing_is_loaded_when_it_is_off() -> None:
    program = (
        "import sys, llmbridge.server.bridge\n"
        "from llmbridge.telemetry.tracing import tracing\n"
        "with tracing('') as interceptors: assert interceptors == ()\n"
        # The Redis library itself loads OpenTelemetry's API where it finds it.
        "parts = ('opentelemetry.exporter', 'opentelemetry.instrumentation', 'opentelemetry.sdk.trace.export')\n"
        "assert not [name for name in sys.modules if name.startswith(parts)]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=3 * PATIENCE_SECONDS)


def test_without_the_extra_the_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(TracingNotInstalled, match=r"OTEL_EXPORTER_OTLP_ENDPOINT.*pip install"), tracing("http://x"):
        pass
