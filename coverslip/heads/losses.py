"""What several heads minimise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-3
"""Keeps Dice defined where a class has no pixels, as published for HoVer-Net."""


def pixel_classes(logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """Cross-entropy, mean over pixels, plus 1 - Dice, sum over classes; a scalar.

    logits   (b, classes, H, W)
    target   (b, H, W), class of every pixel; anything where it is not known
    known    (b, H, W), or (b, 1, 1) for whole images, 0 or 1: pixels with 0 give no gradient at all
    """
    classes = logits.shape[1]
    index = target.long().clamp(0, classes - 1)  # (b, H, W)
    there = torch.ones_like(logits[:, 0]) if known is None else known.expand(index.shape).float()
    entropy = F.cross_entropy(logits, index, reduction="none")
    entropy = (entropy * there).sum() / there.sum().clamp_min(1)
    chance = logits.softmax(dim=1) * there[:, None]  # (b, classes, H, W)
    truth = F.one_hot(index, classes).movedim(-1, 1) * there[:, None]
    shared, total = (chance * truth).sum((0, 2, 3)), (chance + truth).sum((0, 2, 3))  # (classes)
    dice = (2 * shared + SMOOTH) / (total + SMOOTH)
    return entropy + (1 - dice).sum()
