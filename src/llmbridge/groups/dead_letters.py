"""What became of entries that no member could settle: list them, give them back to their groups, drop them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmbridge.errors import InvalidField
from llmbridge.groups.places import GroupName, GroupPlaces
from llmbridge.log.dead_letters import DeadLetterLog, StoredLetter
from llmbridge.log.groups import GroupPlace
from llmbridge.log.keys import Keys
from llmbridge.log.together import all_of
from llmbridge.model.names import StreamName
from llmbridge.model.page_tokens import FOREIGN, make_page_token, parse_page_token

FIELD = "ids"

_ID = r"(?:0|[1-9][0-9]{0,15})-(?:0|[1-9][0-9]{0,15})"
_ENTRY_ID = re.compile(_ID)
_LETTER_ID = re.compile(rf"(0|[1-9][0-9]{{0,4}}):({_ID})")
_KIND = "dead letters"
_LETTERS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class LetterId:
    """Names a dead letter to clients: `<partition>:<its id there>`."""

    partition: int
    letter: str

    @classmethod
    def parse(cls, text: str) -> "LetterId":
        """Read what `str()` wrote. Raises ValueError on anything else."""
        match = _LETTER_ID.fullmatch(text)
        if match is None:
            raise ValueError("not an id of a dead letter")
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.partition}:{self.letter}"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A letter, where it is, and whose it was. `cursor` is that of the entry's last record, empty for the feed."""

    id: LetterId
    group: GroupName
    cursor: str
    stored: StoredLetter


@dataclass(frozen=True, slots=True)
class LetterPage:
    """Some letters, and the token of the next page ('' after the last)."""

    letters: tuple[DeadLetter, ...]
    next_page_token: str


class DeadLetters:
    """Works on dead letters. All of it raises RedisUnavailable; what changes them, AppendOutcomeUnknown, too."""

    def __init__(self, log: DeadLetterLog, places: GroupPlaces, keys: Keys) -> None:
        self._log = log
        self._places = places
        self._keys = keys

    async def page(self, stream: StreamName | None, page_size: int, page_token: str) -> LetterPage:
        """List letters, partition by partition, oldest first; where a stream is given, only its own.

        Raises InvalidField for a page token that is none.
        """
        if stream is None:
            member, partition, end, at_once = "", 0, self._keys.partitions, page_size
        else:
            member, partition = self._keys.stream(stream).open_member, self._keys.partition_of(stream.session_id)
            end, at_once = partition + 1, _LETTERS_AT_ONCE
        after = ""
        if page_token:
            partition, after = _parse_token(page_token, member)
        letters: list[DeadLetter] = []
        while partition < end:
            found = await self._log.page(partition, after, at_once)
            for stored in found:
                after = stored.id
                if stream is None or stored.stream == member:
                    letters.append(self._letter(partition, stored))
                if len(letters) == page_size:
                    return LetterPage(tuple(letters), make_page_token(_KIND, member, partition, after))
            if len(found) < at_once:
                partition, after = partition + 1, ""
        return LetterPage(tuple(letters), "")

    async def redrive(self, ids: Sequence[str]) -> list[bool]:
        """Give letters back to their groups; tells for each, in order, whether it is pending there again.

        Else it is gone: the letter itself, its entry, or the group that gave it up. Raises InvalidField before anything
        is done.
        """
        return await all_of(map(self._redrive, self._parse(ids)))

    async def delete(self, ids: Sequence[str]) -> int:
        """Delete letters; returns how many there were. Raises InvalidField before anything is done."""
        in_partition: dict[int, list[str]] = {}
        for one in self._parse(ids):
            in_partition.setdefault(one.partition, []).append(one.letter)
        return sum(await all_of(self._log.delete(*some) for some in in_partition.items()))

    async def _redrive(self, letter_id: LetterId) -> bool:
        stored = await self._log.find(letter_id.partition, letter_id.letter)
        return stored is not None and await self._log.redrive(self._place(letter_id.partition, stored), stored)

    def _place(self, partition: int, stored: StoredLetter) -> GroupPlace:
        if stored.stream:
            return self._places.of_stream(self._keys.name_of_open(stored.stream), stored.group)
        return self._places.of_feed(partition, stored.group)

    def _letter(self, partition: int, stored: StoredLetter) -> DeadLetter:
        stream = self._keys.name_of_open(stored.stream) if stored.stream else None
        return DeadLetter(
            id=LetterId(partition, stored.id),
            group=GroupName(stream, stored.group),
            cursor=f"{stored.entry}-{stored.checksum}" if stream is not None else "",
            stored=stored,
        )

    def _parse(self, ids: Sequence[str]) -> list[LetterId]:
        parsed: list[LetterId] = []
        for i, text in enumerate(ids):
            field = f"{FIELD}[{i}]"
            try:
                parsed.append(LetterId.parse(text))
            except ValueError as error:
                raise InvalidField(field, f"{error}: give back an id that ListDeadLetters told unchanged") from None
            if (partition := parsed[-1].partition) >= self._keys.partitions:
                raise InvalidField(field, f"names partition {partition}, the last is {self._keys.partitions - 1}")
        return parsed


def _parse_token(text: str, scope: str) -> tuple[int, str]:
    try:
        partition, after = parse_page_token(text, _KIND, scope)
    except ValueError as error:
        raise InvalidField("page_token", str(error)) from None
    if _ENTRY_ID.fullmatch(after) is None:
        raise InvalidField("page_token", FOREIGN)
    return partition, after
