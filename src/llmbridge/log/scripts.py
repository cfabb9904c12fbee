"""Calls the Lua scripts: by digest, and with the source where Redis does not have it. The only way to Lua."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import resources

from redis.exceptions import NoScriptError, ResponseError

from llmbridge.errors import RedisUnavailable
from llmbridge.log.exchange import Command, Reply

_CANT_SERVE_NOW = re.compile(
    r"(?:^|[ -])(?:OOM|READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|ASK|MOVED|NOREPLICAS|MISCONF|BUSY|NOPERM) "
    r"|attempted to access a non local key"
)
"""Errors with which Redis refuses a command before doing any of it, until somebody or time helps. A script's error
carries the code at its beginning (7.0) or after the place in the script (6.2). The last is what a script says that
looks at a key of a slot that is being moved."""


class Wake(Enum):
    """How the scripts wake readers (lua/wake_*.lua)."""

    PUBLISH = "publish"
    SPUBLISH = "spublish"
    AFTER = "after"
    """They answer {answer, [channel, message, …]} instead, to be published when replicas have what was stored."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script with the parts that it shares with others before it, woken up by in one way."""

    source: str
    digest: str

    def command(self, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Command:
        """Build the call by digest."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)

    def command_with_source(self, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Command:
        """Build the call that also makes Redis remember the script."""
        return ("EVAL", self.source, len(keys), *keys, *arguments)


Scripts = Mapping[Wake, Script]
"""One script, in each way of waking readers."""


def load_script(name: str, *shared: str) -> Scripts:
    """Read lua/<name>.lua, and put stream.lua and the other `shared` parts before it."""
    folder = resources.files("llmbridge.log") / "lua"

    def text(*parts: str) -> str:
        return "".join((folder / f"{part}.lua").read_text() for part in parts)

    def script(*parts: str) -> Script:
        source = text(*parts)
        return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

    proper = ("stream", *shared, name)
    return {
        Wake.PUBLISH: script("wake_publish", *proper),
        Wake.SPUBLISH: script("wake_spublish", *proper),
        Wake.AFTER: script("wake_after", *proper, "wake_after_end"),
    }


async def call_script(
    send: Callable[[Command], Awaitable[Reply]],
    script: Script,
    keys: Sequence[str],
    arguments: Sequence[str | bytes | int],
) -> Reply:
    """Run a script once. Raises RedisUnavailable where Redis refuses it for now, ResponseError where it is at fault."""
    reply = await send(script.command(keys, arguments))
    if isinstance(reply, NoScriptError):
        reply = await send(script.command_with_source(keys, arguments))
    return checked(reply)


def checked(reply: Reply) -> Reply:
    """Return a reply that is no error; raises as `call_script` does."""
    if isinstance(reply, ResponseError):
        raise error_of(reply)
    return reply


def error_of(reply: ResponseError) -> RedisUnavailable | ResponseError:
    """Tell what an error reply means."""
    # redis-py takes the code off the text of those errors that it has a class for.
    return refusal(f"{reply.status_code or ''} {reply}".lstrip()) or reply


def refusal(message: str) -> RedisUnavailable | None:
    """Tell whether an error means that Redis can't serve at present: nothing was done and trying again helps."""
    return RedisUnavailable(f"it answers: {message}") if _CANT_SERVE_NOW.search(message) else None
