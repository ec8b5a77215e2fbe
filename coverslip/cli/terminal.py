"""What commands share in showing things: a console, a plain table, an error line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from coverslip.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 240
"""Columns of a table that goes into a file or a pipe, where nothing should be cut off."""


def console() -> Console:
    """Standard output as rich sees it; wide where it is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """A table on standard output; cells are taken as plain text, on one line each."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console().print(table)


def print_error(error: Exception) -> None:
    """One failure among several, on standard error."""
    print(f"coverslip: {error}", file=sys.stderr)
