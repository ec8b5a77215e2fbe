"""`coverslip models`: which encoders are known, their recipes, their weights; others' models."""

from __future__ import annotations

import json
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal

import typer

from coverslip.cli.terminal import print_table
from coverslip.encoders.registry import EncoderSpec, encoder_names, encoder_spec
from coverslip.encoders.slide_registry import (
    SlideEncoderSpec,
    slide_encoder_names,
    slide_encoder_spec,
)
from coverslip.errors import InvalidConfig, UnknownName

Action = Literal["list", "info", "fetch", "verify", "convert"]


def models(
    action: Annotated[
        Action, typer.Argument(help="list, info, fetch, verify or convert.")
    ] = "list",
    name: Annotated[
        str,
        typer.Argument(
            help="An encoder's name; for list, a part of names, or a pattern with * and ?; for "
            "convert, a model of the package stardist: its folder, zip or HDF5 weights.",
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Argument(help="For convert: the .safetensors to write.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="A checkpoint, or a folder of them.")
    ] = None,
    to: Annotated[
        Path, typer.Option("--to", help="Folder into which fetch puts checkpoints.")
    ] = Path("weights"),
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="For verify: run a network that comes as code."),
    ] = False,
    head_name: Annotated[
        str, typer.Option("--name", help="For convert: what stores call it. [the file's name]")
    ] = "",
    mpp: Annotated[
        float, typer.Option("--mpp", help="For convert: µm per px of what it was trained on.")
    ] = 0.5,
    class_name: Annotated[
        str, typer.Option("--class", help="For convert: what it finds.")
    ] = "Nucleus",
    licence: Annotated[
        str, typer.Option("--licence", help="For convert: of the weights, to be kept with them.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON value, for machines.")] = False,
) -> None:
    """Show encoders and recipes; fetch weights from the hub; verify a checkpoint; convert StarDist.

    convert makes a nucleus head of a model trained by the package stardist.
    """
    if action == "list":
        _list(name, as_json)
        return
    if action == "convert":
        if not name or out is None:
            raise InvalidConfig(
                "models convert needs a model and the file to write, for example\n"
                "  coverslip models convert 2D_versatile_he.zip versatile.safetensors"
            )
        from coverslip.heads.keras_weights import convert_stardist

        recipe = convert_stardist(
            Path(name), out, name=head_name or out.stem, mpp=mpp, classes=(class_name,),
            licence=licence,
        )  # fmt: skip
        limits = ", ".join(f"{k} {v:g}" for k, v in recipe.settings.items())
        print(f"{out}: {recipe.name}, StarDist at {recipe.mpp:g} µm/px, {limits}")
        print(f"  use it: --nuclei {out}")
        return
    if not name:
        raise InvalidConfig(f"models {action} needs an encoder's name; see: coverslip models list")
    if name in slide_encoder_names():
        _slide(action, slide_encoder_spec(name), weights, trust_remote_code, as_json)
        return
    spec = encoder_spec(name)
    if action == "info":
        _info(spec, as_json)
    elif action == "verify":
        _verify(spec, weights, trust_remote_code)
    else:
        from coverslip.encoders.checkpoints.hub import fetch_weights

        print(f"{name}: weights are in {fetch_weights(spec, to)}")
        print(f"  use them: --encoder {name} --weights {to}")


