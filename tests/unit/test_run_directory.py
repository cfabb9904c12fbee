"""Directories for sockets: private, gone at the end, and those of killed processes removed by whoever is next."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmbridge.server.run_directory import socket_directory

_KILLED = """
import os, signal, socket
from llmbridge.server.run_directory import socket_directory

with socket_directory("a.sock") as directory:
    socket.socket(socket.AF_UNIX).bind(str(directory / "a.sock"))
    print(directory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where they are made; pytest's own paths are too long for sockets."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(directory)
    tempfile.tempdir = None


def _left_by_a_killed_process() -> Path:
    process = subprocess.run([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True, timeout=30)
    assert process.returncode == -9
    directory = Path(process.stdout.strip())
    assert [entry.name for entry in directory.iterdir()] == ["a.sock"]
    return directory


def test_only_this_user_can_enter_it_and_it_is_gone_at_the_end(parent: Path) -> None:
    with socket_directory("a.sock") as directory:
        assert directory.parent == parent
        assert directory.stat().st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "a.sock"))
    assert list(parent.iterdir()) == []


def test_what_killed_processes_left_is_removed_by_the_next(parent: Path) -> None:
    left = [_left_by_a_killed_process()]
    # The one that is killed next removes the first.
    left.append(_left_by_a_killed_process())
    assert list(parent.iterdir()) == left[1:]
    with socket_directory("a.sock") as directory:
        assert list(parent.iterdir()) == [directory]


def test_one_in_use_stays(parent: Path) -> None:
    with socket_directory("a.sock") as first, socket_directory("a.sock") as second:
        assert sorted(parent.iterdir()) == sorted([first, second])


def test_what_is_not_ours_stays(parent: Path) -> None:
    with_a_file = parent / "llmbridge-s-file"
    with_a_file.mkdir(mode=0o700)
    (with_a_file / "kept").touch()
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir()
    link = parent / "llmbridge-s-link"
    link.symlink_to(elsewhere)
    other_kind = parent / "llmbridge-abcdefgh"
    other_kind.mkdir()
    file = parent / "llmbridge-s-plain"
    file.touch()
    with socket_directory("a.sock"):
        pass
    assert (with_a_file / "kept").exists()
    assert set(parent.iterdir()) == {with_a_file, elsewhere, link, other_kind, file}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_another_users_stays(parent: Path) -> None:
    others = parent / "llmbridge-s-other"
    others.mkdir()
    os.chown(others, 12345, 12345)
    with socket_directory("a.sock"):
        pass
    assert others.exists()


def test_one_that_was_removed_before_it_was_locked_is_made_again(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = tempfile.mkdtemp
    made: list[str] = []

    def make_and_lose(**where: str) -> str:
        made.append(make(**where))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    with socket_directory("a.sock") as directory:
        assert [Path(path) == directory for path in made] == [False, True]
        assert directory.is_dir()
