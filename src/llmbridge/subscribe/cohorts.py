"""The cohorts of one call: which there are, who moves from one to another, and when one is let go."""

from collections.abc import Callable, Iterable

from llmbridge.subscribe.cohort import Cohort, Subscription
from llmbridge.subscribe.place import Place


class Cohorts:
    """Keeps those of the same stream together. `queue` is called with each that has news; `forget` with each that is
    let go, before its place is.
    """

    def __init__(self, queue: Callable[[Cohort], None], forget: Callable[[Cohort], None]) -> None:
        self._queue = queue
        self._forget = forget
        self._running: dict[str, list[Cohort]] = {}

    def new(self, place: Place) -> Cohort:
        """Make one that is to `run` as soon as it has members."""
        return Cohort(place, self._queue)

    def run(self, cohort: Cohort) -> None:
        """Count one among those that are not held."""
        cohort.siblings = self._running.setdefault(cohort.place.log, [])
        cohort.siblings.append(cohort)

    def leave(self, subscription: Subscription) -> None:
        """Take a member out of its cohort, which is let go with the last."""
        cohort = subscription.cohort
        cohort.remove(subscription)
        if not cohort.members:
            self._dissolve(cohort)

    def join_another(self, cohort: Cohort) -> None:
        """Put those together that have come to stand at the same place."""
        for other in cohort.siblings:
            if other is not cohort and other.attached and other.place.stands_with(cohort.place):
                self._move(tuple(cohort.members.values()), other)
                return

    def hold_spent(self, cohort: Cohort, now: float) -> None:
        """Set those members aside whose credit is used up."""
        spent = cohort.spent()
        if not spent:
            return
        if len(spent) < len(cohort.members):
            held = self._fork(cohort)
            self._move(spent, held)
        else:
            held = cohort
            self._set_aside(cohort)
        held.held = True
        for subscription in spent:
            subscription.held_at = now

    def add_credit(self, subscription: Subscription, size: int) -> None:
        """Give a member more credit, with which it goes on from where it stands."""
        cohort = subscription.cohort
        if not cohort.add_credit(subscription, size) or not cohort.held:
            return
        for other in self._running.get(cohort.place.log, ()):
            if other.attached and other.place.stands_with(cohort.place):
                self._move((subscription,), other)
                return
        if len(cohort.members) == 1:
            cohort.held = False
        else:
            cohort = self._fork(cohort)
            self._move((subscription,), cohort)
        self.run(cohort)
        cohort.changed()

    def _move(self, subscriptions: Iterable[Subscription], to: Cohort) -> None:
        for subscription in subscriptions:
            origin = subscription.cohort
            self.leave(subscription)
            to.add(subscription)
            assert origin is not to, "who moves goes elsewhere"

    def _fork(self, cohort: Cohort) -> Cohort:
        fork = Cohort(cohort.place.fork(), self._queue)
        fork.attached = True
        fork.place.listen(fork.changed)
        return fork

    def _dissolve(self, cohort: Cohort) -> None:
        """Let go of what one without members holds; what a task works on, that task will."""
        if not cohort.held:
            self._set_aside(cohort)
        self._forget(cohort)
        if not cohort.busy:
            cohort.place.detach()

    def _set_aside(self, cohort: Cohort) -> None:
        cohort.siblings.remove(cohort)
        if not cohort.siblings:
            del self._running[cohort.place.log]
