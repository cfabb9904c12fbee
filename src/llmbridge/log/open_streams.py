"""The open-stream indexes: what the sweeps for lost producers and for dead index members look at."""

from dataclasses import dataclass

from llmbridge.log.commands import Commands
from llmbridge.log.keys import Keys
from llmbridge.log.scripts import load_script
from llmbridge.model.names import StreamName


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A stream without a completion: its last entry's id, and when its producer was last heard of, ms by Redis."""

    name: StreamName
    last_id: str
    heard_ms: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """Some open streams, the index member after which to go on ('' when through), and Redis' time in ms."""

    streams: tuple[OpenStream, ...]
    next_member: str
    now_ms: int


class OpenStreams:
    """Walks through the open streams of a partition."""

    def __init__(self, commands: Commands, keys: Keys) -> None:
        self._commands = commands
        self._keys = keys
        self._sweep = load_script("sweep")

    async def sweep(self, partition: int, after_member: str, at_most: int) -> Sweep:
        """Give a partition's next open streams.

        On the way it drops members whose stream is gone, and renews the expiry of the indexes that name the others.
        Raises RedisUnavailable or AppendOutcomeUnknown; sweeping again does no harm.
        """
        tag = f"{{{partition}}}"
        found, next_member, now_ms = await self._commands.call(
            self._sweep,
            (self._keys.open_index(partition), self._keys.kept_alive(partition)),
            (after_member, at_most, f"{self._keys.prefix}:stream:{tag}:", f"{self._keys.prefix}:session:{tag}:"),
            sees_all_keys=False,
        )
        streams = tuple(
            OpenStream(self._keys.name_of_open(member.decode()), last_id.decode(), int(heard_ms))
            for member, last_id, heard_ms in found
        )
        return Sweep(streams, next_member.decode(), int(now_ms))
