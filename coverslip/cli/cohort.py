"""`coverslip cohort`: an output folder's slides and a clinical table as one thing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coverslip.errors import InvalidConfig, printable

if TYPE_CHECKING:
    from coverslip.cohort.cohort import Cohort
    from coverslip.cohort.tables import SqlLimits

SHOWN = 40
"""Rows of a query that go to the terminal."""

Output = Annotated[Path, typer.Argument(help="Folder of stores that a run wrote.")]
Clinical = Annotated[
    Path | None,
    typer.Option("--clinical", help="CSV, TSV or Parquet: a row a slide or a patient."),
]
SlideColumn = Annotated[str, typer.Option("--slide-column", help="Of --clinical: names the slide.")]
PatientColumn = Annotated[
    str, typer.Option("--patient-column", help="Of --clinical: names the patient.")
]
PatientPattern = Annotated[
    str,
    typer.Option("--patient-pattern", help="Regular expression: the patient in a slide's name."),
]
Model = Annotated[str, typer.Option("--model", help="Whose nuclei, where there are several.")]
Grid = Annotated[str, typer.Option("--grid", help="Which tiles, where there are several.")]

cohort = typer.Typer(no_args_is_help=True, help="An output folder's slides as one table.")


@cohort.command()
def measurements(
    output: Output,
    results: Annotated[Path, typer.Option("--output", "-o", help="The .csv to write.")],
    clinical: Clinical = None,
    slide_column: SlideColumn = "slide",
    patient_column: PatientColumn = "patient",
    patient_pattern: PatientPattern = "",
    model: Model = "",
    grid: Grid = "",
) -> None:
    """Measure tissue, nuclei and how they lie: one row a slide."""
    from coverslip.durable import whole_file

    _require_ending(results, ".csv")
    columns = (slide_column, patient_column, patient_pattern)
    with _opened(output, clinical, columns, model, grid) as opened:
        table = opened.table()
        with whole_file(results) as aside:
            table.to_csv(aside)
    print(f"{results}: {len(table)} slides, {len(table.columns)} columns")
    _report(opened, dict(zip(table.index, table["problem"], strict=True)))


@cohort.command()
def sql(
    output: Output,
    query: Annotated[str, typer.Argument(help="One SELECT over nuclei, tiles, slides, clinical.")],
    results: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .csv or .parquet of all rows.")
    ] = None,
    clinical: Clinical = None,
    slide_column: SlideColumn = "slide",
    patient_column: PatientColumn = "patient",
    patient_pattern: PatientPattern = "",
    model: Model = "",
    grid: Grid = "",
    threads: Annotated[int, typer.Option("--threads", help="0: what is granted.", min=0)] = 0,
    memory: Annotated[
        str, typer.Option("--memory", help="What a query may take before it spills to disk.")
    ] = "4GiB",
) -> None:
    """Ask all nuclei and tiles of the cohort by SQL (DuckDB's)."""
    from coverslip.cli.terminal import print_table
    from coverslip.cohort.tables import SqlLimits, explained_sql, write_relation

    columns = (slide_column, patient_column, patient_pattern)
    limits = SqlLimits(threads, memory)
    with _opened(output, clinical, columns, model, grid, limits) as opened:
        relation = opened.sql(query)
        if results is not None:
            print(f"{results}: {write_relation(relation, results):,} rows")
        else:
            with explained_sql():
                rows = relation.limit(SHOWN + 1).fetchall()
            cells = [["" if v is None else str(v) for v in row] for row in rows[:SHOWN]]
            print_table(relation.columns, cells)
            if len(rows) > SHOWN:
                print(f"the first {SHOWN} rows; -o FILE.csv writes all")
    _report(opened, opened.left_out)


@cohort.command()
def survival(
    output: Output,
    feature: Annotated[
        str, typer.Option("--feature", help="Column of --clinical or of the measurements.")
    ],
    clinical: Annotated[Path, typer.Option("--clinical", help="CSV, TSV or Parquet.")],
    results: Annotated[Path, typer.Option("--output", "-o", help="A .png or .svg, or a .csv.")],
    time: Annotated[str, typer.Option("--time", help="Column: until event or last seen.")],
    event: Annotated[str, typer.Option("--event", help="Column: 1 where it happened, else 0.")],
    groups: Annotated[
        int, typer.Option("--groups", help="Of about equal size, by the feature.", min=2)
    ] = 2,
    slide_column: SlideColumn = "slide",
    patient_column: PatientColumn = "patient",
    patient_pattern: PatientPattern = "",
    model: Model = "",
    grid: Grid = "",
) -> None:
    """Compare the survival of patients by one feature: Kaplan-Meier, log-rank."""
    from coverslip.cli.terminal import print_table
    from coverslip.cohort.survival import draw_survival
    from coverslip.durable import whole_file

    _require_ending(results, ".png", ".svg", ".csv")
    columns = (slide_column, patient_column, patient_pattern)
    with _opened(output, clinical, columns, model, grid) as opened:
        curves = opened.survival(feature, time=time, event=event, groups=groups)
    if results.suffix.lower() == ".csv":
        with whole_file(results) as aside:
            curves.table().to_csv(aside, index=False)
    else:
        draw_survival(curves, results)
    rows = [(g.name, str(g.patients), str(g.events), f"{g.median:g}") for g in curves.groups]
    print_table(("group", "patients", "events", f"median {time}"), rows)
    print(f"log-rank chi² {curves.chi_square:.4g}, p = {curves.p_value:.3g}")
    if curves.left_out:
        _say(f"left out, for something unknown: {', '.join(curves.left_out)}")
    print(f"{results}")
    _report(opened, opened.left_out)


@cohort.command()
def anndata(
    output: Output,
    results: Annotated[Path, typer.Option("--output", "-o", help="The .h5ad to write.")],
    tiles_of: Annotated[
        str, typer.Option("--tiles-of", metavar="SLIDE", help="A slide's tiles, not the slides.")
    ] = "",
    encoder: Annotated[
        str, typer.Option("--encoder", help="Of slides: whose tiles' mean goes into obsm.")
    ] = "",
    clinical: Clinical = None,
    slide_column: SlideColumn = "slide",
    patient_column: PatientColumn = "patient",
    patient_pattern: PatientPattern = "",
    model: Model = "",
    grid: Grid = "",
) -> None:
    """Write AnnData: a row a slide, or a row a tile of one slide."""
    from coverslip.cohort.annotated_data import write_anndata

    _require_ending(results, ".h5ad")
    if tiles_of and (encoder or clinical):
        raise InvalidConfig("--tiles-of goes without --clinical, and holds all encoders")
    columns = (slide_column, patient_column, patient_pattern)
    with _opened(output, clinical, columns, model, grid) as opened:
        found = opened.tiles_anndata(tiles_of) if tiles_of else opened.anndata(encoder)
        write_anndata(results, found)
    print(f"{results}: {found.n_obs} {'tiles' if tiles_of else 'slides'}, {found.n_vars} columns")
    problems = {} if tiles_of else dict(zip(found.obs_names, found.obs["problem"], strict=True))
    _report(opened, problems)


@contextmanager
def _opened(
    output: Path,
    clinical: Path | None,
    columns: tuple[str, str, str],
    model: str,
    grid: str,
    limits: SqlLimits | None = None,
) -> Iterator[Cohort]:
    """The cohort, with the slide in hand shown on a terminal. `columns` of slides and of patients,
    and the pattern of patients."""
    from rich.console import Console

    from coverslip.cohort.cohort import Cohort

    with Console(stderr=True).status("opening") as status:
        found = Cohort.open(
            output,
            clinical,
            slide=columns[0],
            patient=columns[1],
            patient_pattern=columns[2],
            model=model,
            grid=grid,
            limits=limits,
            on_slide=lambda slide: status.update(printable(slide)),
        )
        try:
            yield found
        finally:
            found.close()


def _require_ending(path: Path, *endings: str) -> None:
    if path.suffix.lower() not in endings:
        raise InvalidConfig(f"{path}: -o wants a file that ends in {' or '.join(endings)}")


def _say(message: str) -> None:
    """A line on standard error: results alone are on standard output."""
    print(printable(message), file=sys.stderr)


def _report(opened: Cohort, problems: dict[str, str]) -> None:
    """What did not match, and slides with a problem: exit code 1 where there is one."""
    for remark in opened.remarks:
        _say(remark)
    bad = {slide: why for slide, why in problems.items() if why}
    for slide, why in bad.items():
        _say(f"{slide}: {why}")
    if bad:
        raise typer.Exit(1)
