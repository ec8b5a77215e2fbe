"""Tables from files as columns of text: CSV, TSV and Parquet.

Everything is text, so that "007" stays a name; whoever wants numbers asks for them.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from coverslip.errors import InvalidConfig, printable

Texts = tuple[str | None, ...]
MISSING = frozenset(
    ["", "#N/A", "#NA", "N/A", "n/a", "NA", "<NA>", "NULL", "null", "NaN", "nan", "-NaN", "-nan"]
)
"""Cells that say that nothing is known."""
DELIMITERS = (",", ";", "\t")
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How .xlsx and .ods, and .xls, begin."""
WIDE = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


def read_table(path: str | PathLike[str]) -> tuple[dict[str, Texts], list[int]]:
    """Columns by name, None where a cell is missing, and the line (of Parquet, the row from 1) on
    which each row begins.

    Raises InvalidConfig: unreadable, empty, not UTF-8, no rectangle, columns of one name.
    """
    name = fspath(path)
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise problem(name, f"cannot be read: {error.strerror or error}") from None
    if content.startswith(b"PAR1"):
        return _parquet(name, content)
    if content.startswith(WORKBOOKS):
        raise problem(name, "is a workbook, not a table", "export the sheet as CSV (UTF-8)")
    return _separated(name, content)


def problem(path: str, what: str, hint: str = "") -> InvalidConfig:
    """The error about a table."""
    return InvalidConfig(f"{printable(path)}: {what}" + (f"\n  {hint}" if hint else ""))


def _separated(path: str, content: bytes) -> tuple[dict[str, Texts], list[int]]:
    text = _decoded(path, content)
    head = next(iter(text.splitlines()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, head))
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    before = 0
    try:
        for row in reader:
            line, before = before + 1, reader.line_num
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = [cell.strip() for cell in row]
            elif len(row) != len(header):
                raise problem(
                    path,
                    f"line {line} has {len(row)} cells, the first line {len(header)}",
                    "quote cells that hold the delimiter, or a line's end",
                )
            else:
                rows.append(row)
                lines.append(line)
    except csv.Error as error:
        raise problem(path, f"line {reader.line_num} cannot be parsed: {error}") from None
    _check_header(path, header, len(rows))
    columns = zip(*rows, strict=True)
    return {k: tuple(map(_cell, c)) for k, c in zip(header, columns, strict=True)}, lines


def _decoded(path: str, content: bytes) -> str:
    hint = "save it as CSV UTF-8"
    for mark, encoding in WIDE:
        if content.startswith(mark):
            raise problem(path, f"is {encoding}, not UTF-8", hint)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise problem(path, f"line {line} is not UTF-8", hint) from None
    if "\0" in text:
        raise problem(path, "is no text: it holds zero bytes", hint)
    return text


def _delimiter(path: str, head: str) -> str:
    """Tab where the name says so; else what cuts the first line into most cells."""
    if Path(path).suffix.lower() in (".tsv", ".tab"):
        return "\t"
    return max(DELIMITERS, key=lambda d: len(next(csv.reader([head], delimiter=d), [])))


def _cell(text: str) -> str | None:
    stripped = text.strip()
    return None if stripped in MISSING else stripped


def _check_header(path: str, header: Sequence[str], rows: int) -> None:
    if not header or not rows:
        raise problem(path, "holds no rows" if header else "is empty")
    twice = [name for name, times in Counter(header).items() if times > 1 and name]
    if twice:
        raise problem(path, f"has several columns named {', '.join(map(repr, twice))}")
    if "" in header:
        raise problem(path, f"column {header.index('') + 1} has no name")


def _parquet(path: str, content: bytes) -> tuple[dict[str, Texts], list[int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise problem(path, f"cannot be read as Parquet ({error})") from None
    _check_header(path, table.column_names, table.num_rows)
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.to_pylist()
        if any(isinstance(value, bytes | list | dict | tuple) for value in values):
            raise problem(path, f"column {name!r} is {column.type}, not text or numbers")
        columns[name] = tuple(map(_text, values))
    return columns, list(range(1, table.num_rows + 1))


def _text(value: Any) -> str | None:
    """As a CSV file would have it; whole numbers without a point, for pandas makes floats of those
    that have gaps."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return _cell(str(value) if isinstance(value, int | Decimal) else f"{value}")
