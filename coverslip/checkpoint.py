"""A training's checkpoint: what torch saved to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverslip.errors import MissingWeights

if TYPE_CHECKING:
    import torch


def checkpoint_content(
    path: Path, device: torch.device, wanted: Mapping[str, type]
) -> dict[str, Any]:
    """What the file holds, its tensors on `device`.

    wanted   name -> type of what must be in it

    Raises MissingWeights where it cannot be read, or is not such a training's checkpoint.
    """
    import torch

    hint = "remove it to start over, or choose another folder with -o"
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch, pickle and zipfile raise a dozen kinds
        raise MissingWeights(
            f"{path}: cannot be read ({type(error).__name__})\n  {hint}"
        ) from error
    held = content if isinstance(content, dict) else {}
    if lacking := [name for name, kind in wanted.items() if not isinstance(held.get(name), kind)]:
        raise MissingWeights(
            f"{path}: is not a checkpoint of this kind of training, it lacks "
            f"{', '.join(lacking)}\n  {hint}"
        )
    return held
