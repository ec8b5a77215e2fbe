"""SQL over the Parquet files of many slides, by DuckDB: read where they lie, never loaded whole."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverslip.cohort.packages import package
from coverslip.durable import whole_file
from coverslip.engine.processors import available_processors
from coverslip.errors import InvalidConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

READS = {"SELECT", "EXPLAIN"}
"""Kinds of statement, as DuckDB names them, that change nothing; DESCRIBE, SHOW and SUMMARIZE are
of the first."""
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class SqlLimits:
    """What a query may take.

    threads   0: as many as are granted
    memory    as DuckDB writes it; a query that needs more spills to disk
    """

    threads: int = 0
    memory: str = "4GiB"


def open_tables(
    files: Mapping[str, Sequence[Path]],
    tables: Mapping[str, pa.Table],
    folder: Path,
    limits: SqlLimits | None = None,
) -> DuckDBPyConnection:
    """A connection in which SQL sees Parquet files and tables by name.

    files     view -> its Parquet files, all below `folder`; columns that some files lack are null
    tables    name -> a small table, which is copied
    folder    also takes what spills, and is tidied up behind it

    It is of one thread, and the views are frozen: SQL reaches files below `folder`, and nothing
    else of the machine, the network or Python. Raises MissingPackage; InvalidConfig for a limit
    that is none, or files that are no Parquet.
    """
    duckdb = package("duckdb", "SQL over a cohort")
    folder = folder.resolve()
    # of this connection's own: two at once must not share a spill
    spill = str(folder / f".spill-{uuid.uuid4().hex}")
    limits = limits or SqlLimits()
    settings: dict[str, Any] = {"memory_limit": limits.memory, "temp_directory": spill}
    settings["threads"] = limits.threads or available_processors()
    try:
        connection: DuckDBPyConnection = duckdb.connect(":memory:", config=settings)
    except duckdb.Error as error:
        raise InvalidConfig(f"DuckDB: {_first_line(error)}") from None
    for name, table in tables.items():
        connection.register("arrow_table", _told_apart(name, table))
        connection.execute(f"CREATE TABLE {_quoted(name)} AS FROM arrow_table")
        connection.unregister("arrow_table")
    for name, paths in files.items():
        listed = ", ".join(_path_literal(path.resolve()) for path in paths)
        view = f"CREATE VIEW {_quoted(name)} AS FROM read_parquet([{listed}], union_by_name = true)"
        try:
            connection.execute(view)
        except duckdb.Error as error:
            raise InvalidConfig(
                f"{folder}: the Parquet files of {name} cannot be read: {_first_line(error)}\n"
                "  remove the file it names: it is written anew when next asked for"
            ) from None
    for setting in (
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        f"allowed_directories = [{_literal(str(folder))}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def query_result(connection: DuckDBPyConnection, query: str) -> DuckDBPyRelation:
    """What one SELECT finds; computed when it is fetched. Raises InvalidConfig for SQL that is
    wrong, that is several statements, or that would change something."""
    import duckdb

    with explained_sql():
        statements = duckdb.extract_statements(query)
        kinds = [statement.type.name for statement in statements]
        if len(kinds) != 1 or kinds[0] not in READS:
            raise InvalidConfig(
                f"the query must be one SELECT, got {' and '.join(kinds) or 'nothing'}"
            )
        relation = connection.sql(query)
    if relation is None:
        raise InvalidConfig("the query has no result")
    return relation


@contextmanager
def explained_sql() -> Iterator[None]:
    """Turn what DuckDB says of a query, or meets as it computes it, into InvalidConfig."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise InvalidConfig(f"SQL: {str(error).strip()}") from None


def write_relation(relation: DuckDBPyRelation, path: Path) -> int:
    """Write a relation's rows as CSV or Parquet, by the file's ending, as a stream. Returns their
    number. Raises InvalidConfig for another ending or a query that fails on the way; StoreError."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    writers: dict[str, Any] = {".csv": pa.csv.CSVWriter, ".parquet": pa.parquet.ParquetWriter}
    if path.suffix.lower() not in writers:
        raise InvalidConfig(f"{path}: a query's rows are written as .csv or .parquet")
    rows = 0
    with explained_sql(), whole_file(path) as aside:
        batches = relation.to_arrow_reader(ROWS_AT_ONCE)
        with writers[path.suffix.lower()](aside, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
    return rows


def _told_apart(name: str, table: pa.Table) -> pa.Table:
    """The table, if SQL can tell its columns apart. Raises InvalidConfig."""
    folded = Counter(column.casefold() for column in table.column_names)
    alike = [column for column in table.column_names if folded[column.casefold()] > 1]
    if alike:
        raise InvalidConfig(
            f"columns {' and '.join(alike)} of {name} are one to SQL, which knows no capitals\n"
            "  rename one of them"
        )
    return table


def _quoted(name: str) -> str:
    """An identifier."""
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _path_literal(path: Path) -> str:
    """A file's path that is no pattern, though its name may hold * ? or [."""
    return _literal(re.sub(r"([\[*?])", r"[\1]", str(path)))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