def _list(pattern: str, as_json: bool) -> None:
    """Tile encoders, and below them slide encoders."""
    specs, slides = _matching(pattern)
    if as_json:
        described = [*map(_described, specs), *map(_described, slides)]
        print(json.dumps(described))
        return
    rows = [
        (
            spec.name, str(spec.dim), f"{spec.parameters:,.0f}" if spec.parameters else "",
            f"{spec.input_px}", f"{spec.mpp:g}", spec.pooling, _source(spec), spec.licence,
            _access(spec),
        )
        for spec in specs
    ]  # fmt: skip
    columns = ("encoder", "dim", "M param.", "px", "µm/px", "pooling", "weights", "licence", "")
    if rows:
        print_table(columns, rows)
    slide_rows = [
        (
            spec.name, spec.tile_encoder or "any", str(spec.dim or "the tile's"),
            f"{spec.parameters:,.1f}" if spec.parameters else "",
            f"{spec.tile_px} px at {spec.mpp:g} µm" if spec.tile_px else "any", _source(spec),
            spec.licence, _access(spec),
        )
        for spec in slides
    ]  # fmt: skip
    slide_columns = (
        "slide encoder", "on tiles of", "dim", "M param.", "tiles", "weights", "licence", "",
    )  # fmt: skip
    if slide_rows:
        print_table(slide_columns, slide_rows)


def _slide(
    action: Action,
    spec: SlideEncoderSpec,
    weights: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    if action == "info":
        _info(spec, as_json)
        return
    if action == "fetch":
        raise InvalidConfig(
            f"{spec.name}: slide encoders' weights are fetched by the hub's own client when they "
            "are first used\n  coverslip models verify "
            f"{spec.name} does that now"
        )
    from coverslip.encoders.slide_encoder import load_slide_encoder

    encoder = load_slide_encoder(
        spec.name, weights=weights, device="cpu", trust_remote_code=trust_remote_code
    )
    print(f"{spec.name}: loads; weights sha256 {encoder.weights_sha256 or 'none: it has none'}")


def _matching(pattern: str) -> tuple[list[EncoderSpec], list[SlideEncoderSpec]]:
    """By a part of the name or of the repository, or by a pattern of the name; all for none."""
    part = pattern.lower()

    def fits(spec: EncoderSpec | SlideEncoderSpec) -> bool:
        return part in spec.name or part in spec.hub.lower() or fnmatch(spec.name, part)

    tiles = [spec for spec in map(encoder_spec, encoder_names()) if fits(spec)]
    slides = [spec for spec in map(slide_encoder_spec, slide_encoder_names()) if fits(spec)]
    if not tiles and not slides:
        raise UnknownName("encoder", pattern, [*encoder_names(), *slide_encoder_names()])
    return tiles, slides


def _info(spec: EncoderSpec | SlideEncoderSpec, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_described(spec)))
        return
    print_table(("", spec.name), [(k, str(v)) for k, v in _described(spec).items()])


def _verify(spec: EncoderSpec, weights: str | None, trust_remote_code: bool) -> None:
    """Is it the published file? Load it strictly, embed a blank tile, and say what it is."""
    from coverslip.encoders.checkpoints.hub import (
        check_published,
        checkpoint_from_hub,
        local_checkpoint,
    )
    from coverslip.encoders.loading import load_encoder

    if spec.sha256:
        path = checkpoint_from_hub(spec) if weights is None else local_checkpoint(spec, weights)
        check_published(spec, path)
    encoder = load_encoder(
        spec.name, weights=weights, device="cpu", trust_remote_code=trust_remote_code
    )
    known = ", as published" if spec.sha256 else ""
    print(
        f"{spec.name}: {encoder.dim} numbers a tile, weights sha256 {encoder.weights_sha256}{known}"
    )


def _described(spec: EncoderSpec | SlideEncoderSpec) -> dict[str, object]:
    return {**asdict(spec), "source": _source(spec), "recipe_hash": spec.recipe_hash()}


def _source(spec: EncoderSpec | SlideEncoderSpec) -> str:
    if spec.weights == "package":
        return "in a package"
    if spec.weights == "none":
        return "none"
    return spec.hub or ("timm" if spec.weights else "your own file")


def _access(spec: EncoderSpec | SlideEncoderSpec) -> str:
    """What stands between the user and the weights."""
    steps = ["ask for access"] if spec.gated else []
    if spec.weights == "remote-code":
        steps.append("runs its own code")
    if not spec.weights and spec.file:
        steps.append(f"download {spec.file}")
    return ", ".join(steps)
