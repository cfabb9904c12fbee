"""Shows rows of values: a table on a terminal, tab-separated lines in a pipe. Knows nothing of what they mean."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "print_lines", "show_rows"]

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Column(Generic[_Row]):
    """One thing that is told of each row; `plain` is for programs."""

    name: str
    plain: Callable[[_Row], str | int]
    for_people: Callable[[_Row], str] | None = None
    """If people are told it in other words."""
    right: bool = False
    folds: bool = False
    """Whether it may take several lines where there is little room."""
    brief: bool = True
    """Whether it is told also where many rows are compared; else only where a single one is looked at."""

    def cell(self, row: _Row) -> Text:
        """What people are told."""
        return Text(str(self.plain(row)) if self.for_people is None else self.for_people(row))


def print_lines(lines: Iterable[str]) -> None:
    """Prints lines for programs, as UTF-8 whatever the locale says. BrokenPipeError when nobody reads them."""
    sys.stdout.buffer.writelines(f"{line}\n".encode() for line in lines)
    sys.stdout.buffer.flush()


def show_rows(rows: Sequence[_Row], columns: Sequence[Column[_Row]], *, single: bool = False) -> None:
    """Prints the rows: all columns in a pipe; on a terminal the brief ones, or all of them if it is a `single` row."""
    if not sys.stdout.isatty():
        # No id can hold a tab or a line's end: the bridge refuses control characters.
        print_lines("\t".join(str(column.plain(row)) for column in columns) for row in rows)
    elif single:
        _show_details(rows, columns)
    elif rows:
        _show_table(rows, [column for column in columns if column.brief])


def _show_table(rows: Sequence[_Row], columns: Sequence[Column[_Row]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not column.folds,
            min_width=len(column.name),
        )
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    Console(highlight=False).print(table)


def _show_details(rows: Sequence[_Row], columns: Sequence[Column[_Row]]) -> None:
    for row in rows:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for column in columns:
            table.add_row(column.name, column.cell(row))
        Console(highlight=False).print(table)
