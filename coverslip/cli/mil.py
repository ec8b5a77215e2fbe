"""`coverslip mil`: slides and patients from bags of tile embeddings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coverslip.cli import options
from coverslip.cli.execution import names_in, print_json
from coverslip.cli.terminal import print_error, print_table

if TYPE_CHECKING:
    from coverslip.engine.mil_figures import TaskFigures

mil = typer.Typer(no_args_is_help=True, help="Slides and patients from tile embeddings.")

MOST_NOTES = 3
"""On the terminal, of slides whose picture is missing."""
Features = Annotated[
    Path,
    typer.Argument(
        help="A run's folder, or features of TRIDENT, CLAM or STAMP.", metavar="FEATURES"
    ),
]
TABLE = typer.Option("--table", help="CSV, TSV or Parquet with a row a slide or patient.")
Table = Annotated[Path, TABLE]
StudyFolder = Annotated[Path, typer.Option("--study", help="Folder that mil train left.")]
Encoder = Annotated[
    str, typer.Option("--encoder", help="Whose embeddings, where there are several.")
]
Grid = Annotated[str, typer.Option("--grid", help="On which tiles, where there are several.")]


@mil.command()
def train(
    features: Features,
    table: Table,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the study.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help='Column to predict: "subtype", "grade:ordinal:low,middle,high", "age:number", '
            '"months:survival:died", "months:survival-bins:died". Several at once share a model.',
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="abmil, clam-sb, transmil, additive, ...")
    ] = None,
    config: options.Config = None,
    encoder: Encoder = "",
    grid: Grid = "",
    unit: Annotated[
        str | None, typer.Option("--unit", help="What is one bag: patient or slide.")
    ] = None,
    slide: Annotated[str | None, typer.Option("--slide", help="Column of slides.")] = None,
    patient: Annotated[str | None, typer.Option("--patient", help="Column of patients.")] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option("--patient-pattern", help="Regex: the patient in a slide's name."),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option("--site", help="Column of hospitals; each stays on one side of a fold."),
    ] = None,
    covariates: Annotated[
        str | None, typer.Option("--covariates", help="By comma: columns beside the tiles.")
    ] = None,
    folds: Annotated[int | None, typer.Option("--folds", help="Of cross-validation.")] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", help="Of it, other folds.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="At most.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate")] = None,
    max_tiles: Annotated[
        int | None, typer.Option("--max-tiles", help="Of a bag, drawn anew each epoch; 0: all.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of folds and training.")] = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Cross-validate a model of bags, beside a linear baseline; leaves models and a report.

    --config holds the same as a TOML file, and more: see the settings of a study in its study.json.
    """
    from coverslip.cli.progress import StudyProgress
    from coverslip.engine.bags import open_bags
    from coverslip.engine.clinical import ClinicalTable
    from coverslip.engine.mil_run import run_study
    from coverslip.engine.mil_study import Study, StudyConfig
    from coverslip.settings import settings_from_toml

    settings = settings_from_toml(StudyConfig, config) if config else StudyConfig()
    named = {
        "targets": tuple(target) if target else None,
        "unit": unit,
        "slide": slide,
        "patient": patient,
        "patient_pattern": patient_pattern,
        "site": site,
        "covariates": names_in(covariates) if covariates is not None else None,
    }
    split = {"folds": folds, "repeats": repeats, "seed": seed,
             "keep_sites": True if site else None}  # fmt: skip
    training = {"model": model, "epochs": epochs, "learning_rate": learning_rate,
                "max_tiles": max_tiles, "seed": seed}  # fmt: skip
    settings = replace(
        settings,
        **_given(named),
        split=replace(settings.split, **_given(split)),
        training=replace(settings.training, **_given(training)),
    )
    study = Study.of(
        open_bags(features, encoder=encoder, grid=grid), ClinicalTable.read(table), settings
    )
    with StudyProgress(shown=not json) as progress:
        found = run_study(study, output, device=device or "auto", observer=progress.observe)
    if json:
        print_json({"study": str(output), "figures": {f.task.name: _plain(f) for f in found}})
        return
    for remark in study.remarks:
        print(remark)
    print_table(("task", "figure", "model", "linear baseline"), list(_rows(found)))
    print(f"{len(study.bags)} bags; report: {output / 'report.html'}")
    print(f"predict others: coverslip mil predict FEATURES --study {output}")


