"""Calls the Lua scripts: by digest, and with the source where Redis does not have it. The only way to Lua."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import resources

from redis.exceptions import NoScriptError, ResponseError

from llmbridge.errors import RedisUnavailable
from llmbridge.log.exchange import Command, Reply

_CANT_SERVE_NOW = re.compile(
    r"(?:^|[ -])(OOM|READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|MISCONF|BUSY|NOPERM) "
)
"""Error codes with which Redis refuses a command before doing any of it, until somebody or time helps. A script's
error carries the code at its beginning (7.0) or after the place in the script (6.2)."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script with the parts that it shares with others before it."""

    name: str
    source: str
    digest: str

    def command(self, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Command:
        """Build the call by digest."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)

    def command_with_source(self, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Command:
        """Build the call that also makes Redis remember the script."""
        return ("EVAL", self.source, len(keys), *keys, *arguments)


def load_script(name: str, *shared: str) -> Script:
    """Read lua/<name>.lua, and put stream.lua and the other `shared` parts before it."""
    folder = resources.files("llmbridge.log") / "lua"
    source = "".join((folder / f"{part}.lua").read_text() for part in ("stream", *shared, name))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


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
        # redis-py takes the code off the text of those errors that it has a class for.
        raise refusal(f"{reply.status_code or ''} {reply}".lstrip()) or reply
    return reply


def refusal(message: str) -> RedisUnavailable | None:
    """Tell whether an error means that Redis can't serve at present: nothing was done and trying again helps."""
    return RedisUnavailable(f"it answers: {message}") if _CANT_SERVE_NOW.search(message) else None
