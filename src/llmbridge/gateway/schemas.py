"""JSON Schemas of the contract's messages, in the form of protobuf's JSON mapping. Made of the descriptors."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from llmbridge.gateway.comments import comment_of_enum, comment_of_field, comment_of_message, comment_of_value

__all__ = ["component_schemas", "object_schema", "reference_to", "schema_of_field", "types_of"]

_UINT64: Mapping[str, Any] = {"type": "string", "format": "uint64", "pattern": "^(0|[1-9][0-9]{0,18})$"}
_INT64: Mapping[str, Any] = {"type": "string", "format": "int64", "pattern": "^(0|-?[1-9][0-9]{0,17})$"}
_UINT32: Mapping[str, Any] = {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1}
_INT32: Mapping[str, Any] = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_PLAIN: Mapping[int, Mapping[str, Any]] = {
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
}


def component_schemas(roots: Iterable[Descriptor | EnumDescriptor]) -> dict[str, Any]:
    """Describe messages and all that they are made of, by name."""
    found: dict[str, Any] = {}
    for descriptor in _with_parts(roots):
        if isinstance(descriptor, EnumDescriptor):
            found[descriptor.name] = _enum_schema(descriptor)
        else:
            found[descriptor.name] = object_schema(descriptor.fields) | _described(comment_of_message(descriptor))
    return dict(sorted(found.items()))


def object_schema(fields: Iterable[FieldDescriptor]) -> dict[str, Any]:
    """Describe an object that has just these fields of a message."""
    return {
        "type": "object",
        "properties": {field.json_name: schema_of_field(field) for field in fields},
        "additionalProperties": False,
    }


def schema_of_field(field: FieldDescriptor) -> dict[str, Any]:
    """Describe a field's value."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        schema: dict[str, Any] = {"type": "object", "additionalProperties": _value(message.fields_by_name["value"])}
    elif field.is_repeated:
        schema = {"type": "array", "items": _value(field)}
    else:
        schema = _value(field)
    text = comment_of_field(field)
    # What makes up a oneof is told in words: at most one of them may be there.
    oneof = field.containing_oneof
    if oneof is not None and len(oneof.fields) > 1:
        others = ", ".join(one.json_name for one in oneof.fields if one is not field)
        text = f"{text}\n\nNot together with: {others}."
    return schema | _described(text)


def reference_to(descriptor: Descriptor | EnumDescriptor) -> dict[str, Any]:
    """Refer to a message's or an enum's schema in the document."""
    return {"$ref": f"#/components/schemas/{descriptor.name}"}


def types_of(fields: Iterable[FieldDescriptor]) -> Iterator[Descriptor | EnumDescriptor]:
    """Give the messages and enums that fields refer to."""
    for field in fields:
        if field.message_type is not None:
            yield field.message_type
        if field.enum_type is not None:
            yield field.enum_type


def _value(field: FieldDescriptor) -> dict[str, Any]:
    if field.message_type is not None:
        return reference_to(field.message_type)
    if field.enum_type is not None:
        return reference_to(field.enum_type)
    return dict(_PLAIN[field.type])


def _enum_schema(descriptor: EnumDescriptor) -> dict[str, Any]:
    lines = [comment_of_enum(descriptor), *(f"- `{one.name}`: {comment_of_value(one)}" for one in descriptor.values)]
    return {"type": "string", "enum": [value.name for value in descriptor.values], "description": "\n".join(lines)}


def _described(text: str) -> dict[str, Any]:
    return {"description": text} if text else {}


def _with_parts(roots: Iterable[Descriptor | EnumDescriptor]) -> Iterator[Descriptor | EnumDescriptor]:
    left: list[Descriptor | EnumDescriptor] = list(roots)
    seen: set[str] = set()
    while left:
        descriptor = left.pop()
        if descriptor.full_name in seen:
            continue
        seen.add(descriptor.full_name)
        if isinstance(descriptor, EnumDescriptor):
            yield descriptor
            continue
        if not descriptor.GetOptions().map_entry:
            yield descriptor
        left += types_of(descriptor.fields)
