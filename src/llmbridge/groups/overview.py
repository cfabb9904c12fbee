"""How groups stand, and their end. A group of the lifecycle feed is one group, however many partitions it has."""

from collections.abc import Iterable
from dataclasses import dataclass

from llmbridge.errors import GroupNotFound, StreamNotFound
from llmbridge.groups.places import GroupName, GroupPlaces
from llmbridge.log.group_state import ConsumerState, GroupState, GroupStates
from llmbridge.log.groups import GroupPlace
from llmbridge.log.together import all_of
from llmbridge.model.names import StreamName


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group, and how it stands: on its stream, or in all partitions of the feed taken together."""

    name: str
    state: GroupState

    @property
    def idle_ms(self) -> int:
        """How long ago a consumer was last heard of; 0 without consumers."""
        return min((consumer.idle_ms for consumer in self.state.consumers), default=0)


class Overview:
    """Looks at groups and deletes them. All of it raises RedisUnavailable; what deletes, AppendOutcomeUnknown, too."""

    def __init__(self, states: GroupStates, places: GroupPlaces) -> None:
        self._states = states
        self._places = places

    async def get(self, group: GroupName) -> GroupView:
        """Tell how a group stands, in one consistent view of each partition. Raises GroupNotFound."""
        view = await self._look(group)
        if view is None:
            raise GroupNotFound(group.group)
        return view

    async def of_log(self, stream: StreamName | None) -> list[GroupView]:
        """Tell how all groups of a stream stand, or of the feed, by name. Raises StreamNotFound."""
        if stream is not None:
            names = await self._states.names(self._places.of_stream(stream, "").log)
            if names is None:
                raise StreamNotFound(stream)
        else:
            logs = [place.log for place in self._feed_places("")]
            names = [name for some in await all_of(map(self._states.names, logs)) for name in some or ()]
        # Others were deleted since their names were read.
        views = await all_of(self._look(GroupName(stream, name)) for name in sorted(set(names)))
        return [view for view in views if view is not None]

    async def delete(self, group: GroupName) -> None:
        """Delete a group; its members' calls end. Raises GroupNotFound."""
        if not any(await all_of(map(self._states.delete, self._places_of(group)))):
            raise GroupNotFound(group.group)

    async def _look(self, group: GroupName) -> GroupView | None:
        states = await all_of(map(self._states.state, self._places_of(group)))
        found = [state for state in states if isinstance(state, GroupState)]
        if not found:
            return None
        return GroupView(
            group.group,
            GroupState(
                settings=found[0].settings,
                pending=sum(state.pending for state in found),
                # Where a part of the feed has no such group yet, all of it will be delivered once it has.
                lag=sum(state.lag for state in states if state is not None),
                oldest_pending_ms=max(state.oldest_pending_ms for state in found),
                delivered_sequence=found[0].delivered_sequence,
                consumers=_together(consumer for state in found for consumer in state.consumers),
            ),
        )

    def _places_of(self, group: GroupName) -> list[GroupPlace]:
        if group.stream is not None:
            return [self._places.of_stream(group.stream, group.group)]
        return self._feed_places(group.group)

    def _feed_places(self, group: str) -> list[GroupPlace]:
        return [self._places.of_feed(partition, group) for partition in range(self._places.partitions)]


def _together(consumers: Iterable[ConsumerState]) -> tuple[ConsumerState, ...]:
    """A member of the feed's group is a consumer of the same name in many partitions."""
    found: dict[str, ConsumerState] = {}
    for one in consumers:
        before = found.get(one.name)
        if before is not None:
            one = ConsumerState(one.name, before.pending + one.pending, min(before.idle_ms, one.idle_ms))
        found[one.name] = one
    return tuple(found.values())
