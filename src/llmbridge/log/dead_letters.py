"""Dead letters in Redis: entries of a stream in each partition, which the scripts of groups write (lua/group.lua)."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmbridge.log.commands import Commands
from llmbridge.log.group_state import text_of
from llmbridge.log.groups import GroupPlace
from llmbridge.log.keys import Keys
from llmbridge.log.scripts import load_script


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """An entry that a group gave up.

    `id` names the letter in its partition, `entry` what it is about in the log. `stream` is the stream's name as
    `StreamKeys.open_member`, empty for the lifecycle feed. `checksum` is that of the entry's cursor. Times are in ms by
    Redis' clock.
    """

    id: str
    stream: str
    entry: str
    checksum: str
    group: str
    consumer: str
    attempts: int
    reason: str
    first_delivered_ms: int
    last_delivered_ms: int


class DeadLetterLog:
    """Works on dead letters. All of it raises RedisUnavailable; what changes them, AppendOutcomeUnknown, too."""

    def __init__(self, commands: Commands, keys: Keys, default_deadline_ms: int) -> None:
        self._commands = commands
        self._keys = keys
        self._default_deadline_ms = default_deadline_ms
        self._redrive = load_script("group_redrive", "group")

    async def page(self, partition: int, after: str, at_most: int) -> list[StoredLetter]:
        """Read a partition's letters, oldest first, after a letter's id ('' for the first)."""
        reply = await self._commands.read(
            "XRANGE", self._keys.dead_letters(partition), f"({after}" if after else "-", "+", "COUNT", at_most
        )
        return [_letter(entry_id, fields) for entry_id, fields in reply]

    async def find(self, partition: int, letter: str) -> StoredLetter | None:
        """Read one letter; None where there is none of this id."""
        reply = await self._commands.read("XRANGE", self._keys.dead_letters(partition), letter, letter)
        return _letter(*reply[0]) if reply else None

    async def redrive(self, place: GroupPlace, letter: StoredLetter) -> bool:
        """Give a letter's entry back to its group, in one step, to be delivered at once and as if for the first time.

        False where the entry, the group or the letter is gone; then nothing was changed.
        """
        reply = await self._commands.call(
            self._redrive,
            (place.log, place.settings, place.dead_letters),
            (letter.id, place.group, letter.entry, self._default_deadline_ms),
        )
        return bool(reply)

    async def delete(self, partition: int, letters: Sequence[str]) -> int:
        """Delete letters; returns how many there were."""
        # A transaction, since repeating it would count wrongly.
        [deleted] = await self._commands.transaction(("XDEL", self._keys.dead_letters(partition), *letters))
        return int(deleted)


def _letter(letter: bytes, flat: Sequence[bytes]) -> StoredLetter:
    fields = {name: text_of(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
    return StoredLetter(
        id=letter.decode(),
        stream=fields[b"stream"],
        entry=fields[b"id"],
        checksum=fields[b"checksum"],
        group=fields[b"group"],
        consumer=fields[b"consumer"],
        attempts=int(fields[b"attempts"]),
        reason=fields[b"reason"],
        first_delivered_ms=int(fields[b"first"]),
        last_delivered_ms=int(fields[b"last"]),
    )
