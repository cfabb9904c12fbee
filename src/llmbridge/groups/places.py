"""Which group is meant, where it is in Redis, and how a delivery is named to clients."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmbridge.log.groups import GroupPlace, Receipt
from llmbridge.log.keys import Keys
from llmbridge.model.names import StreamName

_ACK_ID = re.compile(r"(?:(0|[1-9][0-9]{0,4}):)?((?:0|[1-9][0-9]{0,15})-(?:0|[1-9][0-9]{0,15}))\.([1-9][0-9]{0,9})")


@dataclass(frozen=True, slots=True)
class GroupName:
    """A group of a stream, or of the lifecycle feed where `stream` is None."""

    stream: StreamName | None
    group: str


@dataclass(frozen=True, slots=True)
class AckId:
    """Names a delivery to clients: `<entry id>.<attempt>`, with `<partition>:` before it in the lifecycle feed."""

    partition: int | None
    receipt: Receipt

    @classmethod
    def parse(cls, text: str) -> "AckId":
        """Read what `str()` wrote. Raises ValueError on anything else."""
        match = _ACK_ID.fullmatch(text)
        if match is None:
            raise ValueError("not an id of a delivery")
        return cls(None if match[1] is None else int(match[1]), Receipt(match[2].encode(), int(match[3])))

    @staticmethod
    def texts(ids: Sequence[bytes], attempt: int) -> list[str]:
        """Name deliveries of a stream's entries, as `str()` does; there are many."""
        return [f"{entry_id.decode()}.{attempt}" for entry_id in ids]

    def __str__(self) -> str:
        where = "" if self.partition is None else f"{self.partition}:"
        return f"{where}{self.receipt.id.decode()}.{self.receipt.attempt}"


class GroupPlaces:
    """Finds groups in Redis."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    @property
    def partitions(self) -> int:
        """How many partitions the lifecycle feed has."""
        return self._keys.partitions

    def of_stream(self, stream: StreamName, group: str) -> GroupPlace:
        """Say where a stream's group is."""
        keys = self._keys.stream(stream)
        letters = self._keys.dead_letters(self._keys.partition_of(stream.session_id))
        return GroupPlace(keys.log, self._keys.group(stream, group), letters, keys.open_member, group)

    def of_feed(self, partition: int, group: str) -> GroupPlace:
        """Say where a group of the lifecycle feed is in one partition."""
        letters = self._keys.dead_letters(partition)
        return GroupPlace(self._keys.feed(partition), self._keys.feed_group(partition, group), letters, "", group)
