"""How the gateway is, as older dashboards ask: `/streams/health` and `/streams/metrics`, with and without `/api`.

Tells what can be known here and now: what the gateways of all workers counted since they started, and what the bridge
answers.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from grpc_health.v1 import health_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmbridge.client.errors import ClientError
from llmbridge.gateway.calls import ask
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.instance import Report
from llmbridge.gateway.operations import Operation
from llmbridge.gateway.responses import PREFIXES
from llmbridge.v1.connection_service_pb2 import CountConnectionsRequest, CountConnectionsResponse

__all__ = ["operations"]

HEALTHY, DEGRADED, UNHEALTHY = "healthy", "degraded", "unhealthy"
_STATUSES = (HEALTHY, DEGRADED, UNHEALTHY)

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_STATUS = {"type": "string", "enum": list(_STATUSES)}
_HEALTH = {
    "type": "object",
    "properties": {
        "status": _STATUS,
        "timestamp": {"type": "string", "format": "date-time"},
        "checks": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"status": _STATUS, "message": _TEXT, "details": {"type": "object"}},
                "required": ["status", "message", "details"],
            },
        },
        "summary": {
            "type": "object",
            "properties": dict.fromkeys(("total", *_STATUSES), _COUNT),
            "required": ["total", *_STATUSES],
        },
    },
    "required": ["status", "timestamp", "checks", "summary"],
}
_METRICS = {
    "type": "object",
    "properties": {
        "messageCount": {**_COUNT, "description": "Tokens stored through this gateway since its workers started."},
        "errorCount": {**_COUNT, "description": "Requests to store something that failed."},
        "errorRate": {"type": "number", "description": "The part of those requests that failed, from 0 to 1."},
        "averageLatency": {
            "type": ["number", "null"],
            "description": "How long those that succeeded took, in ms; null when there were none.",
        },
        "connections": {
            "type": "object",
            "description": "Of the bridge with all its workers: all that are attached, readers, and their sessions.",
            "properties": dict.fromkeys(("totalConnections", "activeConnections", "sessionCount"), _COUNT),
            "required": ["totalConnections", "activeConnections", "sessionCount"],
        },
    },
    "required": ["messageCount", "errorCount", "errorRate", "averageLatency", "connections"],
}


def operations(gateway: Gateway) -> list[Operation]:
    """Make the endpoints."""
    endpoints = _Endpoints(gateway)
    described = (
        ("health", endpoints.health, _HEALTH, "Tells how the gateway and its bridge are; 503 when unhealthy."),
        ("metrics", endpoints.metrics, _METRICS, "Tells what went through this gateway, by all its workers."),
    )
    return [
        Operation(
            name=f"Streams_{name}{prefix.replace('/', '_')}",
            tag="Older addresses",
            verb="GET",
            path=f"{prefix}/streams/{name}",
            description=description,
            parameters=(),
            body=None,
            answer=answer,
            messages=(),
            endpoint=serve,
            also=(503,) if name == "health" else (),
        )
        for prefix in PREFIXES
        for name, serve, answer, description in described
    ]


class _Endpoints:
    """The endpoints of one gateway. Like any health check they are open to everybody, and name nobody."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._link = gateway.link
        self._instance = gateway.instance

    async def health(self, _: Request) -> Response:
        """Tell the checks and what they come to."""
        # At once: where a worker hangs, each of these waits a moment for it.
        async with asyncio.TaskGroup() as asking:
            bridge = asking.create_task(self._bridge(), name="health of the bridge")
            connections = asking.create_task(self._connections(), name="count of connections")
            reported = asking.create_task(self._instance.reports(), name="reports of workers")
        reports = reported.result()
        checks = {
            "bridge": bridge.result(),
            "connections": connections.result(),
            "gateway": self._gateways(reports),
        }
        if self._instance.workers > 1:
            checks["workers"] = self._workers(reports)
        statuses = [check["status"] for check in checks.values()]
        status = max(statuses, key=_STATUSES.index)
        body = {
            "status": status,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "checks": checks,
            "summary": {"total": len(statuses), **{one: statuses.count(one) for one in _STATUSES}},
        }
        return JSONResponse(body, status_code=503 if status == UNHEALTHY else 200)

    async def metrics(self, _: Request) -> Response:
        """Tell the numbers. Raises ClientError: without the bridge they can't be known."""
        found = await self._count()
        counts = await self._instance.total()
        return JSONResponse(
            {
                "messageCount": counts.tokens,
                "errorCount": counts.errors,
                "errorRate": counts.error_rate,
                "averageLatency": counts.average_latency_ms,
                "connections": {
                    "totalConnections": found.total,
                    "activeConnections": found.total - found.members,
                    "sessionCount": found.session_count,
                },
            }
        )

    async def _bridge(self) -> dict[str, Any]:
        try:
            answer = await ask(self._link, self._link.health.Check, health_pb2.HealthCheckRequest())
        except ClientError as error:
            return _check(UNHEALTHY, f"the bridge does not answer: {error.message}")
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            return _check(UNHEALTHY, "the bridge can't serve: Redis is away, or it is shutting down")
        return _check(HEALTHY, "the bridge serves")

    async def _connections(self) -> dict[str, Any]:
        try:
            found = await self._count()
        except ClientError as error:
            return _check(UNHEALTHY, f"the bridge does not answer: {error.message}")
        details = {"total": found.total, "members": found.members, "sessions": found.session_count}
        return _check(HEALTHY, f"{found.total} connections at the bridge", details)

    def _gateways(self, reports: Sequence[Report]) -> dict[str, Any]:
        maximum = self._gateway.options.max_chats
        details = {
            "reads": sum(report.reads for report in reports),
            "chats": sum(report.chats for report in reports),
            "maxChats": maximum * self._instance.workers,
        }
        if self._link.draining:
            return _check(UNHEALTHY, "the gateway is shutting down", details)
        # Each worker has its own limit, and refuses the chats above it.
        if any(report.chats >= maximum for report in reports):
            return _check(DEGRADED, "as many answers of the upstream are under way as may be", details)
        return _check(HEALTHY, "the gateway serves", details)

    def _workers(self, reports: Sequence[Report]) -> dict[str, Any]:
        wanted = self._instance.workers
        serving = sum(report.serving for report in reports)
        details = {
            "total": wanted,
            "serving": serving,
            "each": [
                {
                    "worker": report.worker,
                    "serving": report.serving,
                    "connections": report.connections,
                    "residentBytes": report.resident_bytes,
                }
                for report in reports
            ],
        }
        return _check(HEALTHY if serving == wanted else DEGRADED, f"{serving} of {wanted} workers serve", details)

    async def _count(self) -> CountConnectionsResponse:
        return await ask(self._link, self._link.connections.CountConnections, CountConnectionsRequest(max_sessions=1))


def _check(status: str, message: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"status": status, "message": message, "details": dict(details or {})}
