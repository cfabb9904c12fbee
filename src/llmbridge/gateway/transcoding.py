"""Makes the contract's messages of JSON and queries, and JSON of messages: protobuf's own mapping, with named errors.

Knows nothing of requests and of addresses; names of fields are taken as protobuf (snake_case) or JSON (lowerCamelCase)
has them, and written as JSON has them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from llmbridge.gateway.problems import invalid_field

__all__ = ["fill_from_json", "fill_from_query", "json_of", "refuse_unknown", "set_field", "settable_fields"]

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_BOOLEANS = {"true": True, "false": False}
_INTEGER_TYPES = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)
_WORDS = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits, or one as text",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits, or one as text",
    FieldDescriptor.CPPTYPE_UINT32: f"a whole number from 0 to {2**32 - 1}, or one as text",
    FieldDescriptor.CPPTYPE_UINT64: f"a whole number from 0 to {2**64 - 1}, or one as text",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_MESSAGE: "an object",
}


def json_of(message: Message) -> dict[str, Any]:
    """Write a message as grpc-gateway does: 64-bit numbers as text, also fields that have their default."""
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def settable_fields(descriptor: Descriptor, left_out: Iterable[str]) -> dict[str, FieldDescriptor]:
    """Give a message's fields without some, by both of their names."""
    without = frozenset(left_out)
    fields = [field for field in descriptor.fields if field.name not in without]
    return {field.json_name: field for field in fields} | {field.name: field for field in fields}


def set_field(message: Message, path: str, value: Any) -> None:
    """Set the field at a dotted path; a message with True means that it is there."""
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    if message.DESCRIPTOR.fields_by_name[name].cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        getattr(message, name).SetInParent()
    else:
        setattr(message, name, value)


def fill_from_json(message: Message, values: Mapping[str, Any], allowed: Mapping[str, FieldDescriptor]) -> None:
    """Set a message's fields from a JSON object. Raises Problem, naming the field, for what does not fit."""
    refuse_unknown(values, allowed)
    seen: dict[str, str] = {}
    for name in values:
        field = allowed[name]
        if field.name in seen:
            raise invalid_field(name, f"{name} is there twice, also as {seen[field.name]}")
        seen[field.name] = name
    _check_objects(values, _descriptor_of(message), "")
    parsed = type(message)()
    try:
        ParseDict(dict(values), parsed)
    except ParseError:
        path, why = _locate(values, _descriptor_of(message), "")
        raise invalid_field(path, f"{path}: {why}" if path else why) from None
    message.MergeFrom(parsed)


def refuse_unknown(names: Iterable[str], allowed: Mapping[str, FieldDescriptor]) -> None:
    """Raise Problem for a name that is none of a field."""
    for name in names:
        if name not in allowed:
            raise _unknown(name, allowed)


def fill_from_query(message: Message, pairs: Iterable[tuple[str, str]], allowed: Mapping[str, FieldDescriptor]) -> None:
    """Set a message's plain fields from a query. Raises as `fill_from_json` does."""
    values: dict[str, Any] = {}
    for name, text in pairs:
        field = allowed.get(name)
        if field is None or field.is_repeated or field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            raise _unknown(name, allowed)
        if name in values:
            raise invalid_field(name, f"{name} is there twice")
        values[name] = _BOOLEANS.get(text, text) if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else text
        if field.cpp_type in _INTEGER_TYPES and _INTEGER.fullmatch(text) is None:
            raise invalid_field(name, f"{name}: must be {_expected(field)}")
    fill_from_json(message, values, allowed)


def _check_objects(values: Mapping[str, Any], descriptor: Descriptor, path: str) -> None:
    """Refuse what protobuf's parser takes for an object without fields, such as an empty array."""
    fields = settable_fields(descriptor, ())
    for name, value in values.items():
        field = fields.get(name)
        if field is None or field.message_type is None or value is None or field.message_type.GetOptions().map_entry:
            continue
        here = f"{path}{name}"
        parts = {here: value}
        if field.is_repeated:
            parts = {f"{here}[{index}]": part for index, part in enumerate(value)} if isinstance(value, list) else {}
        for at, part in parts.items():
            if not isinstance(part, Mapping):
                raise invalid_field(at, f"{at}: must be an object")
            _check_objects(part, field.message_type, f"{at}.")


def _unknown(name: str, allowed: Mapping[str, FieldDescriptor]) -> Exception:
    names = ", ".join(sorted({field.json_name for field in allowed.values()}))
    return invalid_field(name, f"there is no field {name} here; there is {names or 'none'}")


def _locate(value: Any, descriptor: Descriptor, path: str) -> tuple[str, str]:
    """Find the innermost thing that can't be parsed, and say what it should be."""
    if not isinstance(value, Mapping):
        return path, "must be an object"
    fields = settable_fields(descriptor, ())
    for name, part in value.items():
        here = f"{path}.{name}" if path else name
        field = fields.get(name)
        if field is None:
            return here, f"there is no such field; there is {', '.join(one.json_name for one in descriptor.fields)}"
        if not _parses({name: part}, descriptor):
            return _locate_in_field(part, field, descriptor, here)
    names = ", ".join(
        field.json_name
        for oneof in descriptor.oneofs
        if sum(field.json_name in value or field.name in value for field in oneof.fields) > 1
        for field in oneof.fields
    )
    return path, f"only one of {names} may be there" if names else "can't be parsed"


def _locate_in_field(value: Any, field: FieldDescriptor, owner: Descriptor, path: str) -> tuple[str, str]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return path, "must be an object with text as its values"
    if not field.is_repeated:
        if field.message_type is not None:
            return _locate(value, field.message_type, path)
        return path, f"must be {_expected(field)}"
    if not isinstance(value, list):
        return path, "must be an array"
    for index, item in enumerate(value):
        here = f"{path}[{index}]"
        if field.message_type is None:
            if not _parses({field.name: [item]}, owner):
                return here, f"must be {_expected(field)}"
        elif item is None or not _parses(item, field.message_type):
            return _locate(item, field.message_type, here)
    return path, "can't be parsed"


def _descriptor_of(message: Message) -> Descriptor:
    return cast("Descriptor", message.DESCRIPTOR)


def _parses(value: Any, descriptor: Descriptor) -> bool:
    try:
        ParseDict(value, GetMessageClass(descriptor)())
    except (ParseError, TypeError, AttributeError):
        # Not an object at all.
        return False
    return True


def _expected(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return f"one of {', '.join(value.name for value in field.enum_type.values)}"
    return _WORDS[field.cpp_type]
