"""The command line: which commands there are. A command's code is loaded when the command is run, and not before.

So `llmbridge --help` needs none of them, and `llmbridge health` neither a server nor a model.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from llmbridge import __version__
from llmbridge.cli.standard_streams import open_missing


@dataclass(frozen=True, slots=True)
class _Listed:
    """A command as the list of commands has it: its module has a function of its name, or for a group `app`."""

    name: str
    summary: str
    attribute: str

    @property
    def module(self) -> str:
        """Where it is."""
        return f"llmbridge.cli.{self.name.replace('-', '_')}"

    def load(self) -> Any:
        """The command itself."""
        found = getattr(import_module(self.module), self.attribute)
        if isinstance(found, typer.Typer):
            return get_command(found)
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(self.name)(found)
        return get_command(alone)


COMMANDS = {
    listed.name: listed
    for listed in (
        _Listed("serve", "Run a bridge until SIGTERM or Ctrl-C.", "serve"),
        _Listed("gateway", "Serve a bridge over HTTP until SIGTERM or Ctrl-C.", "gateway"),
        _Listed(
            "demo",
            "Show the main job: a model's answer reaches two readers, one of which is cut off and resumes.",
            "demo",
        ),
        _Listed("produce", "Pipe standard input, or a model's answer, into a stream as it arrives.", "produce"),
        _Listed("tail", "Print a stream as it arrives, until its end.", "tail"),
        _Listed("watch", "Print which streams begin and end, as they do, and acknowledge each event.", "watch"),
        _Listed("streams", "List, inspect, create, trim, delete and cancel streams.", "app"),
        _Listed("groups", "List, show and delete consumer groups, and list their consumers.", "app"),
        _Listed("dead-letters", "List, redrive and delete dead letters: what no member of a group settled.", "app"),
        _Listed("connections", "List, count and end the connections of one bridge.", "app"),
        _Listed("health", "Ask a bridge whether it serves.", "health"),
    )
}


class _Commands(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Replace the list's command, which is all that help needs, by the one to be run."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, COMMANDS[name].load() if name in COMMANDS else command, rest


app = typer.Typer(
    cls=_Commands,
    name="llmbridge",
    help="Carries language models' tokens from producers to readers: every token, once, in order, with an end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Rich's markup would take what is written in brackets, and keep the line ends of docstrings.
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version


def _not_loaded() -> None:
    raise AssertionError("a command is loaded before it is run")


for _listed in COMMANDS.values():
    app.command(_listed.name, help=_listed.summary)(_not_loaded)


def main() -> None:
    """Run the command line."""
    open_missing()
    app()


if __name__ == "__main__":
    main()
