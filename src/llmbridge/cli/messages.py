"""Shows what the bridge answers: the contract's messages as rows or JSON, its enums and times in words."""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import TypeVar

from google.protobuf.message import Message

from llmbridge.cli.errors import quiet_when_unread, say
from llmbridge.cli.options import ask_bridge
from llmbridge.cli.printing import json_line
from llmbridge.cli.tables import Column, print_lines, show_rows
from llmbridge.client import Client

__all__ = ["duration", "list_messages", "moment", "show_messages", "word_of"]

_LARGEST_PAGE = 1_000

_M = TypeVar("_M", bound=Message)


def list_messages(
    address: str,
    timeout: float,
    messages: Callable[[Client, int], AsyncIterator[_M]],
    columns: Sequence[Column[_M]],
    *,
    limit: int,
    as_json: bool,
    none: str,
) -> None:
    """Prints the first `limit` of the messages that a client lists, by pages of the size that it is told.

    On standard error it says whether there are more, and `none` where there is none.
    """

    async def first(client: Client) -> list[_M]:
        found: list[_M] = []
        # One more than is shown, to know whether there is more.
        async for message in messages(client, min(limit + 1, _LARGEST_PAGE)):
            found.append(message)
            if len(found) > limit:
                break
        return found

    found = ask_bridge(address, timeout, first)
    show_messages(found[:limit], columns, as_json=as_json)
    if not found:
        say(none)
    elif len(found) > limit:
        say(f"only the first {limit} are shown; --limit shows more")


def show_messages(
    messages: Sequence[_M], columns: Sequence[Column[_M]], *, as_json: bool, single: bool = False
) -> None:
    """Prints messages, as JSON or as `show_rows` does."""
    with quiet_when_unread():
        if as_json:
            print_lines(json_line(message, all_fields=True) for message in messages)
        else:
            show_rows(messages, columns, single=single)


def word_of(kind: type[IntEnum], number: int) -> str:
    """A value of one of the contract's enums; empty for none, and for one that a newer bridge has added."""
    return next((member.name.lower() for member in kind if member and member == number), "")


def moment(ms: int) -> str:
    """A time in ms since the Unix epoch, for people here."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC).astimezone():%m-%d %H:%M:%S}"


def duration(ms: int) -> str:
    """A span of time in ms, for people."""
    return str(timedelta(seconds=ms // 1000))
