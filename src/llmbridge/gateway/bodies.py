"""Reads a request's JSON: exactly one object, in UTF-8, each field once. Knows nothing of what the fields mean."""

import json
import math
import re
from typing import Any, NoReturn

import grpc
from starlette.requests import ClientDisconnect, Request

from llmbridge.gateway.problems import Problem, error_info, invalid_field

__all__ = ["read_object", "shown", "unique_fields"]

# A lone half of a pair can be written in JSON, but is no text.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_object(request: Request) -> dict[str, Any]:
    """Read the body; none at all means an object without fields. Raises Problem."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"Content-Encoding: {encoding[:64]!r} is not understood, send the JSON as it is",
            details=[error_info("INVALID_FIELD", {"field": "content-encoding"})],
            status=415,
        )
    try:
        content = await request.body()
    except ClientDisconnect:
        raise Problem(grpc.StatusCode.CANCELLED, "the client left before its request was complete") from None
    if not content.strip():
        return {}
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise _malformed("the body is not UTF-8") from None
    try:
        value = json.loads(text, object_pairs_hook=unique_fields, parse_constant=_refuse_constant, parse_float=_float)
        if _SURROGATE.search(content):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _malformed(f"the body is not JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    except UnicodeEncodeError:
        raise _malformed("the body has half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    except RecursionError:
        raise _malformed("the body is nested too deeply") from None
    except ValueError as error:
        raise _malformed(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _malformed("the body is not a JSON object")
    return value


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its fields. Raises Problem, naming it, for one that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = shown(next(name for name in names if names.count(name) > 1))
        raise invalid_field(twice, f"{twice}: is there twice")
    return found


def shown(name: str) -> str:
    """Give the beginning of a client's own name in a form that can be sent back: a lone surrogate can't."""
    return name[:64].encode(errors="replace").decode()


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:32]} is too large a number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is none of its values")


def _malformed(message: str) -> Problem:
    return Problem(
        grpc.StatusCode.INVALID_ARGUMENT, message, details=[error_info("MALFORMED_REQUEST", {"field": "body"})]
    )
