"""The image tower of Gemma 4, without the language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coverslip.errors import MissingPackage


class GemmaVision(nn.Module):
    """(b, 3, 768, 768) -> (b, hidden_size): the mean of 256 tokens. Arguments are transformers'."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        try:
            from transformers import Gemma4VisionConfig, Gemma4VisionModel
        except ImportError as error:
            raise MissingPackage("Gemma 4's image tower", "transformers>=5", "text") from error
        config = Gemma4VisionConfig(**arguments)
        self.patch = config.patch_size
        self.tower = Gemma4VisionModel(config)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        pixels = x.reshape(len(x), 3, rows, self.patch, columns, self.patch)
        pixels = pixels.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (b, n, patch² · 3)
        y, x_ = torch.meshgrid(
            torch.arange(rows, device=x.device),
            torch.arange(columns, device=x.device),
            indexing="ij",
        )
        places = torch.stack([x_, y], dim=-1).flatten(0, 1).expand(len(x), -1, -1)  # (b, n, 2)
        found = self.tower(pixel_values=pixels, pixel_position_ids=places).last_hidden_state
        mean: Tensor = found.unflatten(0, (len(x), -1)).mean(dim=1)  # all images' tokens in a row
        return mean


def own_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Of the tower alone, as transformers saves it."""
    return {f"tower.{name}": tensor for name, tensor in state.items()}
