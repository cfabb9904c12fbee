"""A worker's side of the supervision: serves as assigned, and tells what becomes of it."""

from collections.abc import Callable

from llmbridge.log.partitions import PartitionMismatch
from llmbridge.server.assignment import Assignment, Said, State
from llmbridge.server.embedded_redis import EmbeddedRedisError
from llmbridge.server.http import HttpCannotStart
from llmbridge.server.run import run
from llmbridge.server.starting import CannotStart, first_of
from llmbridge.telemetry.tracing import TracingNotInstalled

CANNOT_START = (CannotStart, EmbeddedRedisError, HttpCannotStart, PartitionMismatch, TracingNotInstalled)
"""All that keeps a bridge from starting; each says in a line what to change."""


class WorkerCannotStart(Exception):
    """The supervisor was told why."""


async def serve(assignment: Assignment, say: Callable[[Said], object]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises WorkerCannotStart."""
    has_http = assignment.settings.http_port is not None

    def ready(_: int) -> None:
        say(Said(State.READY))

    def tell_serving(serving: bool) -> None:
        say(Said(State.SERVING if serving else State.NOT_SERVING))

    try:
        await run(
            assignment.settings,
            announce=(lambda _: None) if has_http else ready,
            announce_http=ready,
            place=assignment.place,
            tell_serving=tell_serving,
        )
    except* CANNOT_START as group:
        why = str(first_of(group))
        say(Said(None, why))
        raise WorkerCannotStart(why) from None
