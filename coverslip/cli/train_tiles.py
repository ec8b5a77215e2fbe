"""`coverslip train tiles`: a tile classifier of your own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coverslip.cli import options
from coverslip.cli.execution import names_in, print_json
from coverslip.cli.terminal import print_table

if TYPE_CHECKING:
    from coverslip.encoders.encoder import Encoder
    from coverslip.heads.tile_classifier import TileClassifier, TileExamples


def tiles(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Labelled tiles (a folder per class, or a CSV with file and label); "
            "with --annotations, slides."
        ),
    ],
    encoder: Annotated[
        str, typer.Option("--encoder", help="Encoder, by name or its recipe's .json.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the classifier.")],
    kind: Annotated[
        Literal["linear", "mlp"], typer.Option("--kind", help="Or one hidden layer.")
    ] = "linear",
    name: Annotated[
        str | None, typer.Option("--name", help="Of the classifier; else as the folder.")
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            "--annotations", help="QuPath GeoJSON named after its slide, or folders of it."
        ),
    ] = None,
    stores: Annotated[
        Path | None,
        typer.Option("--stores", help="A run's folder: its features are used where they fit."),
    ] = None,
    classes: Annotated[
        str, typer.Option("--classes", help="By comma: only annotations of these.")
    ] = "",
    share: Annotated[
        float, typer.Option("--share", help="Of a tile that lies in annotations of one class.")
    ] = 0.5,
    pattern: Annotated[
        str, typer.Option("--pattern", help="Where a file's name holds its class: a regex.")
    ] = "",
    group_pattern: Annotated[
        str,
        typer.Option("--group-pattern", help="Where a file's or slide's name holds its patient."),
    ] = "",
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Classes count alike, however many tiles they have.")
    ] = False,
    mpp: Annotated[
        float | None,
        typer.Option(
            "--mpp", help="µm per pixel of the tiles; else the encoder's own, on slides 0.5."
        ),
    ] = None,
    tile: options.Tile = None,
    recursive: options.Recursive = False,
    weights: options.Weights = None,
    licence: Annotated[str, typer.Option("--licence", help="Of the classifier.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Of folds and weights.")] = 0,
    assume_mpp: options.AssumeMpp = None,
    mpp_table: options.MppTable = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Train a classifier of tiles on labelled tiles or annotated slides, and say how well it does.

    On slides, whole slides are left out by turns; --mpp and --tile decide what is classified later.
    """
    from coverslip.encoders.loading import load_encoder
    from coverslip.engine.config import RunConfig
    from coverslip.engine.tile_training import (
        AnnotatedSlides,
        examples_of_annotations,
        train_tile_classifier,
    )
    from coverslip.errors import InvalidConfig
    from coverslip.heads.tile_classifier import TileTraining

    network = load_encoder(encoder, weights=weights, device=device or "auto")
    if annotations:
        annotated = AnnotatedSlides.over(
            source, annotations, recursive=recursive, stores=stores,
            classes=names_in(classes), share=share,
        )  # fmt: skip
        config = RunConfig(
            mpp=mpp or 0.5, tile=tile or 256, assume_mpp=assume_mpp, mpp_table=mpp_table or ""
        )
        examples = examples_of_annotations(annotated, network, config, group_pattern=group_pattern)
    elif len(source) > 1:
        raise InvalidConfig("labelled tiles are one folder or CSV; slides want --annotations")
    else:
        examples = _of_images(Path(source[0]), network, pattern, group_pattern, mpp)
    classifier, path = train_tile_classifier(
        examples, TileTraining(kind, balanced, seed=seed), output, name or output.name, licence
    )
    if json:
        print_json({"classifier": str(path), "temperature": classifier.temperature,
                    **asdict(classifier.figures)})  # fmt: skip
        return
    _report(classifier, examples, path)


def _of_images(
    source: Path, encoder: Encoder, pattern: str, group_pattern: str, mpp: float | None
) -> TileExamples:
    from coverslip.engine.labelled_tiles import LabelledTiles
    from coverslip.engine.tile_training import examples_of_images

    labelled = LabelledTiles.read(source, pattern)
    return examples_of_images(
        labelled, encoder, mpp=mpp or encoder.spec.mpp, data=source.name,
        group_pattern=group_pattern,
    )  # fmt: skip


def _report(classifier: TileClassifier, examples: TileExamples, path: Path) -> None:
    figures = classifier.figures
    rows = [
        (name, str(sum(row)), f"{figures.recall[name]:.3f}")
        for name, row in zip(classifier.classes, figures.confusion, strict=True)
    ]
    print_table(("class", "tiles", "recall"), rows)
    of = f"{figures.groups} groups" if figures.groups else "tiles"
    print(
        f"balanced accuracy {figures.balanced_accuracy:.3f}, log loss "
        f"{figures.uncalibrated_log_loss:.3f} -> {figures.log_loss:.3f}, calibration error "
        f"{figures.uncalibrated_ece:.3f} -> {figures.ece:.3f} by temperature "
        f"{classifier.temperature:.2f}; {figures.folds} folds of {of}"
    )
    if not figures.groups:
        print("  no patients or slides were told apart: on others it may do worse")
    if figures.unseen:
        print(f"  {figures.unseen} tiles are of a class that only one group has")
    tile = f"{examples.source.tile_px} px at {examples.source.mpp:g} µm"
    print(f"for tiles of {tile}: coverslip classify SLIDES -o OUT --classifier {path}")
