"""Makes directories for Unix sockets: private, temporary, and with a path that such a socket can have."""

import os
import tempfile
from pathlib import Path
from typing import Final

_PREFIX: Final = "llmbridge-"
_RANDOM_BYTES_OF_MKDTEMP: Final = 8
_MAX_SOCKET_PATH_BYTES: Final = 100
"""macOS allows 103 bytes, Linux 107."""


def make_run_directory(longest_name: str) -> Path:
    """Make a directory that only this user can enter (mkdtemp makes it 0700), for sockets with names up to that one."""
    parent = tempfile.gettempdir()
    below = len(f"/{_PREFIX}/{longest_name}") + _RANDOM_BYTES_OF_MKDTEMP
    if len(os.fsencode(parent)) + below > _MAX_SOCKET_PATH_BYTES:
        parent = "/tmp"  # noqa: S108 - only as the parent of a directory that mkdtemp makes
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
