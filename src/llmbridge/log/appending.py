"""The way in: appends that wait at the same moment share one script call.

Decides nothing: lua/append.lua does (see sequencing for its rules).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

from llmbridge.errors import (
    AppendOutcomeUnknown,
    BridgeError,
    Completed,
    Fenced,
    LimitExceeded,
    SequenceConflict,
    SequenceGap,
)
from llmbridge.log.batcher import Batcher
from llmbridge.log.calls import Outcome, ScriptCall, Storing
from llmbridge.log.exchange import ConnectionBroken, Reply
from llmbridge.log.keys import Keys, StreamKeys
from llmbridge.log.lanes import LaneKind, Lanes, Wire
from llmbridge.log.scripts import load_script, refusal
from llmbridge.log.servers import Servers
from llmbridge.log.together import all_of
from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, checksum_of
from llmbridge.sequencing import Decision

WAKE_BYTES = 4_096
"""The largest fragment that a wake-up carries; readers of larger ones read the log. Nearly all tokens fit."""

MAX_STREAMS_A_CALL = 128
"""Redis serves nobody else during a script: 128 appends take it about a millisecond."""

MAX_BYTES_A_CALL = 1_048_576

LINGER_SECONDS = 0.002
"""While several producers are busy there is one script call in 2 ms: see `batcher`, and docs/design.md for figures."""


@dataclass(frozen=True, slots=True)
class LogDefaults:
    """What a stream gets unless CreateStream said otherwise. `max_length` 0 means unlimited."""

    retention_ms: int
    max_length: int
    max_stream_tokens: int


class Appended(NamedTuple):
    """The request's last record is stored; `duplicate` if all of it had been before."""

    cursor_text: str
    """The last record's cursor, as clients get it."""
    last_sequence: int
    duplicate: bool

    @property
    def cursor(self) -> Cursor:
        """The last record's cursor."""
        return Cursor.parse(self.cursor_text)


@dataclass(frozen=True, slots=True)
class Overlap:
    """The request's first records are stored already, up to `last`; nothing was appended."""

    last: int


AppendOutcome = Appended | Overlap
Item = tuple[StreamKeys, Append]


@dataclass(frozen=True, slots=True)
class _Group:
    """Appends that go in one script call, on keys of one slot. `source` is who makes them."""

    source: object
    items: Sequence[Item]
    bytes: int


_Outcomes = list[AppendOutcome | Exception]


