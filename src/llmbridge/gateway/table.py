"""Where each unary call of the bridge is in HTTP: the table that requests are routed by and the document is made of.

Paths are written as google.api.http has them: `{stream.session_id}` is a field of the request. Data, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmbridge.gateway.access import ADMIN, PRODUCE, SUBSCRIBE

__all__ = ["RULES", "SERVICES", "Binding", "Rule"]

SERVICES: Mapping[str, str] = {
    "BridgeService": "bridge",
    "StreamAdminService": "admin",
    "GroupService": "groups",
    "ConnectionService": "connections",
}
"""The services with unary calls, and under which name a Link has their stubs."""

_SESSION = "/v1/sessions/{%ssession_id}"
_MODEL = _SESSION + "/models/{%smodel_id}"
_RESPONSE = _MODEL + "/responses/{%sresponse_id}"


@dataclass(frozen=True, slots=True)
class Binding:
    """One address of a call."""

    path: str
    fixed: Mapping[str, bool] = field(default_factory=dict)
    """Fields that the address itself means: true, or for a message that it is there."""
    left_out: frozenset[str] = frozenset()
    """Fields that can't be given at this address."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One call. What its address does not say is in the body of a POST, and in the query of GET and DELETE."""

    service: str
    call: str
    verb: str
    scope: str
    bindings: tuple[Binding, ...]


def _of_stream(suffix: str, field_path: str = "stream.") -> tuple[Binding, ...]:
    """Addresses of something of a stream; the second is for the stream whose response id is empty."""
    return (
        Binding(_RESPONSE.replace("%s", field_path) + suffix),
        Binding(_MODEL.replace("%s", field_path) + suffix),
    )


def _of_group(suffix: str) -> tuple[Binding, ...]:
    """Addresses of something of a group of a stream or of the lifecycle feed."""
    return (
        *_of_stream("/groups/{group.name}" + suffix, "group.stream."),
        Binding("/v1/lifecycle/groups/{group.name}" + suffix, fixed={"group.lifecycle": True}),
    )


_STREAM = frozenset({"stream"})

RULES: tuple[Rule, ...] = (
    Rule("BridgeService", "Produce", "POST", PRODUCE, _of_stream(":produce")),
    Rule("BridgeService", "Cancel", "POST", SUBSCRIBE, _of_stream(":cancel")),
    Rule("BridgeService", "KeepAlive", "POST", PRODUCE, _of_stream(":keepAlive")),
    Rule("StreamAdminService", "CreateStream", "POST", PRODUCE, (Binding("/v1/streams"),)),
    Rule("StreamAdminService", "GetStream", "GET", SUBSCRIBE, _of_stream("")),
    Rule(
        "StreamAdminService",
        "ListStreams",
        "GET",
        SUBSCRIBE,
        (Binding((_SESSION + "/streams").replace("%s", ""), left_out=frozenset({"all_open"})),),
    ),
    Rule(
        "StreamAdminService",
        "ListStreams",
        "GET",
        ADMIN,
        (Binding("/v1/openStreams", fixed={"all_open": True}, left_out=frozenset({"session_id"})),),
    ),
    Rule("StreamAdminService", "TrimStream", "POST", ADMIN, _of_stream(":trim")),
    Rule("StreamAdminService", "DeleteStream", "DELETE", ADMIN, _of_stream("")),
    Rule("GroupService", "Acknowledge", "POST", SUBSCRIBE, _of_group(":acknowledge")),
    Rule("GroupService", "ExtendDeadline", "POST", SUBSCRIBE, _of_group(":extendDeadline")),
    Rule("GroupService", "Reject", "POST", SUBSCRIBE, _of_group(":reject")),
    Rule("GroupService", "GetGroup", "GET", ADMIN, _of_group("")),
    Rule(
        "GroupService",
        "ListGroups",
        "GET",
        ADMIN,
        (
            *(Binding(one.path, left_out=frozenset({"lifecycle"})) for one in _of_stream("/groups")),
            Binding("/v1/lifecycle/groups", fixed={"lifecycle": True}, left_out=_STREAM),
        ),
    ),
    Rule("GroupService", "ListConsumers", "GET", ADMIN, _of_group("/consumers")),
    Rule("GroupService", "DeleteGroup", "DELETE", ADMIN, _of_group("")),
    Rule(
        "GroupService",
        "ListDeadLetters",
        "GET",
        ADMIN,
        (Binding("/v1/deadLetters", left_out=_STREAM), *_of_stream("/deadLetters")),
    ),
    Rule("GroupService", "RedriveDeadLetters", "POST", ADMIN, (Binding("/v1/deadLetters:redrive"),)),
    Rule("GroupService", "DeleteDeadLetters", "POST", ADMIN, (Binding("/v1/deadLetters:delete"),)),
    Rule("ConnectionService", "ListConnections", "GET", ADMIN, (Binding("/v1/connections"),)),
    Rule("ConnectionService", "CountConnections", "GET", ADMIN, (Binding("/v1/connections:count"),)),
    Rule("ConnectionService", "DisconnectConnection", "DELETE", ADMIN, (Binding("/v1/connections/{connection_id}"),)),
)
