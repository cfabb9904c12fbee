"""Every unary call of the bridge over HTTP, by the table: decode, ask, encode. Knows no call in particular but Produce.

Field names, statuses and error bodies are those of grpc-gateway.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmbridge.gateway.access import QUERY_PARAMETER
from llmbridge.gateway.bodies import read_object
from llmbridge.gateway.calls import ask, produce
from llmbridge.gateway.comments import comment_of_call, comment_of_field
from llmbridge.gateway.context import Gateway
from llmbridge.gateway.counts import Counts
from llmbridge.gateway.operations import Operation, Parameter
from llmbridge.gateway.problems import invalid_field
from llmbridge.gateway.schemas import object_schema, reference_to, schema_of_field, types_of
from llmbridge.gateway.table import RULES, SERVICES, Binding, Rule
from llmbridge.gateway.transcoding import fill_from_json, fill_from_query, json_of, set_field, settable_fields
from llmbridge.v1 import (
    bridge_service_pb2,
    connection_service_pb2,
    group_service_pb2,
    stream_admin_service_pb2,
)
from llmbridge.v1.bridge_service_pb2 import ProduceRequest
from llmbridge.v1.stream_pb2 import StreamRef

__all__ = ["operations"]

_FILES = (bridge_service_pb2, stream_admin_service_pb2, group_service_pb2, connection_service_pb2)
_VARIABLE = re.compile(r"\{([a-z_.]+)\}")


def operations(gateway: Gateway, counts: Counts) -> list[Operation]:
    """Make the endpoints of all unary calls."""
    methods = {
        (name, method.name): method
        for file in _FILES
        for name, service in file.DESCRIPTOR.services_by_name.items()
        for method in service.methods
    }
    made: list[Operation] = []
    addresses: Counter[str] = Counter()
    for rule in RULES:
        for binding in rule.bindings:
            addresses[rule.call] += 1
            endpoint = _Endpoint(gateway, counts, rule, binding, methods[rule.service, rule.call])
            made.append(endpoint.operation(addresses[rule.call]))
    return made


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """One call at one address."""

    gateway: Gateway
    counts: Counts
    rule: Rule
    binding: Binding
    method: MethodDescriptor

    def operation(self, number: int) -> Operation:
        """Describe it; `number` counts the call's addresses, from 1."""
        request, answer = self.method.input_type, self.method.output_type
        fields = self._fields
        parameters = [
            Parameter(_parameter_name(path), "path", {"type": "string", "minLength": 1}, _comment_at(request, path))
            for path in self._variables
        ]
        if not self._has_body:
            parameters += [
                Parameter(field.json_name, "query", schema_of_field(field)) for field in _once(fields.values())
            ]
        return Operation(
            name=f"{self.rule.service}_{self.rule.call}{f'_{number}' if number > 1 else ''}",
            tag=self.rule.service,
            verb=self.rule.verb,
            path=_VARIABLE.sub(lambda found: f"{{{_parameter_name(found[1])}}}", self.binding.path),
            description=comment_of_call(self.method),
            parameters=tuple(parameters),
            body=object_schema(_once(fields.values())) if self._has_body else None,
            answer=reference_to(answer),
            messages=(answer, *types_of(_once(fields.values()))),
            endpoint=self.serve,
        )

    async def serve(self, request: Request) -> Response:
        """Answer a request."""
        message = GetMessageClass(self.method.input_type)()
        for path in self._variables:
            set_field(message, path, request.path_params[_parameter_name(path)])
        for path, value in self.binding.fixed.items():
            set_field(message, path, value)
        await self.gateway.access.check(request, self.rule.scope, _stream_of(message))
        query = [(name, text) for name, text in request.query_params.multi_items() if name != QUERY_PARAMETER]
        if self._has_body:
            if query:
                raise invalid_field(query[0][0], f"{query[0][0]}: this address takes no query, fields go into the body")
            fill_from_json(message, await read_object(request), self._fields)
        else:
            fill_from_query(message, query, self._fields)
        return JSONResponse(json_of(await self._ask(message)))

    async def _ask(self, message: Message) -> Message:
        if isinstance(message, ProduceRequest):
            return await produce(self.gateway.link, self.counts, message)
        stub = getattr(self.gateway.link, SERVICES[self.rule.service])
        answer: Message = await ask(self.gateway.link, getattr(stub, self.rule.call), message)
        return answer

    @property
    def _has_body(self) -> bool:
        return self.rule.verb == "POST"

    @property
    def _variables(self) -> list[str]:
        return _VARIABLE.findall(self.binding.path)

    @property
    def _fields(self) -> dict[str, FieldDescriptor]:
        """The request's fields that the address does not say, by both names."""
        said = {path.partition(".")[0] for path in (*self._variables, *self.binding.fixed)}
        return settable_fields(self.method.input_type, said | self.binding.left_out)


def _parameter_name(path: str) -> str:
    """Name a parameter after its field: `stream.session_id` is `sessionId`."""
    if path == "group.name":
        return "group"
    first, *rest = path.rpartition(".")[2].split("_")
    return first + "".join(word.capitalize() for word in rest)


def _comment_at(descriptor: Descriptor, path: str) -> str:
    *parents, name = path.split(".")
    for parent in parents:
        part = descriptor.fields_by_name[parent].message_type
        assert part is not None
        descriptor = part
    return comment_of_field(descriptor.fields_by_name[name])


def _once(fields: Iterable[FieldDescriptor]) -> Iterator[FieldDescriptor]:
    yield from {field.number: field for field in fields}.values()


def _stream_of(message: Any) -> StreamRef | None:
    """Find out which stream, or at least which session, a request is about."""
    fields = message.DESCRIPTOR.fields_by_name
    if "group" in fields and message.group.HasField("stream"):
        message = message.group
        fields = message.DESCRIPTOR.fields_by_name
    if "stream" in fields and message.HasField("stream"):
        stream: StreamRef = message.stream
        return stream
    if "session_id" in fields and message.session_id:
        return StreamRef(session_id=message.session_id)
    return None
