"""`coverslip models`: which encoders are known, their recipes, and their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from coverslip.cli.terminal import print_table
from coverslip.encoders.registry import EncoderSpec, encoder_names, encoder_spec
from coverslip.errors import InvalidConfig

Action = Literal["list", "info", "fetch", "verify"]


def models(
    action: Annotated[Action, typer.Argument(help="list, info, fetch or verify.")] = "list",
    name: Annotated[str, typer.Argument(help="An encoder's name.", show_default=False)] = "",
    weights: Annotated[
        str | None, typer.Option("--weights", help="A checkpoint, or a folder of them.")
    ] = None,
    to: Annotated[
        Path, typer.Option("--to", help="Folder into which fetch puts <name>.safetensors.")
    ] = Path("weights"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON value, for machines.")] = False,
) -> None:
    """Show encoders and recipes; fetch weights from the hub; verify a checkpoint."""
    if action == "list":
        _list(as_json)
        return
    if not name:
        raise InvalidConfig(f"models {action} needs an encoder's name; see: coverslip models list")
    spec = encoder_spec(name)
    if action == "info":
        _info(spec, as_json)
    elif action == "verify":
        _verify(name, weights)
    else:
        from coverslip.encoders.hub import fetch_weights

        print(f"{name}: weights are in {fetch_weights(spec, to)}")


def _list(as_json: bool) -> None:
    specs = [encoder_spec(name) for name in encoder_names()]
    if as_json:
        print(json.dumps([_described(spec) for spec in specs]))
        return
    rows = [
        (
            spec.name, str(spec.dim), f"{spec.parameters:,.0f}" if spec.parameters else "",
            f"{spec.input_px}", f"{spec.mpp:g}", spec.pooling, _source(spec), spec.licence,
            "ask for access" if spec.gated else "",
        )
        for spec in specs
    ]  # fmt: skip
    columns = ("encoder", "dim", "M param.", "px", "µm/px", "pooling", "weights", "licence", "")
    print_table(columns, rows)


def _info(spec: EncoderSpec, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_described(spec)))
        return
    print_table(("", spec.name), [(k, str(v)) for k, v in _described(spec).items()])


def _verify(name: str, weights: str | None) -> None:
    """Load the weights strictly, embed a blank tile, and say what they are."""
    from coverslip.encoders.encoder import load_encoder

    encoder = load_encoder(name, weights=weights, device="cpu")
    print(f"{name}: {encoder.dim} numbers a tile, weights sha256 {encoder.weights_sha256}")


def _described(spec: EncoderSpec) -> dict[str, object]:
    marks = {"source": _source(spec), "licence": spec.licence, "gated": spec.gated}
    return {**spec.recipe(), **marks, "mpp": spec.mpp, "recipe_hash": spec.recipe_hash()}


def _source(spec: EncoderSpec) -> str:
    if spec.weights == "package":
        return "in the package"
    return spec.hub or ("timm" if spec.weights else "your own")