class AppendLog:
    """Appends to streams. `run` must be running."""

    def __init__(self, servers: Servers, keys: Keys, defaults: LogDefaults) -> None:
        self._keys = keys
        self._defaults = defaults
        self._scripts = load_script("append")
        self._storing = Storing(servers)
        self._in_cluster = servers.cluster is not None
        self._lanes: Lanes[_Group, _Outcomes] = Lanes(servers, LaneKind("append", _key_of, self._batcher))

    async def run(self) -> None:
        """Carry appends until cancelled."""
        await self._lanes.run()

    def keys_of(self, name: StreamName) -> StreamKeys:
        """Name what an append to a stream touches, for `append_all`; worth keeping for the next ones."""
        return self._keys.stream(name)

    async def append(self, name: StreamName, request: Append) -> AppendOutcome:
        """Append one request, atomically.

        Raises SequenceGap, Fenced, Completed or SequenceConflict as the rules say, LimitExceeded for a stream that
        grew too long, RedisUnavailable (nothing stored) or AppendOutcomeUnknown.
        """
        stream = self._keys.stream(name)
        group = _Group(stream.log, ((stream, request),), len(request.fragment))
        [outcome] = await self._lanes.submit(group)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def append_all(self, items: Sequence[Item], source: object) -> list[AppendOutcome | Exception]:
        """Append many requests, each atomically and with an outcome of its own: what `append` returns or raises.

        Those to one stream are carried out in their order. They go in one script call, one a slot on Redis Cluster, or
        few where they are many or large. `source` tells callers apart, see `batcher`.
        """
        if not self._in_cluster:
            return await self._append_in_turn(items, source)
        places: dict[str, list[int]] = {}
        for place, (stream, _) in enumerate(items):
            places.setdefault(stream.feed, []).append(place)
        slots = places.values()
        carried = await all_of(self._append_in_turn([items[place] for place in slot], source) for slot in slots)
        outcomes = dict(zip(chain.from_iterable(slots), chain.from_iterable(carried), strict=True))
        return [outcomes[place] for place in range(len(items))]

    async def _append_in_turn(self, items: Sequence[Item], source: object) -> _Outcomes:
        """Append what is of one slot. A group waits for the one before it, which may be sent on to another node."""
        outcomes: _Outcomes = []
        for group in _groups(items, source):
            try:
                outcomes += await self._lanes.submit(group)
            except Exception as error:  # each of the group gets it
                outcomes += [error] * len(group.items)
        return outcomes

    def _batcher(self, wire: Wire) -> Batcher[_Group, _Outcomes]:
        return Batcher(
            partial(self._carry, wire),
            max_items=MAX_STREAMS_A_CALL,
            size_of=lambda group: group.bytes,
            max_bytes=MAX_BYTES_A_CALL,
            source_of=lambda group: group.source,
            linger_seconds=LINGER_SECONDS,
            count_of=lambda group: len(group.items),
        )

    async def _carry(self, wire: Wire, groups: Sequence[_Group]) -> list[_Outcomes | Exception]:
        calls: Sequence[Sequence[_Group]] = [groups]
        if self._in_cluster:
            # One call for each partition: on a cluster a script's keys must be of one slot.
            by_key: dict[str, list[_Group]] = {}
            for group in groups:
                by_key.setdefault(_key_of(group), []).append(group)
            calls = list(by_key.values())
        items = [[item for group in call for item in group.items] for call in calls]
        try:
            replies = await self._storing.run(wire, [self._call(call) for call in items])
        except ConnectionBroken as error:
            raise AppendOutcomeUnknown(str(error)) from error
        found: dict[int, _Outcomes | Exception] = {}
        for call, of_call, reply in zip(calls, items, replies, strict=True):
            outcomes = reply if isinstance(reply, Exception) else self._outcomes(of_call, reply)
            start = 0
            for group in call:
                end = start + len(group.items)
                found[id(group)] = outcomes if isinstance(outcomes, Exception) else outcomes[start:end]
                start = end
        if any(_read_only(reply) for reply in replies):
            await wire.exchange.renew()
        return [found[id(group)] for group in groups]

    def _call(self, items: Sequence[Item]) -> ScriptCall:
        keys: list[str] = []
        defaults = self._defaults
        longest = defaults.max_stream_tokens + 1
        arguments: list[str | bytes | int] = [
            defaults.retention_ms,
            defaults.max_length,
            WAKE_BYTES,
            defaults.max_stream_tokens,
        ]
        for stream, request in items:
            first, tokens, finish_reason, producer, fragment, completion = request
            arguments += (first, f"{checksum_of(fragment)} {producer.epoch} {producer.id}", fragment)
            if 1 < first <= longest - tokens and finish_reason is None:
                # It can neither create nor end its stream nor be too long for it, which needs to know more.
                keys.append(stream.log)
                arguments.append("" if tokens == 1 else f"{tokens} {first + tokens - 1}")
            else:
                keys += (stream.log, stream.open_index, stream.session_index, stream.feed)
                arguments += (
                    "+",
                    tokens,
                    stream.open_member,
                    stream.session_member,
                    finish_reason or "",
                    completion,
                )
        return ScriptCall(self._scripts, keys, arguments)

    def _outcomes(self, items: Sequence[Item], replies: Reply) -> _Outcomes:
        # Nearly all are stored, and the answer is the cursor alone. A named tuple's constructor takes twice as long.
        new = tuple.__new__
        return [
            new(
                Appended,
                (reply.decode(), request.first + request.records - 1 if request.first else _sequence(reply), False),
            )
            if type(reply) is bytes
            else self._otherwise(reply, request)
            for reply, (_, request) in zip(replies, items, strict=True)
        ]

    def _otherwise(self, reply: list[bytes], request: Append) -> AppendOutcome | Exception:
        decision = reply[0].decode()
        if decision == Decision.DUPLICATE:
            return Appended(reply[1].decode(), _sequence(reply[1]), True)
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


def _key_of(group: _Group) -> str:
    return group.items[0][0].feed


def _sequence(cursor: bytes) -> int:
    return int(cursor.split(b"-", 2)[1])


def _groups(items: Sequence[Item], source: object) -> Iterator[_Group]:
    """Cut appends where a script call is full."""
    start = size = 0
    for end, (_, request) in enumerate(items):
        if end - start == MAX_STREAMS_A_CALL or size >= MAX_BYTES_A_CALL:
            yield _Group(source, items[start:end], size)
            start, size = end, 0
        size += len(request.fragment)
    if start < len(items):
        yield _Group(source, items[start:], size)


def _read_only(replies: Outcome) -> bool:
    """Tell whether a script found itself on a replica, which it says of each append and not as an error of its own."""
    return not isinstance(replies, Exception) and any(
        type(reply) is list and reply[0] == b"failed" and b"READONLY" in reply[1] for reply in replies
    )
