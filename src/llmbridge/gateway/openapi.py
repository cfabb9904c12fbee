"""The OpenAPI 3.1 document, made of the operations that are served."""

from collections.abc import Iterable
from typing import Any

from llmbridge import __version__
from llmbridge.gateway.access import COOKIE, QUERY_PARAMETER
from llmbridge.gateway.operations import Operation
from llmbridge.gateway.schemas import component_schemas

__all__ = ["document"]

_ERROR = {
    "type": "object",
    "description": "An error, as grpc-gateway writes it.",
    "properties": {
        "code": {"type": "integer", "description": "The gRPC status."},
        "message": {"type": "string", "description": "What to change, for people."},
        "details": {
            "type": "array",
            "description": "google.rpc.ErrorInfo (see error_reason.proto); RetryInfo where trying again helps.",
            "items": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
        },
    },
    "required": ["code", "message", "details"],
}


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Write the document."""
    listed = list(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        paths.setdefault(operation.path, {})[operation.verb.lower()] = _operation(operation)
    messages = [message for operation in listed for message in operation.messages]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llmbridge",
            "version": __version__,
            "description": "Carries language models' tokens from producers to readers. 64-bit numbers are text in "
            "answers, and either in requests; names of fields are accepted in lowerCamelCase and snake_case.",
        },
        "paths": paths,
        "components": {
            "schemas": {**component_schemas(messages), "Error": _ERROR},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "query": {"type": "apiKey", "in": "query", "name": QUERY_PARAMETER},
            },
        },
        # The first: nothing is needed where the bridge has no access control.
        "security": [{}, {"bearer": []}, {"cookie": []}, {"query": []}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    summary, _, rest = operation.description.partition("\n\n")
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": " ".join(summary.split()),
        "responses": {
            **{
                str(status): {"description": "Told.", "content": {"application/json": {"schema": operation.answer}}}
                for status in (200, *operation.also)
            },
            "default": {
                "description": "It failed.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if rest:
        described["description"] = rest
    if operation.parameters:
        described["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.where,
                "required": parameter.where == "path",
                "schema": {name: value for name, value in parameter.schema.items() if name != "description"},
                "description": parameter.description or parameter.schema.get("description", ""),
            }
            for parameter in operation.parameters
        ]
    if operation.body is not None:
        described["requestBody"] = {
            "required": bool(operation.body.get("required")),
            "content": {"application/json": {"schema": dict(operation.body)}},
        }
    return described
