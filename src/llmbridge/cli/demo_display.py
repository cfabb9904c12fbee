"""How the demo looks: two panes that fill as tokens arrive on a terminal, plain lines anywhere else, and the result.

Shows what it is told and decides nothing; knows no network, no streams and no checks' rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from llmbridge.cli.demo_checks import Check, Figures

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "make_display", "show_result"]

# Smooth to the eye; each drawing takes the event loop's interpreter away for some milliseconds.
_DRAWINGS_PER_SECOND = 10
_LINES_AROUND_PANES = 8
_FEWEST_LINES = 4
_PLAIN_WIDTH = 96
# What a model says must not be able to steer the terminal.
_HARMLESS = dict.fromkeys((*range(32), 127, *range(128, 160))) | {ord("\n"): "\n", ord("\t"): " "}


class Display(Protocol):
    """What the demo tells whoever watches."""

    def step(self, line: str) -> None:
        """Something was set up, or happened to all."""

    def begin(self, model: str, prompt: str, readers: Sequence[str]) -> None:
        """The prompt goes to the model now, and these readers wait for the answer."""

    def sent(self) -> None:
        """A token went from the model to the bridge."""

    def received(self, reader: str, text: str) -> None:
        """A reader received a piece of the answer."""

    def status(self, reader: str, status: str) -> None:
        """Something happened to a reader."""

    def end(self) -> None:
        """The readers are done, or the demo was stopped. Begin may not have been called."""


def make_display(console: Console) -> Display:
    """Chooses how to show the demo: live on a terminal, else in plain lines."""
    return LiveDisplay(console) if console.is_terminal and not console.is_dumb_terminal else PlainDisplay(console)


class PlainDisplay:
    """Lines for a log or a pipe: every reader's text as it comes, a line when it is full."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._unfinished: dict[str, str] = {}

    def step(self, line: str) -> None:
        """Print it."""
        self._print(f"· {line}")

    def begin(self, model: str, prompt: str, readers: Sequence[str]) -> None:
        """Print the prompt."""
        self._unfinished = dict.fromkeys(readers, "")
        self._print(f"prompt to {model}: {prompt}")

    def sent(self) -> None:
        """Show nothing: the readers' lines tell."""

    def received(self, reader: str, text: str) -> None:
        """Print the lines that this completes."""
        self._unfinished[reader] += text.translate(_HARMLESS)
        while line := self._full_line(reader):
            self._print(f"{reader} | {line}")

    def status(self, reader: str, status: str) -> None:
        """Print what the reader has so far, then the status."""
        self._flush(reader)
        self._print(f"{reader} : {status}")

    def end(self) -> None:
        """Print what is left."""
        for reader in self._unfinished:
            self._flush(reader)

    def _full_line(self, reader: str) -> str:
        """Take a line of text that has come to its end or its full width."""
        text = self._unfinished[reader].lstrip("\n")
        line, end_of_line, rest = text.partition("\n")
        if len(line) > _PLAIN_WIDTH:
            space = line.rfind(" ", 0, _PLAIN_WIDTH)
            width = space + 1 if space > 0 else _PLAIN_WIDTH
            line, rest = text[:width], text[width:]
        elif not end_of_line:
            line, rest = "", text
        self._unfinished[reader] = rest
        return line

    def _flush(self, reader: str) -> None:
        text = self._unfinished[reader]
        if text.strip("\n"):
            self._print(f"{reader} | {text}")
        self._unfinished[reader] = ""

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


class LiveDisplay:
    """Panes side by side, one for each reader, drawn anew ten times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._model = ""
        self._prompt = ""
        self._sent = 0
        self._texts: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._statuses: dict[str, str] = {}

    def step(self, line: str) -> None:
        """Print it above the panes."""
        self._console.print(Text(f"· {line}", style="dim"))

    def begin(self, model: str, prompt: str, readers: Sequence[str]) -> None:
        """Open the panes."""
        self._model, self._prompt = model, prompt
        self._texts = dict.fromkeys(readers, "")
        self._counts = dict.fromkeys(readers, 0)
        self._statuses = dict.fromkeys(readers, "waiting for the first token")
        self._live = Live(self, console=self._console, refresh_per_second=_DRAWINGS_PER_SECOND)
        self._live.start()

    def sent(self) -> None:
        """Count it."""
        self._sent += 1

    def received(self, reader: str, text: str) -> None:
        """Add it to the reader's pane."""
        if not self._counts[reader]:
            self._statuses[reader] = "live"
        self._texts[reader] += text.translate(_HARMLESS)
        self._counts[reader] += 1

    def status(self, reader: str, status: str) -> None:
        """Show it at the foot of the reader's pane."""
        self._statuses[reader] = status

    def end(self) -> None:
        """Leave the panes as they are."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = max(1, len(self._texts))
        width = max(16, options.max_width // columns - 4)
        height = max(_FEWEST_LINES, console.height - _LINES_AROUND_PANES)
        panes = Table.grid(expand=True)
        for _ in self._texts:
            panes.add_column(ratio=1)
        panes.add_row(*(self._pane(console, reader, width, height) for reader in tuple(self._texts)))
        prompt = Text.assemble(("prompt  ", "bold"), self._prompt)
        yield Group(prompt, Text(f"{self._model} has sent {self._sent} tokens", style="dim"), panes)

    def _pane(self, console: Console, reader: str, width: int, height: int) -> Panel:
        status = self._statuses[reader]
        lines = Text(self._texts[reader]).wrap(console, width)
        # The end of the text is where it grows.
        shown = Text("\n").join(lines[-height:])
        return Panel(
            shown,
            title=Text(f"{reader}  {self._counts[reader]} tokens"),
            subtitle=Text(status),
            height=height + 2,
            border_style="red" if status.startswith("cut") else "green",
        )


def show_result(
    console: Console, results: Sequence[tuple[str, Figures, Sequence[Check]]], *, not_shown: str = ""
) -> None:
    """Prints each reader's figures, every check with what is wrong if anything is, and PASS or FAIL.

    `not_shown` says what there was no occasion for; it makes no difference to the verdict.
    """
    table = Table(box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for reader, _, _ in results:
        table.add_column(reader, justify="right")
    readings = [figures for _, figures, _ in results]
    table.add_row("tokens received", *(str(f.tokens) for f in readings))
    table.add_row("time to first token, from the prompt", *(_milliseconds(f.first_token_ms) for f in readings))
    table.add_row("delivery, Produce to receipt: p50", *(_milliseconds(f.p50_ms) for f in readings))
    table.add_row("delivery, Produce to receipt: p99", *(_milliseconds(f.p99_ms) for f in readings))
    table.add_row("connection cut after token", *(str(f.cut.after) if f.cut else "–" for f in readings))
    table.add_row("away for", *(_milliseconds(f.cut.away_seconds * 1e3) if f.cut else "–" for f in readings))
    table.add_row("tokens that came meanwhile", *(str(f.cut.missed) if f.cut else "–" for f in readings))
    console.print(table)
    for reader, _, checks in results:
        for check in checks:
            mark, style = ("✓", "green") if check.passed else ("✗", "bold red")
            problem = "" if check.passed else f": {check.problem}"
            console.print(Text(f"{mark} {reader}: {check.what}{problem}", style=style), soft_wrap=True)
    if not_shown:
        console.print(Text(f"– {not_shown}", style="yellow"), soft_wrap=True)
    passed = all(check.passed for _, _, checks in results for check in checks)
    console.print(Text("PASS" if passed else "FAIL", style="bold green" if passed else "bold red"))


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f} ms"
