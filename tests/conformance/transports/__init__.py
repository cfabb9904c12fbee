"""Every transport that the cases are run over: to add one, write its module and name it here."""

from collections.abc import Callable, Mapping

from tests.conformance.target import Instance
from tests.conformance.transport import Transport
from tests.conformance.transports.grpc_many import GrpcManyTransport
from tests.conformance.transports.grpc_stubs import GrpcTransport
from tests.conformance.transports.sse import SseTransport
from tests.conformance.transports.websocket import WebSocketTransport

TRANSPORTS: Mapping[str, Callable[[Instance], Transport]] = {
    "grpc": GrpcTransport,
    "grpc_many": GrpcManyTransport,
    "sse": SseTransport,
    "websocket": WebSocketTransport,
}
