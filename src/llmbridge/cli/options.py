"""Arguments and options that several commands share, and the client that is made of them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, TypeVar

import typer

from llmbridge.cli.errors import reporting, say
from llmbridge.client import Client, ClientError, FinishReason, RetryPolicy, StreamName, Unavailable
from llmbridge.client.connection import grpc_target

__all__ = [
    "DEFAULT_ADDRESS",
    "Address",
    "AsJson",
    "Model",
    "Response",
    "RetryFor",
    "Session",
    "Timeout",
    "ask_bridge",
    "bridge_client",
    "check_address",
    "check_text",
    "path_of",
    "tell_if_not_serving",
    "words_of",
]

DEFAULT_ADDRESS = "127.0.0.1:50051"

# One attempt of a request may take so long; a bridge that is well answers within milliseconds.
_ATTEMPT_SECONDS = 5.0

_Answer = TypeVar("_Answer")


def check_text(text: str | None) -> str | None:
    """Refuses what the shell gave as bytes that are not UTF-8."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("is not UTF-8") from None
    return text


def check_address(address: str) -> str:
    """Refuses what is no address of a bridge. Raises typer.BadParameter, saying what to give instead."""
    if not address.strip() or address.startswith(("http://", "https://")):
        # gRPC would take it for a name, and look for that for ever.
        raise typer.BadParameter(f"{address!r} is no address of a bridge: give host:port")
    try:
        grpc_target(address)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return address


Session = Annotated[str, typer.Argument(metavar="SESSION", callback=check_text, help="The conversation.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", callback=check_text, help="The model that answers.")]
Response = Annotated[
    str, typer.Option("--response", callback=check_text, help="Which of its answers; may be left empty.")
]
Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="LLMBRIDGE_ADDRESS",
        callback=check_address,
        help="The bridge: host:port, or several ip:port divided by commas.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON, one object a line: the contract's messages in protobuf's JSON form.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the bridge, trying again included.")
]
RetryFor = Annotated[
    float, typer.Option("--retry-for", min=0.1, help="Seconds that the bridge may be unreachable or not serving.")
]


def path_of(stream: StreamName) -> str:
    """A stream's name for people."""
    return "/".join(part for part in (stream.session_id, stream.model_id, stream.response_id) if part)


def words_of(finish_reason: FinishReason) -> str:
    """A finish reason for people."""
    return finish_reason.name.lower().replace("_", " ")


def bridge_client(address: str, give_up_after: float) -> Client:
    """Makes a client that gives a request up after so many seconds."""
    return Client(
        address, retry=RetryPolicy(attempt_timeout=min(_ATTEMPT_SECONDS, give_up_after), give_up_after=give_up_after)
    )


def ask_bridge(
    address: str,
    timeout: float,
    question: Callable[[Client], Awaitable[_Answer]],
    hints: Mapping[type[ClientError], str] | None = None,
) -> _Answer:
    """Runs `question` with a client; its errors end the command (see `reporting`)."""

    async def run() -> _Answer:
        async with bridge_client(address, timeout) as client:
            return await question(client)

    with reporting(address, hints or {}):
        return asyncio.run(run())


async def tell_if_not_serving(client: Client, retry_for: float) -> None:
    """Tells the person why nothing happens, if so; what follows tries by itself for `retry_for` seconds."""
    try:
        serving = await client.is_serving()
    except Unavailable as error:
        say(f"no answer from a bridge at {client.address} ({error.message}); trying for {retry_for:g} s")
    else:
        if not serving:
            say(f"the bridge at {client.address} can't serve at present; trying for {retry_for:g} s")
