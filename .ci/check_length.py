"""Checks that no file of the code base has grown beyond what one sitting can read; edits nothing.

Counts every text file under the code folders, of whatever language. Generated code is left out, and so is what
programs leave there: caches and benchmark results.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "benchmarks")
MOST_LINES = 400


def is_written_by_hand(path: Path) -> bool:
    """Whether the rule holds for ``path``, which is relative to the repository."""
    left_behind = {"__pycache__", "node_modules"} & set(path.parts) or path.is_relative_to("benchmarks/results")
    return not left_behind and "_pb2" not in path.name and path.name != "package-lock.json"


def count_lines(path: Path) -> int:
    """Count the lines of a text file; 0 when it is not text."""
    try:
        return len(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError:
        return 0


def main() -> int:
    """Name the files that are too long; returns the exit code."""
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
    lengths = {path.relative_to(ROOT): path for path in files}
    too_long = [
        (path, lines)
        for path, file in lengths.items()
        if is_written_by_hand(path) and (lines := count_lines(file)) > MOST_LINES
    ]
    for path, lines in too_long:
        print(f"{path}: {lines} lines, more than {MOST_LINES}; split it by subject", file=sys.stderr)
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
