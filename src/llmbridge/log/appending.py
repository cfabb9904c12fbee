"""The way in: appends that wait at the same moment share one script call.

Decides nothing: lua/append.lua does (see sequencing for its rules).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from llmbridge.errors import (
    AppendOutcomeUnknown,
    BridgeError,
    Completed,
    Fenced,
    LimitExceeded,
    RedisUnavailable,
    SequenceConflict,
    SequenceGap,
)
from llmbridge.log.batcher import Batcher
from llmbridge.log.calls import Outcome, ScriptCall, Storing
from llmbridge.log.exchange import ConnectionBroken
from llmbridge.log.keys import Keys
from llmbridge.log.lanes import LaneKind, Lanes, Wire
from llmbridge.log.scripts import load_script, refusal
from llmbridge.log.servers import Servers
from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, checksum_of
from llmbridge.sequencing import Decision

WAKE_BYTES = 4_096
"""The largest fragment that a wake-up carries; readers of larger ones read the log. Nearly all tokens fit."""

MAX_STREAMS_A_CALL = 128
"""Redis serves nobody else during a script: 128 appends take it about 0.6 ms."""

MAX_BYTES_A_CALL = 1_048_576

LINGER_SECONDS = 0.002
"""While several producers are busy there is one script call in 2 ms: see `batcher`, and docs/design.md for figures."""


@dataclass(frozen=True, slots=True)
class LogDefaults:
    """What a stream gets unless CreateStream said otherwise. `max_length` 0 means unlimited."""

    retention_ms: int
    max_length: int
    max_stream_tokens: int


@dataclass(frozen=True, slots=True)
class Appended:
    """The request's last record is stored; `duplicate` if all of it had been before."""

    cursor: Cursor
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Overlap:
    """The request's first records are stored already, up to `last`; nothing was appended."""

    last: int


AppendOutcome = Appended | Overlap
_Item = tuple[StreamName, Append]


class AppendLog:
    """Appends to streams. `run` must be running."""

    def __init__(self, servers: Servers, keys: Keys, defaults: LogDefaults) -> None:
        self._keys = keys
        self._defaults = defaults
        self._scripts = load_script("append")
        self._storing = Storing(servers)
        self._in_cluster = servers.cluster is not None
        self._lanes: Lanes[_Item, AppendOutcome] = Lanes(servers, LaneKind("append", self._key_of, self._batcher))

    async def run(self) -> None:
        """Carry appends until cancelled."""
        await self._lanes.run()

    async def append(self, name: StreamName, request: Append) -> AppendOutcome:
        """Append one request, atomically.

        Raises SequenceGap, Fenced, Completed or SequenceConflict as the rules say, LimitExceeded for a stream that
        grew too long, RedisUnavailable (nothing stored) or AppendOutcomeUnknown.
        """
        return await self._lanes.submit((name, request))

    def _batcher(self, wire: Wire) -> Batcher[_Item, AppendOutcome]:
        return Batcher(
            partial(self._carry, wire),
            max_items=MAX_STREAMS_A_CALL,
            size_of=lambda item: len(item[1].fragment),
            max_bytes=MAX_BYTES_A_CALL,
            source_of=lambda item: item[0],
            linger_seconds=LINGER_SECONDS,
        )

    def _key_of(self, item: _Item) -> str:
        return self._keys.feed(self._keys.partition_of(item[0].session_id))

    async def _carry(self, wire: Wire, batch: Sequence[_Item]) -> list[AppendOutcome | Exception]:
        groups: Sequence[Sequence[_Item]] = [batch]
        if self._in_cluster:
            # One call for each partition: on a cluster a script's keys must be of one slot.
            by_key: dict[str, list[_Item]] = {}
            for item in batch:
                by_key.setdefault(self._key_of(item), []).append(item)
            groups = list(by_key.values())
        try:
            replies = await self._storing.run(wire, [self._call(group) for group in groups])
        except ConnectionBroken as error:
            raise AppendOutcomeUnknown(str(error)) from error
        if not self._in_cluster:
            outcomes = self._outcomes(batch, replies[0])
        else:
            found = {
                id(item): outcome
                for group, reply in zip(groups, replies, strict=True)
                for item, outcome in zip(group, self._outcomes(group, reply), strict=True)
            }
            outcomes = [found[id(item)] for item in batch]
        if any(isinstance(outcome, RedisUnavailable) for outcome in outcomes) and _read_only(replies):
            await wire.exchange.renew()
        return outcomes

    def _call(self, batch: Sequence[_Item]) -> ScriptCall:
        keys: list[str] = []
        defaults = self._defaults
        arguments: list[str | bytes | int] = [
            defaults.retention_ms,
            defaults.max_length,
            WAKE_BYTES,
            defaults.max_stream_tokens,
        ]
        for name, request in batch:
            stream = self._keys.stream(name)
            keys += (stream.log, stream.open_index, stream.session_index, stream.feed)
            arguments += (
                stream.open_member,
                stream.session_member,
                request.first,
                request.tokens,
                request.finish_reason or "",
                request.producer.epoch,
                request.producer.id,
                checksum_of(request.fragment),
                request.fragment,
                request.completion,
            )
        return ScriptCall(self._scripts, keys, arguments)

    def _outcomes(self, batch: Sequence[_Item], replies: Outcome) -> list[AppendOutcome | Exception]:
        if isinstance(replies, Exception):
            return [replies] * len(batch)
        return [self._outcome(reply, request) for reply, (_, request) in zip(replies, batch, strict=True)]

    def _outcome(self, reply: list[bytes], request: Append) -> AppendOutcome | Exception:
        decision = reply[0].decode()
        if decision in (Decision.APPEND, Decision.DUPLICATE):
            cursor = Cursor(int(reply[1]), int(reply[2]), reply[3].decode())
            return Appended(cursor, duplicate=decision == Decision.DUPLICATE)
        if decision == Decision.OVERLAP:
            return Overlap(int(reply[1]))
        return self._refused(decision, reply, request)

    def _refused(self, decision: str, reply: list[bytes], request: Append) -> BridgeError | RuntimeError:
        match decision:
            case Decision.GAP:
                return SequenceGap(expected=int(reply[1]), received=request.first)
            case Decision.FENCED:
                return Fenced(int(reply[1]))
            case Decision.COMPLETED:
                return Completed(reply[1].decode(), reply[2].decode())
            case Decision.CONFLICT:
                return SequenceConflict(int(reply[1]))
            case "too_long":
                return LimitExceeded(
                    "max_stream_tokens",
                    self._defaults.max_stream_tokens,
                    int(reply[1]),
                    "complete this stream and begin another response",
                )
        message = reply[1].decode(errors="replace")
        return refusal(message) or RuntimeError(f"append.lua failed: {message}")


def _read_only(replies: Sequence[Outcome]) -> bool:
    """Tell whether a script found itself on a replica, which it says of each append and not as an error of its own."""
    return any(
        reply[0] == b"failed" and b"READONLY" in reply[1]
        for group in replies
        if not isinstance(group, Exception)
        for reply in group
    )
