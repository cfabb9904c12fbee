"""`llmbridge watch`: print the lifecycle feed as a member of a group, acknowledging each event once it is printed."""

import asyncio
import sys
from typing import Annotated

import typer

from llmbridge.cli.errors import reporting, say
from llmbridge.cli.messages import moment, word_of
from llmbridge.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    RetryFor,
    bridge_client,
    check_text,
    path_of,
    tell_if_not_serving,
    words_of,
)
from llmbridge.cli.printing import json_line, visible
from llmbridge.client import Sealer, StreamEvent

_OWN_GROUP = "llmbridge-watch"


def watch(
    group: Annotated[
        str,
        typer.Option(
            callback=check_text,
            help="The group whose events these are; what is printed here, no other member of it gets.",
        ),
    ] = _OWN_GROUP,
    consumer: Annotated[str, typer.Option(callback=check_text, help="This member's name; empty: a random one.")] = "",
    as_json: AsJson = False,
    address: Address = DEFAULT_ADDRESS,
    retry_for: RetryFor = 30.0,
) -> None:
    """Print which streams begin and end, as they do, and acknowledge each event.

    Begins where the group stands: with the oldest event that is kept when it is new. Each event is printed before it is
    acknowledged, so that none is lost; after a failure some may come twice. With --json each line is a LifecycleEvent.

    Exit codes: 4 no answer from the bridge, 5 the group was deleted, 130 Ctrl-C.
    """
    with reporting(address):
        asyncio.run(_run(group, consumer, as_json, address, retry_for))


async def _run(group: str, consumer: str, as_json: bool, address: str, retry_for: float) -> None:
    async with bridge_client(address, retry_for) as client:
        await tell_if_not_serving(client, retry_for)
        missed = 0
        async with client.watch(group, consumer=consumer, retry_for=retry_for) as events:
            async for event in events:
                if events.missed > missed:
                    say(f"{events.missed - missed} events are gone, for their age, that nobody of the group got")
                    missed = events.missed
                line = json_line(event.info) if as_json else _line(event)
                sys.stdout.buffer.write(f"{line}\n".encode())
                sys.stdout.buffer.flush()
                await event.acknowledge()


def _line(event: StreamEvent) -> str:
    info = event.info
    head = f"{moment(info.recorded_ms)} {'completed' if event.completed else 'created'} {path_of(event.stream)}"
    completion, finish_reason = event.completion, event.finish_reason
    if completion is None or finish_reason is None:
        return visible(head)
    parts = [words_of(finish_reason), f"{info.tokens} tokens", f"{(info.recorded_ms - info.created_ms) / 1000:.1f} s"]
    sealer = word_of(Sealer, info.sealer) or "somebody else"
    if sealer != "producer":
        parts.append(f"sealed by {sealer}")
    if completion.error_message:
        parts.append(" ".join(completion.error_message.split()))
    return visible(f"{head}: {', '.join(parts)}")
