"""JSON objects that are not messages of the contract: their fields once, for reading them and for the document."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmbridge.gateway.problems import invalid_field

__all__ = ["FormField", "read_form", "schema_of_form"]

_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "object": (dict,),
    "number": (int, float),
}


@dataclass(frozen=True, slots=True)
class FormField:
    """A field: its name in JSON, what it holds, and what it means."""

    name: str
    description: str
    kind: str = "string"
    required: bool = False
    choices: tuple[str, ...] = ()


def read_form(fields: Iterable[FormField], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check an object's fields; null means not there. Raises Problem, naming the field, for what does not fit."""
    known = {field.name: field for field in fields}
    for name in values:
        if name not in known:
            raise invalid_field(name, f"there is no field {name} here; there is {', '.join(known)}")
    found = {name: value for name, value in values.items() if value is not None}
    for name, field in known.items():
        if name not in found:
            if field.required:
                raise invalid_field(name, f"{name} is missing")
            continue
        value = found[name]
        if not isinstance(value, _KINDS[field.kind]) or isinstance(value, bool):
            raise invalid_field(name, f"{name} must be of type {field.kind}")
        if field.choices and value not in field.choices:
            raise invalid_field(name, f"{name} must be one of {', '.join(field.choices)}")
    return found


def schema_of_form(fields: Iterable[FormField]) -> dict[str, Any]:
    """Describe an object in JSON Schema."""
    listed = tuple(fields)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            field.name: {
                "type": field.kind,
                "description": field.description,
                **({"enum": list(field.choices)} if field.choices else {}),
            }
            for field in listed
        },
        "additionalProperties": False,
    }
    required = [field.name for field in listed if field.required]
    return schema | ({"required": required} if required else {})
