"""What a trained network says of bags."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from coverslip.errors import InvalidConfig
from coverslip.mil.bag_stream import drawn_rows, require_tiles, stream
from coverslip.mil.bags import Bags, Floats

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Of the arithmetic under autocast; float16 wants a GPU."""


def fold_predictions(
    network: Any,
    bags: Bags,
    indices: npt.NDArray[np.int64],
    covariates: npt.NDArray[np.float32] | None = None,
    *,
    max_tiles: int = 0,
    seed: int = 0,
    precision: str = "float32",
) -> npt.NDArray[np.float64]:
    """Logits float64 [b, outputs], in the order of `indices`.

    network      a StudyNetwork; it is left ready to be used, not trained
    covariates   [n, c] of all bags, or None
    max_tiles    of a bag; which ones is drawn by `seed` and the bag's index. 0 for all

    Raises InvalidConfig for a bag without tiles, or whose logits are not finite.
    """
    require_tiles(bags, indices)
    network.eval()
    device = next(network.parameters()).device
    wanted = [(int(i), drawn_rows(bags.count(int(i)), max_tiles, (seed, int(i)))) for i in indices]
    found = []
    with (
        torch.inference_mode(),
        autocast(device, precision),
        closing(stream(bags, wanted)) as coming,
    ):
        for index, tiles in zip(indices, coming, strict=True):
            logits = network(
                on(device, tiles), covariate_row(covariates, int(index), device)
            ).logits
            found.append(logits.double().cpu().numpy())
            if not np.isfinite(found[-1]).all():
                raise not_finite(bags, int(index), tiles)
    return np.stack(found) if found else np.empty((0, network.outputs))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Arithmetic in a precision, where it is not float32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")


def on(device: torch.device, tiles: Floats) -> torch.Tensor:
    """A bag's embeddings (n, dim) float32 there; they travel as they are stored."""
    return torch.from_numpy(np.ascontiguousarray(tiles)).to(device).float()


def covariate_row(
    covariates: npt.NDArray[np.float32] | None, index: int, device: torch.device
) -> torch.Tensor | None:
    """(c) of a bag, there."""
    return None if covariates is None else torch.from_numpy(covariates[index]).to(device)


def not_finite(bags: Bags, index: int, tiles: Floats) -> InvalidConfig:
    """Whose fault it is that a network's answer is not a number."""
    name = f"bag {bags.names[index]!r}"
    if not np.isfinite(tiles).all():
        return InvalidConfig(f"{name}: embeddings that are not finite; make them again")
    return InvalidConfig(
        f"{name}: the network's answer is not finite\n"
        "  train with a smaller learning_rate, or in float32"
    )
