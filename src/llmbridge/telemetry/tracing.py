"""OpenTelemetry spans of every call, by the standard gRPC interceptor, when an OTLP endpoint is configured.

Nothing of OpenTelemetry is imported, and no interceptor is installed, when it is not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SERVICE_NAME = "llmbridge"


class TracingNotInstalled(Exception):
    """OTEL_EXPORTER_OTLP_ENDPOINT is set, but the extra is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: "
            "pip install 'llmbridge[tracing]', or unset it"
        )


@contextmanager
def tracing(otlp_endpoint: str) -> Iterator[Sequence[Any]]:
    """Give the gRPC server interceptors to install, and flush their spans in the end. Raises TracingNotInstalled.

    The exporter reads the other OTEL_* variables itself.
    """
    if not otlp_endpoint:
        yield ()
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.grpc import aio_server_interceptor
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracingNotInstalled from None
    # What is passed to `create` would win over OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    name = OTELResourceDetector().detect().attributes.get("service.name", SERVICE_NAME)
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield (aio_server_interceptor(tracer_provider=provider),)  # type: ignore[no-untyped-call]
    finally:
        provider.shutdown()
