"""What an endpoint of the REST part is: served by, and written into the document from, the same value."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["Operation", "Parameter"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of the path, or of the query."""

    name: str
    where: str
    """`path` or `query`."""
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """An address with what it takes, what it answers, and who answers."""

    name: str
    """Unique in the document."""
    tag: str
    verb: str
    path: str
    """With the parameters as `{name}`."""
    description: str
    parameters: tuple[Parameter, ...]
    body: Mapping[str, Any] | None
    """The JSON Schema of the body; None: there is none."""
    answer: Mapping[str, Any]
    """The JSON Schema of what it answers with 200 (and `also`)."""
    messages: tuple[Descriptor | EnumDescriptor, ...]
    """The messages of the contract that the schemas refer to."""
    endpoint: Callable[[Request], Awaitable[Response]]
    also: tuple[int, ...] = ()
    """Other statuses with the same answer."""

    @property
    def route(self) -> Route:
        """Where it is served."""
        return Route(self.path, self.endpoint, methods=[self.verb])
