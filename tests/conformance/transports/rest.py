"""Every unary call of the contract over HTTP, by the table of docs/http.md.

The table is written down here once more on purpose: it is what pages and scripts rely on.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
from google.protobuf import symbol_database
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from llmbridge.v1.group_service_pb2 import GroupRef
from llmbridge.v1.stream_admin_service_pb2 import ListStreamsRequest
from llmbridge.v1.stream_pb2 import StreamRef
from tests.conformance.transport import CallFailed, NotOffered, Refusal
from tests.conformance.transports.events import CODES

_OF_STREAM: Mapping[str, tuple[str, str]] = {
    "Produce": ("POST", ":produce"),
    "Cancel": ("POST", ":cancel"),
    "KeepAlive": ("POST", ":keepAlive"),
    "GetStream": ("GET", ""),
    "TrimStream": ("POST", ":trim"),
    "DeleteStream": ("DELETE", ""),
}
_OF_GROUP: Mapping[str, tuple[str, str]] = {
    "Acknowledge": ("POST", ":acknowledge"),
    "ExtendDeadline": ("POST", ":extendDeadline"),
    "Reject": ("POST", ":reject"),
    "GetGroup": ("GET", ""),
    "ListConsumers": ("GET", "/consumers"),
    "DeleteGroup": ("DELETE", ""),
}
_ELSEWHERE: Mapping[str, tuple[str, str]] = {
    "CreateStream": ("POST", "/v1/streams"),
    "RedriveDeadLetters": ("POST", "/v1/deadLetters:redrive"),
    "DeleteDeadLetters": ("POST", "/v1/deadLetters:delete"),
    "ListConnections": ("GET", "/v1/connections"),
    "CountConnections": ("GET", "/v1/connections:count"),
}


class Rest:
    """The calls of one gateway."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def call(self, request: Message, timeout: float) -> Any:
        """See Transport."""
        verb, address, said = _address(request)
        fields = MessageToDict(request, preserving_proto_field_name=True)
        for name in said:
            fields.pop(name, None)
        parts = {"json": fields} if verb == "POST" else {"params": _query(fields)}
        response = await self._send(verb, address, timeout=timeout, **parts)
        name = request.DESCRIPTOR.full_name.removesuffix("Request") + "Response"
        return ParseDict(response.json(), symbol_database.Default().GetSymbol(name)())

    async def call_with_garbage(self) -> None:
        """See Transport."""
        address = f"{path_of(StreamRef(session_id='s', model_id='m', response_id='r'))}:produce"
        await self._send("POST", address, timeout=10, content=b'{"tokens": [')

    async def _send(self, verb: str, address: str, **parts: Any) -> httpx.Response:
        try:
            response = await self._http.request(verb, address, **parts)
        except httpx.TransportError as error:
            raise broken(error) from None
        if response.status_code != 200:
            raise refusal_of(response)
        return response


def path_of(stream: StreamRef) -> str:
    """Write a stream's address. Raises NotOffered for names that no address has."""
    path = f"/v1/sessions/{_part(stream.session_id)}/models/{_part(stream.model_id)}"
    return f"{path}/responses/{_part(stream.response_id)}" if stream.response_id else path


def refusal_of(response: httpx.Response) -> CallFailed:
    """Read the body of an error, which is grpc-gateway's."""
    body = response.json()
    info: dict[str, Any] = {}
    retry_ms = None
    for detail in body["details"]:
        kind = detail["@type"].removeprefix("type.googleapis.com/google.rpc.")
        if kind == "ErrorInfo":
            info = detail
            assert info["reason"].startswith("ERROR_REASON_")
        else:
            assert kind == "RetryInfo"
            retry_ms = int(float(detail["retryDelay"].removesuffix("s")) * 1_000)
            assert int(response.headers["retry-after"]) * 1_000 >= retry_ms
    assert response.status_code >= 400
    return CallFailed(
        Refusal(
            code=CODES[body["code"]],
            message=body["message"],
            domain=info.get("domain", ""),
            reason=info.get("reason", "").removeprefix("ERROR_REASON_"),
            metadata=info.get("metadata", {}),
            retry_ms=retry_ms,
            trailing_cursor=None,
        )
    )


def broken(error: Exception) -> CallFailed:
    """Make the failure of a connection that broke, or could not be had."""
    code = "DEADLINE_EXCEEDED" if isinstance(error, httpx.TimeoutException) else "UNAVAILABLE"
    return CallFailed(Refusal(code, f"{type(error).__name__}: {error}", "", "", {}, None, None))


def _address(request: Any) -> tuple[str, str, tuple[str, ...]]:
    """Give the verb, the address, and the fields that the address says."""
    name = type(request).__name__.removesuffix("Request")
    if name in _OF_STREAM:
        verb, suffix = _OF_STREAM[name]
        return verb, path_of(request.stream) + suffix, ("stream",)
    if name in _OF_GROUP:
        verb, suffix = _OF_GROUP[name]
        return verb, f"{_log(request.group)}/groups/{_part(request.group.name)}{suffix}", ("group",)
    if name in _ELSEWHERE:
        return *_ELSEWHERE[name], ()
    if isinstance(request, ListStreamsRequest):
        if request.WhichOneof("scope") == "all_open":
            return "GET", "/v1/openStreams", ("all_open",)
        return "GET", f"/v1/sessions/{_part(request.session_id)}/streams", ("session_id",)
    if name == "ListGroups":
        return "GET", f"{_log(request)}/groups", ("stream", "lifecycle")
    if name == "ListDeadLetters":
        at = path_of(request.stream) if request.HasField("stream") else "/v1"
        return "GET", f"{at}/deadLetters", ("stream",)
    assert name == "DisconnectConnection", f"no address is known for {name}"
    return "DELETE", f"/v1/connections/{_part(request.connection_id)}", ("connection_id",)


def _log(request: "GroupRef | Any") -> str:
    match request.WhichOneof("log"):
        case "lifecycle":
            return "/v1/lifecycle"
        case "stream":
            return path_of(request.stream)
        case _:
            raise NotOffered("an address always says which log is meant")


def _part(name: str) -> str:
    if not name:
        raise NotOffered("no address has an empty name")
    return quote(name, safe="")


def _query(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}
