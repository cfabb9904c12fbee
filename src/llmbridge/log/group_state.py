"""Groups as Redis has them at a moment: which there are, how they stand, their consumers; and their end.

Reads and deletes; what members do with a group is in `groups`.
"""

from dataclasses import dataclass
from typing import Literal

from redis.exceptions import ResponseError

from llmbridge.log.commands import Commands
from llmbridge.log.groups import GroupPlace, GroupSettings
from llmbridge.log.scripts import load_script


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """A consumer: how many entries it has got and not settled, and how long ago it was last heard of."""

    name: str
    pending: int
    idle_ms: int


@dataclass(frozen=True, slots=True)
class GroupState:
    """How a group stands on one log, in one consistent view.

    `lag` counts what no member has got: tokens of a stream, events of the feed. `oldest_pending_ms` is the time since
    the last delivery of the entry that waits longest, 0 where nothing is pending. `delivered_sequence` is that of the
    last record that a member has got; 0 before the first, and for the feed.
    """

    settings: GroupSettings
    pending: int
    lag: int
    oldest_pending_ms: int
    delivered_sequence: int
    consumers: tuple[ConsumerState, ...]


@dataclass(frozen=True, slots=True)
class NoGroup:
    """The log exists and has no such group, to which all `lag` records would be new."""

    lag: int


class GroupStates:
    """Looks at groups. `default` is what a group has that was not made by a bridge."""

    def __init__(self, commands: Commands, default: GroupSettings) -> None:
        self._commands = commands
        self._default = default
        self._state = load_script("group_state", "group")
        self._delete = load_script("group_delete", "group")

    async def names(self, log: str) -> list[str] | None:
        """Name a log's groups; None while the log is absent. Raises RedisUnavailable."""
        try:
            reply = await self._commands.read("XINFO", "GROUPS", log)
        except ResponseError as error:
            if "no such key" in str(error):
                return None
            raise
        return [text_of(dict(zip(flat[::2], flat[1::2], strict=True))[b"name"]) for flat in reply]

    async def state(self, place: GroupPlace) -> GroupState | NoGroup | None:
        """Tell how a group stands; None while its log is absent. Raises RedisUnavailable."""
        kind: Literal["stream", "feed"] = "stream" if place.stream else "feed"
        reply = await self._commands.ask(self._state, (place.log, place.settings), (place.group, kind))
        if not reply:
            return None
        lag, found = int(reply[0]), reply[1]
        if not found:
            return NoGroup(lag)
        pending, oldest_ms, delivered, deadline_ms, max_deliveries, consumers = found
        return GroupState(
            settings=GroupSettings(
                int(deadline_ms or self._default.ack_deadline_ms), int(max_deliveries or self._default.max_deliveries)
            ),
            pending=int(pending),
            lag=lag,
            oldest_pending_ms=int(oldest_ms),
            delivered_sequence=int(delivered),
            consumers=tuple(ConsumerState(text_of(name), int(its), int(idle)) for name, its, idle in consumers),
        )

    async def delete(self, place: GroupPlace) -> bool:
        """Delete a group and what it remembers, and tell its members; False where there was none.

        Raises RedisUnavailable or AppendOutcomeUnknown.
        """
        return bool(await self._commands.call(self._delete, (place.log, place.settings), (place.group,)))


def text_of(raw: bytes) -> str:
    """Read a name. The bridge's are UTF-8; what somebody else wrote with redis-cli must not break a listing."""
    return raw.decode(errors="replace")
