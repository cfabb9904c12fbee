"""The way in: appends that wait at the same moment share one script call.

Decides nothing: lua/append.lua does (see sequencing for its rules).
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
from llmbridge.log.exchange import Command, ConnectionBroken, Exchange, Reply
from llmbridge.log.keys import Keys
from llmbridge.log.scripts import call_script, load_script, refusal
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


class AppendLog:
    """Appends to streams. `run` must be running."""

    def __init__(self, exchange: Exchange, keys: Keys, defaults: LogDefaults) -> None:
        self._exchange = exchange
        self._keys = keys
        self._defaults = defaults
        self._script = load_script("append")
        self._batcher: Batcher[tuple[StreamName, Append], AppendOutcome] = Batcher(
            self._carry,
            max_items=MAX_STREAMS_A_CALL,
            size_of=lambda item: len(item[1].fragment),
            max_bytes=MAX_BYTES_A_CALL,
            source_of=lambda item: item[0],
            linger_seconds=LINGER_SECONDS,
        )

    async def run(self) -> None:
        """Carry appends until cancelled."""
        await self._batcher.run()

    async def append(self, name: StreamName, request: Append) -> AppendOutcome:
        """Append one request, atomically.

        Raises SequenceGap, Fenced, Completed or SequenceConflict as the rules say, LimitExceeded for a stream that
        grew too long, RedisUnavailable (nothing stored) or AppendOutcomeUnknown.
        """
        return await self._batcher.submit((name, request))

    async def _carry(self, batch: Sequence[tuple[StreamName, Append]]) -> list[AppendOutcome | Exception]:
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
        try:
            replies = await call_script(self._send, self._script, keys, arguments)
        except ConnectionBroken as error:
            raise AppendOutcomeUnknown(str(error)) from error
        return [self._outcome(reply, request) for reply, (_, request) in zip(replies, batch, strict=True)]

    async def _send(self, command: Command) -> Reply:
        return (await self._exchange.send([command]))[0]

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
