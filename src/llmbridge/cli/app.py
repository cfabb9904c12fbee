"""The command line: which commands there are."""

from typing import Annotated

import typer

from llmbridge import __version__
from llmbridge.cli.serve import serve

app = typer.Typer(
    name="llmbridge",
    help="Carries language models' tokens from producers to readers: every token, once, in order, with an end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)


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


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
