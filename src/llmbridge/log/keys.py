"""How stored things are named in Redis.

All keys of a session share the hash tag `{partition}`, hence a Redis Cluster slot, so that scripts stay atomic. Each
part of a name is percent-encoded, so that no two names collide and `:` separates parts only.
"""

import zlib
from dataclasses import dataclass
from urllib.parse import quote, unquote

from llmbridge.model.names import StreamName


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """The keys that an append to one stream touches, and the stream's name as a member of the indexes.

    `ends` is a channel, see `ends`; the scripts make its name of the feed's.
    """

    log: str
    open_index: str
    session_index: str
    feed: str
    ends: str
    open_member: str
    session_member: str


@dataclass(frozen=True, slots=True)
class Keys:
    """Names everything that is stored under one prefix."""

    prefix: str
    partitions: int

    def partition_of(self, session_id: str) -> int:
        """Give the partition that holds a session: CRC-32 of its UTF-8, modulo the number of partitions."""
        return zlib.crc32(session_id.encode()) % self.partitions

    def stream(self, name: StreamName) -> StreamKeys:
        """Name a stream's keys."""
        session = quote(name.session_id, safe="")
        response = f"{quote(name.model_id, safe='')}:{quote(name.response_id, safe='')}"
        partition = self.partition_of(name.session_id)
        tag = f"{{{partition}}}"
        return StreamKeys(
            log=f"{self.prefix}:stream:{tag}:{session}:{response}",
            open_index=f"{self.prefix}:open:{tag}",
            session_index=f"{self.prefix}:session:{tag}:{session}",
            feed=self.feed(partition),
            ends=f"{self.prefix}:ends:{tag}",
            open_member=f"{session}:{response}",
            session_member=response,
        )

    def open_index(self, partition: int) -> str:
        """Name the sorted set of a partition's open streams."""
        return f"{self.prefix}:open:{{{partition}}}"

    def kept_alive(self, partition: int) -> str:
        """Name the hash of the times at which silent producers of a partition called KeepAlive."""
        return f"{self.prefix}:kept:{{{partition}}}"

    def kept_alive_of(self, name: StreamName) -> str:
        """Name the hash that holds a stream's KeepAlive."""
        return self.kept_alive(self.partition_of(name.session_id))

    def group(self, name: StreamName, group: str) -> str:
        """Name the hash of a stream's consumer group, which is also the channel of its members."""
        tag = f"{{{self.partition_of(name.session_id)}}}"
        return f"{self.prefix}:group:{tag}:{self.stream(name).open_member}:{quote(group, safe='')}"

    def dead_letters(self, partition: int) -> str:
        """Name the stream of a partition's dead letters."""
        return f"{self.prefix}:dead:{{{partition}}}"

    def feed(self, partition: int) -> str:
        """Name a partition's part of the lifecycle feed."""
        return f"{self.prefix}:feed:{{{partition}}}"

    def feed_group(self, partition: int, group: str) -> str:
        """Name the hash, and the members' channel, of a consumer group of the lifecycle feed in a partition."""
        return f"{self.prefix}:group:{{{partition}}}::{quote(group, safe='')}"

    @property
    def partition_count(self) -> str:
        """Name the record of how many partitions the stored streams were spread over."""
        return f"{self.prefix}:partitions"

    @staticmethod
    def name_of_open(member: str) -> StreamName:
        """Undo `open_member`."""
        session, model, response = member.split(":")
        return StreamName(unquote(session), unquote(model), unquote(response))

    @staticmethod
    def name_in_session(session_id: str, member: str) -> StreamName:
        """Undo `session_member`."""
        model, response = member.split(":")
        return StreamName(session_id, unquote(model), unquote(response))
