"""Streams as a whole: create, inspect, list, trim, delete."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmbridge.errors import HistoryGone, Lost, Restarted, Rewritten, StreamExists, StreamNotFound
from llmbridge.log.commands import Commands
from llmbridge.log.exchange import Reply
from llmbridge.log.keys import Keys, StreamKeys
from llmbridge.log.scripts import load_script
from llmbridge.log.together import all_of
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason, Sealer

_NOT_OF_THIS_LOG: dict[bytes, type[HistoryGone]] = {b"restarted": Restarted, b"lost": Lost, b"rewritten": Rewritten}


@dataclass(frozen=True, slots=True)
class StreamState:
    """What is known of a stream, in one consistent view. Times in ms by Redis' clock."""

    name: StreamName
    incarnation: int
    first_sequence: int
    last_sequence: int
    cursor: str
    appended_ms: int
    producer_epoch: int
    finish_reason: FinishReason | None
    sealer: Sealer | None
    entries: int
    bytes: int
    time_to_live_ms: int


@dataclass(frozen=True, slots=True)
class SessionPlace:
    """Where a listing of a session stands: the last stream listed, by creation time and index member."""

    created_us: int
    member: str


class StreamLog:
    """Works on whole streams."""

    def __init__(self, commands: Commands, keys: Keys) -> None:
        self._commands = commands
        self._keys = keys
        self._create = load_script("create")
        self._inspect = load_script("inspect")
        self._trim = load_script("trim")
        self._delete = load_script("delete")

    async def create(
        self, name: StreamName, retention_ms: int | None, max_length: int | None, default_retention_ms: int
    ) -> int:
        """Create an empty stream; returns its incarnation. Raises StreamExists."""
        stream = self._keys.stream(name)
        reply = await self._commands.store(
            self._create,
            (stream.log, stream.open_index, stream.session_index, stream.feed),
            (
                stream.open_member,
                stream.session_member,
                "" if retention_ms is None else retention_ms,
                "" if max_length is None else max_length,
                default_retention_ms,
            ),
        )
        if reply[0] == b"exists":
            raise StreamExists(name)
        return int(reply[1])

    async def inspect(self, name: StreamName) -> StreamState | None:
        """Tell a stream's state; None when it is absent."""
        reply = await self._commands.ask(self._inspect, (self._keys.stream(name).log,), ())
        return _state(name, reply) if reply else None

    async def inspect_all(self, names: Sequence[StreamName]) -> list[StreamState | None]:
        """Tell many streams' states, sharing round trips. Raises what the first that failed raised."""
        return await all_of(map(self.inspect, names))

    async def trim(self, name: StreamName, keep_tokens: int, through: Cursor | None) -> tuple[int, int]:
        """Drop the oldest entries; returns the first sequence that is left and how many entries were dropped.

        Either `keep_tokens` > 0 or `through`. Raises StreamNotFound, and Restarted, Lost or Rewritten where the cursor
        is not of this log.
        """
        reply = await self._commands.call(
            self._trim,
            (self._keys.stream(name).log,),
            (keep_tokens, *((through.incarnation, through.sequence, through.checksum) if through else (0, 0, ""))),
        )
        if not reply:
            raise StreamNotFound(name)
        if reply[0] != b"trimmed":
            earliest = str(Cursor(int(reply[1]), int(reply[2]), NO_CHECKSUM))
            raise _NOT_OF_THIS_LOG[reply[0]](earliest)
        return int(reply[1]), int(reply[2])

    async def delete(self, name: StreamName) -> bool:
        """Delete a stream; False when there was none."""
        stream = self._keys.stream(name)
        reply = await self._commands.store(
            self._delete,
            (stream.log, stream.open_index, stream.session_index, self._keys.kept_alive_of(name)),
            (stream.open_member, stream.session_member),
        )
        return bool(reply)

    async def session_members(
        self, session_id: str, after: SessionPlace | None, at_most: int
    ) -> list[tuple[StreamName, SessionPlace]]:
        """List a session's streams, newest first; some of them may have expired."""
        index = self._session_index(session_id)
        newest = "+inf" if after is None else after.created_us
        # Streams created in the same microsecond share a score; those already listed are fetched again and skipped.
        again = 0 if after is None else int(await self._commands.read("ZCOUNT", index, newest, newest))
        reply = await self._commands.read(
            "ZREVRANGEBYSCORE", index, newest, "-inf", "WITHSCORES", "LIMIT", 0, at_most + again
        )
        places = [
            SessionPlace(int(float(score)), member.decode())
            for member, score in zip(reply[::2], reply[1::2], strict=True)
        ]
        return [
            (self._keys.name_in_session(session_id, place.member), place)
            for place in places
            if after is None or place.created_us < after.created_us or place.member < after.member
        ][:at_most]

    async def open_members(self, partition: int, after_member: str, at_most: int) -> list[tuple[StreamName, str]]:
        """List a partition's open streams after an index member ('' for the first)."""
        reply = await self._commands.read(
            "ZRANGEBYLEX",
            self._keys.open_index(partition),
            f"({after_member}" if after_member else "-",
            "+",
            "LIMIT",
            0,
            at_most,
        )
        return [(self._keys.name_of_open(member.decode()), member.decode()) for member in reply]

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return self._keys.partitions

    def _session_index(self, session_id: str) -> str:
        stream: StreamKeys = self._keys.stream(StreamName(session_id, ""))
        return stream.session_index


def _state(name: StreamName, reply: list[Reply]) -> StreamState:
    last, checksum = int(reply[2]), reply[3].decode()
    finish_reason, sealer = reply[6].decode(), reply[7].decode()
    incarnation = int(reply[0])
    return StreamState(
        name=name,
        incarnation=incarnation,
        first_sequence=int(reply[1]),
        last_sequence=last,
        cursor=str(Cursor(incarnation, last, checksum)) if last else "",
        appended_ms=int(reply[4]),
        producer_epoch=int(reply[5]),
        finish_reason=FinishReason(finish_reason) if finish_reason else None,
        sealer=Sealer(sealer) if sealer else None,
        entries=int(reply[8]),
        bytes=int(reply[9]),
        time_to_live_ms=int(reply[10]),
    )
