"""A wall clock that can be set, for one process: a few lines of C between it and the kernel, where a compiler is.

The monotonic clock is left alone, as it is when somebody sets a machine's clock.
"""

import shutil
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.redis_process import Binary

MISSING = "it takes Linux and a C compiler (cc) to put a process' clock off"

_SOURCE = Path(__file__).with_name("clock.c")


def compiler() -> str | None:
    """The C compiler; None where clocks can't be put off."""
    return shutil.which("cc") if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Clock:
    """The setting of a process' clock, in a file that the process shares."""

    directory: Path

    @classmethod
    def make(cls, directory: Path, compiler: str) -> "Clock":
        """Prepare one. Raises CalledProcessError if the compiler fails."""
        clock = cls(directory)
        clock._file.write_bytes(bytes(8))
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(clock._library), str(_SOURCE)]
        subprocess.run(command, check=True, timeout=30)
        return clock

    def set(self, offset_seconds: float) -> None:
        """Have the process' clock be off by so much, from now on."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", round(offset_seconds * 1e9)))

    def wrap(self, binary: Binary) -> Binary:
        """Make a program that runs this one with this clock."""
        script = self.directory / "with-clock.sh"
        script.write_text(
            f"#!/bin/sh\nexport LD_PRELOAD='{self._library}' CHAOS_CLOCK='{self._file}'\nexec '{binary.path}' \"$@\"\n"
        )
        script.chmod(0o755)
        return Binary(binary.name, script)

    @property
    def _file(self) -> Path:
        return self.directory / "clock"

    @property
    def _library(self) -> Path:
        return self.directory / "clock.so"


def offset_of(now: tuple[int, int]) -> float:
    """How far off a clock is that shows these seconds and microseconds."""
    return now[0] + now[1] / 1e6 - time.time()
