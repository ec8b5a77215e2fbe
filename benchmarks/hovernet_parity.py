"""Whether HoVer-Net gives what TIAToolbox's gives with the same weights.

    python -P benchmarks/hovernet_parity.py

in an environment that has TIAToolbox too (`pip install tiatoolbox`). `-P`, for what it imports
looks for a module `kernels`, and would find this file's neighbour. The weights are random, the
running statistics too, so that no layer is without effect.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import torch
from tiatoolbox.models.architecture.hovernet import HoVerNet as Theirs

from coverslip.heads.hovernet import HoverNet, published_checkpoint

SIDE = {"fast": 256, "original": 270}


def randomise(network: torch.nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)


def compared(mode: Literal["fast", "original"], classes: int) -> str:
    torch.manual_seed(0)
    theirs = Theirs(num_types=classes + 1 if classes > 1 else None, mode=mode).eval()
    randomise(theirs)
    ours = HoverNet(classes=classes, mode=mode).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "published.tar"
        torch.save({"desc": theirs.state_dict()}, path)
        ours.load_state_dict(published_checkpoint(path))
    image = torch.randint(0, 256, (1, 3, SIDE[mode], SIDE[mode])).float()
    with torch.inference_mode():
        expected, found = theirs(image), ours.valid(image / 255)
    pairs = [(expected["np"], found.nucleus), (expected["hv"], found.offset)]
    if classes > 1:
        pairs.append((expected["tp"], found.classes))
    assert all(a.shape == b.shape for a, b in pairs)
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    largest = max(float(a.abs().max()) for a, _ in pairs)
    count = sum(p.numel() for p in ours.parameters())
    keys = len(ours.state_dict())
    return (
        f"{mode}, {classes} classes: {count} parameters, {keys} keys, "
        f"{SIDE[mode]} -> {found.nucleus.shape[-1]} px, largest output {largest:.3g}, "
        f"largest difference {worst:.2g}"
    )


if __name__ == "__main__":
    for mode in ("fast", "original"):
        for classes in (1, 5):
            print(compared(mode, classes))  # type: ignore[arg-type]
