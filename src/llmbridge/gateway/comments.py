"""The comments of the contract, which the generated type stubs carry along: what the document says of calls and fields.

Reads them only when the document is asked for. Without the stubs there are no descriptions, and that is all.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    EnumValueDescriptor,
    FieldDescriptor,
    MethodDescriptor,
)

__all__ = ["comment_of_call", "comment_of_enum", "comment_of_field", "comment_of_message", "comment_of_value"]

_PACKAGE = "llmbridge.v1"


def comment_of_message(descriptor: Descriptor | EnumDescriptor) -> str:
    """What the contract says of a message or an enum as a whole."""
    return _comments(_stub_of(descriptor.file.name)).get((descriptor.name, ""), "")


comment_of_enum = comment_of_message


def comment_of_field(field: FieldDescriptor) -> str:
    """What the contract says of a message's field."""
    owner = field.containing_type
    return _comments(_stub_of(owner.file.name)).get((owner.name, field.name), "") if owner is not None else ""


def comment_of_value(value: EnumValueDescriptor) -> str:
    """What the contract says of an enum's value."""
    return _comments(_stub_of(value.type.file.name)).get(("", value.name), "")


def comment_of_call(method: MethodDescriptor) -> str:
    """What the contract says of a call."""
    service = method.containing_service
    return _comments(_stub_of(service.file.name, "_grpc")).get((f"{service.name}Stub", method.name), "")


def _stub_of(proto: str, suffix: str = "") -> str:
    return proto.rpartition("/")[2].removesuffix(".proto") + f"_pb2{suffix}.pyi"


@cache
def _comments(stub: str) -> Mapping[tuple[str, str], str]:
    """Give the comments of a stub by class (empty for the module itself) and attribute (empty for the class itself)."""
    resource = files(_PACKAGE).joinpath(stub)
    if not resource.is_file():
        return {}
    module = ast.parse(resource.read_text(encoding="utf-8"))
    found = {("", name): text for name, text in _documented(module.body)}
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            found[node.name, ""] = ast.get_docstring(node) or ""
            found |= {(node.name, name): text for name, text in _documented(node.body)}
    return found


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Attributes with the string after them, and properties with their docstring."""
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if (
                isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                yield node.target.id, _clean(following.value.value)
        elif isinstance(node, ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.name, text


def _clean(text: str) -> str:
    first, *rest = text.strip().splitlines()
    return "\n".join([first, *(line.strip() for line in rest)])
