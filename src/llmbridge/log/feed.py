"""The lifecycle feed as it is stored: one Redis Stream a partition, written by the scripts that create and seal.

An event's id is `<ms by Redis>-<n>`, n numbering the partition's events without holes. Its fields: `k` what happened,
'created <incarnation>' or 'completed <incarnation> <sequence> <checksum> <sealer>'; `s` to which stream, as a member of
the open index; `b` the completion's fragment, where there is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmbridge.log.commands import Commands
from llmbridge.log.groups import GroupPlace, GroupSettings
from llmbridge.log.keys import Keys
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import Sealer


@dataclass(frozen=True, slots=True)
class LifecycleEntry:
    """An event: the stream was created, or completed where there is a `sealer`; `completion` is its fragment then.

    `cursor` stands before the first record, or names the completion. `recorded_ms` is by Redis' clock.
    """

    recorded_ms: int
    stream: StreamName
    cursor: Cursor
    sealer: Sealer | None
    completion: bytes

    @classmethod
    def parse(cls, entry_id: bytes, fields: Sequence[bytes]) -> "LifecycleEntry":
        """Read what the scripts wrote. Raises ValueError on anything else."""
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        name = Keys.name_of_open(found.get(b"s", b"").decode())
        recorded_ms = int(entry_id.partition(b"-")[0])
        match found.get(b"k", b"").decode().split(" "):
            case ["created", incarnation]:
                before_first = Cursor.parse(f"{incarnation}-0-{NO_CHECKSUM}")
                return cls(recorded_ms, name, before_first, None, b"")
            case ["completed", incarnation, sequence, checksum, sealer]:
                cursor = Cursor.parse(f"{incarnation}-{sequence}-{checksum}")
                return cls(recorded_ms, name, cursor, Sealer(sealer), found.get(b"b", b""))
        raise ValueError("not an event of the lifecycle feed")

    @property
    def start(self) -> Cursor:
        """Name the place before the stream's first record."""
        return Cursor(self.cursor.incarnation, 0, NO_CHECKSUM)

    @property
    def created_ms(self) -> int:
        """When the stream was created, by Redis' clock."""
        return self.cursor.incarnation // 1000

    @property
    def tokens(self) -> int:
        """How many tokens the stream has had: the completion takes the number after them."""
        return max(0, self.cursor.sequence - 1)


def number_of(entry_id: bytes) -> int:
    """Tell the how manieth event of its partition one is."""
    return int(entry_id.partition(b"-")[2])


class FeedLog:
    """Looks at the feed's partitions."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def begun(self, place: GroupPlace) -> bool:
        """Tell whether a partition has, or has had, an event that is not expired. Raises RedisUnavailable."""
        return bool(await self._commands.read("EXISTS", place.log))

    async def group_settings(self, place: GroupPlace) -> GroupSettings | None:
        """Tell how a group was made in a partition; None where it was not. Raises RedisUnavailable."""
        deadline_ms, max_deliveries = await self._commands.read(
            "HMGET", place.settings, "deadline_ms", "max_deliveries"
        )
        if deadline_ms is None or max_deliveries is None:
            return None
        return GroupSettings(int(deadline_ms), int(max_deliveries))
