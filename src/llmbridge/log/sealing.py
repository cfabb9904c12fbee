"""Seals that the bridge makes itself, and the signs of life that prevent one kind of them."""

from dataclasses import dataclass

from llmbridge.errors import Completed, Fenced, StreamNotFound
from llmbridge.log.appending import WAKE_BYTES, LogDefaults
from llmbridge.log.commands import Commands
from llmbridge.log.keys import Keys
from llmbridge.log.scripts import load_script
from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason, Producer, Sealer, checksum_of


@dataclass(frozen=True, slots=True)
class Seal:
    """How a stream ended; `sealed_now` if this call ended it."""

    cursor: Cursor
    finish_reason: FinishReason
    sealer: Sealer
    sealed_now: bool


@dataclass(frozen=True, slots=True)
class Silence:
    """A seal that is only made if the stream still ends with `last_id` and nothing was heard for `at_least_ms`."""

    last_id: str
    at_least_ms: int


class SealLog:
    """Seals streams on behalf of the bridge."""

    def __init__(self, commands: Commands, keys: Keys, defaults: LogDefaults) -> None:
        self._commands = commands
        self._keys = keys
        self._defaults = defaults
        self._seal = load_script("seal")
        self._keep_alive = load_script("keep_alive")

    async def seal(
        self,
        name: StreamName,
        sealer: Sealer,
        finish_reason: FinishReason,
        fragment: bytes,
        silence: Silence | None = None,
    ) -> Seal | None:
        """Seal a stream unless it is sealed; an absent one is created sealed. Tells how it is sealed now.

        With `silence`: None where its conditions do not hold. Raises RedisUnavailable or AppendOutcomeUnknown.
        """
        stream = self._keys.stream(name)
        defaults = self._defaults
        reply = await self._commands.store(
            self._seal,
            (stream.log, stream.open_index, stream.session_index, self._keys.kept_alive_of(name), stream.feed),
            (
                stream.open_member,
                stream.session_member,
                defaults.retention_ms,
                defaults.max_length,
                WAKE_BYTES,
                sealer,
                finish_reason,
                checksum_of(fragment),
                fragment,
                silence.last_id if silence else "",
                silence.at_least_ms if silence else 0,
            ),
        )
        if reply[0] == b"alive":
            return None
        return Seal(
            cursor=Cursor(int(reply[1]), int(reply[2]), reply[3].decode()),
            finish_reason=FinishReason(reply[4].decode()),
            sealer=Sealer(reply[5].decode()),
            sealed_now=reply[0] == b"sealed_now",
        )

    async def keep_alive(self, name: StreamName, producer: Producer) -> None:
        """Note that a stream's producer is alive.

        Raises StreamNotFound, Fenced, Completed, RedisUnavailable or AppendOutcomeUnknown.
        """
        stream = self._keys.stream(name)
        reply = await self._commands.call(
            self._keep_alive,
            (stream.log, self._keys.kept_alive_of(name), stream.open_index),
            (stream.open_member, producer.epoch, producer.id, self._defaults.retention_ms),
        )
        match reply[0]:
            case b"absent":
                raise StreamNotFound(name)
            case b"fenced":
                raise Fenced(int(reply[1]))
            case b"completed":
                raise Completed(reply[1].decode(), reply[2].decode())