@mil.command()
def predict(
    features: Features,
    study: StudyFolder,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV of predictions; else <study>.csv beside stores."),
    ] = None,
    table: Annotated[Path | None, TABLE] = None,
    slides: Annotated[
        list[str] | None,
        typer.Option("--slides", help="Slides, or folders of them, for pictures of tiles."),
    ] = None,
    export: Annotated[
        str, typer.Option("--export", help="By comma: geojson, png, sheet; of stores.")
    ] = "geojson,png,sheet",
    encoder: Encoder = "",
    grid: Grid = "",
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Predict with a study's models; attention and contributions as QuPath tiles and pictures.

    --table is needed where the study looks at covariates, or where bags are patients.
    """
    from coverslip.engine.bags import open_bags
    from coverslip.engine.mil_ensemble import StudyEnsemble
    from coverslip.engine.mil_prediction import (
        BagPrediction,
        StudyPrediction,
        bags_to_predict,
        predict,
        write_predictions,
    )

    ensemble = StudyEnsemble.load(study, device or "auto")
    found = open_bags(features, encoder=encoder, grid=grid)
    given = bags_to_predict(found, ensemble, study, table)
    asked = StudyPrediction(ensemble, given.covariates, names_in(export), slides or ())
    done: list[BagPrediction] = []
    failed = False
    for name, said in predict(given.bags, asked):
        if not isinstance(said, BagPrediction):
            print_error(said)
            failed = True
            continue
        done.append(said)
        numbers = {k: round(float(v), 6) for k, v in zip(asked.names, said.numbers, strict=True)}
        if json:
            print_json({"bag": name, "slides": said.slides, "tiles": said.tiles, **numbers,
                        "files": [str(file) for file in said.files]})  # fmt: skip
        else:
            words = ", ".join(f"{k} {v:.3g}" for k, v in numbers.items())
            print(f"{name}: {said.tiles:,} tiles: {words}{'' if said.changed else ' (unchanged)'}")
            for file in said.files:
                print(f"  {file}")
    for note in asked.notes[:MOST_NOTES]:
        print(f"coverslip: {note}", file=sys.stderr)
    if len(asked.notes) > MOST_NOTES:
        print(f"  and of {len(asked.notes) - MOST_NOTES} more", file=sys.stderr)
    if done:
        path = write_predictions(output or features / f"{ensemble.name}.csv", asked.names, done)
        if not json:
            print(f"{len(done)} bags: {path}")
    if failed:
        raise typer.Exit(1)


@mil.command()
def evaluate(
    features: Features,
    study: StudyFolder,
    table: Table,
    encoder: Encoder = "",
    grid: Grid = "",
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """How well a study's models do on another cohort, whose answers a table holds."""
    from coverslip.engine.bags import open_bags
    from coverslip.engine.mil_evaluation import evaluate_study

    found = evaluate_study(
        open_bags(features, encoder=encoder, grid=grid), study, table, device or "auto"
    )
    if json:
        print_json({"study": str(study), "bags": found.bags, "figures": found.plain()})
        return
    for remark in found.remarks:
        print(remark)
    rows = [
        (task, name, str(estimate))
        for task, figures in found.figures.items()
        for name, estimate in figures.items()
    ]
    print_table(("task", "figure", "value"), rows)
    print(f"{found.bags} bags")


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _rows(found: Sequence[TaskFigures]) -> list[tuple[str, str, str, str]]:
    return [
        (figures.task.name, name, str(estimate), str(figures.baseline.figures[name]))
        for figures in found
        for name, estimate in figures.model.figures.items()
    ]


def _plain(figures: TaskFigures) -> dict[str, Any]:
    return {
        way: {
            name: [estimate.value, estimate.low, estimate.high]
            for name, estimate in getattr(figures, way).figures.items()
        }
        for way in ("model", "baseline")
    }
