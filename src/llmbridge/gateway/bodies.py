"""Reads a request's JSON: exactly one object, in UTF-8, each field once. Knows nothing of what the fields mean."""

import json
import re
from typing import Any, NoReturn

import grpc
from starlette.requests import ClientDisconnect, Request

from llmbridge.gateway.problems import Problem, error_info, invalid_field

__all__ = ["read_object"]

# A lone half of a pair can be written in JSON, but is no text.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_object(request: Request) -> dict[str, Any]:
    """Read the body; none at all means an object without fields. Raises Problem."""
    try:
        content = await request.body()
    except ClientDisconnect:
        raise Problem(grpc.StatusCode.CANCELLED, "the client left before its request was complete") from None
    if not content.strip():
        return {}
    try:
        value = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
        if _SURROGATE.search(content):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _malformed(f"the body is not JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    except UnicodeError:
        raise _malformed("the body is not UTF-8") from None
    except RecursionError:
        raise _malformed("the body is nested too deeply") from None
    except ValueError as error:
        raise _malformed(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _malformed("the body is not a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        # A lone surrogate in it could not be sent back.
        shown = twice.encode(errors="replace").decode()
        raise invalid_field(shown, f"{shown} is there twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is none of its values")


def _malformed(message: str) -> Problem:
    return Problem(
        grpc.StatusCode.INVALID_ARGUMENT, message, details=[error_info("MALFORMED_REQUEST", {"field": "body"})]
    )
