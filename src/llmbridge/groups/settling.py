"""Settles deliveries by the names that clients were given, at whichever bridge they were delivered."""

from collections.abc import Sequence

from llmbridge.errors import GroupNotFound, InvalidField
from llmbridge.groups.places import AckId, GroupName, GroupPlaces
from llmbridge.log.group_state import GroupStates
from llmbridge.log.groups import GroupLog, Receipt, Verb
from llmbridge.log.together import all_of

FIELD = "ack_ids"


class Settling:
    """Settles deliveries to the members of groups."""

    def __init__(self, groups: GroupLog, states: GroupStates, places: GroupPlaces) -> None:
        self._groups = groups
        self._states = states
        self._places = places

    async def settle(self, group: GroupName, verb: Verb, ack_ids: Sequence[str], reason: str = "") -> list[bool]:
        """Do something with deliveries; tells for each, in order, whether it was still pending.

        Raises GroupNotFound, and InvalidField before anything is settled. After RedisUnavailable or
        AppendOutcomeUnknown repeating does no harm.
        """
        parsed = [self._parse(group, i, text) for i, text in enumerate(ack_ids)]
        if group.stream is not None:
            place = self._places.of_stream(group.stream, group.group)
            return await self._groups.settle(place, verb, [one.receipt for one in parsed], reason)
        return await self._settle_in_feed(group.group, verb, parsed, reason)

    async def _settle_in_feed(self, group: str, verb: Verb, ack_ids: Sequence[AckId], reason: str) -> list[bool]:
        wanted = [(one.partition, one.receipt) for one in ack_ids if one.partition is not None]
        receipts: dict[int, list[Receipt]] = {}
        for partition, receipt in wanted:
            receipts.setdefault(partition, []).append(receipt)

        async def settle_in(partition: int) -> list[bool] | None:
            place = self._places.of_feed(partition, group)
            try:
                return await self._groups.settle(place, verb, receipts[partition], reason)
            except GroupNotFound:
                return None

        answers = dict(zip(receipts, await all_of(map(settle_in, receipts)), strict=True))
        if all(answer is None for answer in answers.values()):
            await self._check_that_feed_has(group)
        in_order = {partition: iter(answer or ()) for partition, answer in answers.items()}
        # Where a partition has no such group any more, nothing is pending.
        return [next(in_order[partition], False) for partition, _ in wanted]

    async def _check_that_feed_has(self, group: str) -> None:
        """Raise GroupNotFound where no partition has it."""
        logs = [self._places.of_feed(partition, group).log for partition in range(self._places.partitions)]
        if not any(group in (names or ()) for names in await all_of(map(self._states.names, logs))):
            raise GroupNotFound(group)

    def _parse(self, group: GroupName, i: int, text: str) -> AckId:
        field = f"{FIELD}[{i}]"
        try:
            ack_id = AckId.parse(text)
        except ValueError as error:
            raise InvalidField(field, f"{error}: give back an id of a message to this group unchanged") from None
        if (ack_id.partition is None) is (group.stream is None):
            theirs = "a stream" if ack_id.partition is None else "the lifecycle feed"
            raise InvalidField(field, f"is of a delivery from {theirs}, which is not what this group reads")
        if ack_id.partition is not None and ack_id.partition >= self._places.partitions:
            raise InvalidField(field, f"names partition {ack_id.partition}, the last is {self._places.partitions - 1}")
        return ack_id
