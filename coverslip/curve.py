"""Curves of a training as CSV files: a row of figures for each of some steps, `step` first."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from coverslip.durable import replace_file


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """One row more; the first brings the names with it."""
    begin = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if begin:
            writer.writeheader()
        writer.writerow({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()})


def drop_rows_behind(path: Path, step: int) -> None:
    """Without the rows of steps that are going to be done again; nothing where there is no file."""
    if not path.exists():
        return
    head, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [row for row in rows if int(row.partition(",")[0]) <= step]
    replace_file(path, "".join([head, *kept]).encode())


def log_rows(path: Path) -> Iterator[dict[str, float]]:
    """The rows, in order."""
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {name: float(value) for name, value in row.items()}
