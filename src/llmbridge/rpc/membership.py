"""What members of groups ask for, and what a group may be called."""

from llmbridge.errors import InvalidField
from llmbridge.groups.member import Membership
from llmbridge.log.groups import GroupSettings, History
from llmbridge.rpc import limits as check
from llmbridge.rpc.limits import Limits
from llmbridge.v1 import bridge_service_pb2 as pb

DEFAULT_TOKENS = 1_000
MAX_TOKENS = 1_000_000
DEFAULT_BYTES = 1_048_576
MAX_BYTES = 67_108_864
MIN_DEADLINE_MS = 100
MAX_DEADLINE_MS = 86_400_000
MAX_DELIVERIES = 1_000


def decode_membership(request: pb.SubscribeRequest, limits: Limits) -> Membership:
    """Decode a member's wishes. Raises InvalidField."""
    group = request.group
    start = request.WhichOneof("start")
    if request.after_cursor or request.position not in (pb.POSITION_UNSPECIFIED, pb.POSITION_EARLIEST):
        raise InvalidField(str(start), "a group remembers its own place: leave it out, or set position to earliest")
    acknowledgement = group.acknowledgement
    if acknowledgement not in pb.Acknowledgement.values():
        raise InvalidField("group.acknowledgement", f"{acknowledgement} is not one that this bridge knows")
    check.check_id("group.consumer", group.consumer, False, limits)
    return Membership(
        group=group_name("group.name", group.name, limits),
        consumer=group.consumer,
        explicit=acknowledgement == pb.ACKNOWLEDGEMENT_EXPLICIT,
        max_tokens=_at_most("group.max_outstanding_tokens", group.max_outstanding_tokens, MAX_TOKENS) or DEFAULT_TOKENS,
        max_bytes=_at_most("group.max_outstanding_bytes", group.max_outstanding_bytes, MAX_BYTES) or DEFAULT_BYTES,
        wanted=group_settings("group.", group.ack_deadline_ms, group.max_deliveries),
        history=History.ACCEPT if request.position == pb.POSITION_EARLIEST else History.REFUSE,
    )


def group_name(field: str, name: str, limits: Limits) -> str:
    """Decode which group is meant; an empty name is the bridge's default. Raises InvalidField."""
    check.check_id(field, name, False, limits)
    return name or limits.consumer_group


def group_settings(prefix: str, ack_deadline_ms: int, max_deliveries: int) -> GroupSettings:
    """Decode what belongs to a group; 0 leaves it as it is. Raises InvalidField."""
    if ack_deadline_ms and not MIN_DEADLINE_MS <= ack_deadline_ms <= MAX_DEADLINE_MS:
        raise InvalidField(
            f"{prefix}ack_deadline_ms",
            f"is {ack_deadline_ms}: from {MIN_DEADLINE_MS} to {MAX_DEADLINE_MS}, or 0 to leave it as it is",
        )
    return GroupSettings(ack_deadline_ms, _at_most(f"{prefix}max_deliveries", max_deliveries, MAX_DELIVERIES))


def _at_most(field: str, number: int, maximum: int) -> int:
    if number > maximum:
        raise InvalidField(field, f"is {number}, at most {maximum} is allowed")
    return number
