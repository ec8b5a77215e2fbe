"""`coverslip evaluate`: encoders beside each other on labelled tiles."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from coverslip.cli import options
from coverslip.cli.execution import names_in, print_json
from coverslip.cli.terminal import print_table


def evaluate(
    tiles: Annotated[
        Path,
        typer.Argument(help="Labelled tiles: a folder per class, or a CSV with file and label."),
    ],
    encoder: Annotated[
        str, typer.Option("--encoder", help="Encoders, by comma: names or recipes' .json files.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for evaluation.csv and evaluation.png.")
    ] = Path("evaluation"),
    pattern: Annotated[
        str, typer.Option("--pattern", help="Where a file's name holds its class: a regex.")
    ] = "",
    weights: options.Weights = None,
    device: options.Device = None,
    precision: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        typer.Option("--precision", help="What encoders compute in."),
    ] = "auto",
    repeats: Annotated[int, typer.Option("--repeats", help="Of cross-validation.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Of folds and changes.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per encoder.")] = False,
) -> None:
    """Linear probe, kNN, few-shot and robustness to stain and pixel size: a table and a plot."""
    from coverslip.encoders.loading import load_encoder
    from coverslip.engine.evaluation import evaluate_encoders, write_evaluation
    from coverslip.engine.labelled_tiles import LabelledTiles

    labelled = LabelledTiles.read(tiles, pattern)
    load = [
        partial(load_encoder, name, weights=weights, device=device or "auto", precision=precision)
        for name in names_in(encoder)
    ]
    found = list(evaluate_encoders(labelled, load, repeats=repeats, seed=seed))
    table, plot = write_evaluation(output, found)
    if json:
        for evaluation in found:
            print_json({**evaluation.row(), "weights": evaluation.weights_sha256})
        return
    rows = [evaluation.row() for evaluation in found]
    turned = [(name, *(row[name] for row in rows)) for name in list(rows[0])[1:]]
    print_table(("", *(row["encoder"] for row in rows)), turned)
    print(f"{len(labelled.labels)} tiles of {len(labelled.classes)} classes; {table}; {plot}")
