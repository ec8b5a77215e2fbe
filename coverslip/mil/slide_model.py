"""What every multiple-instance model is: a bag of tile embeddings in, logits of the slide out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


class SlideOutput(NamedTuple):
    """What a model makes of one bag of n tiles.

    logits          (outputs)
    attention       (branches, n), each row summing to 1; one branch, or one an output
    embedding       (width), what the logits are made of
    contributions   (n, outputs), without gradient, whose sum over tiles is the logits exactly;
                    (0, outputs) where the model does not add up
    streams         (s, outputs): logits that are taught each on its own and whose mean the logits
                    are; one row but for DSMIL
    """

    logits: Tensor
    attention: Tensor
    embedding: Tensor
    contributions: Tensor
    streams: Tensor


class SlideModel(nn.Module, ABC):
    """A network over bags of one slide or patient each, of any length.

    outputs   how many logits; what they mean is a study's business (see `tasks`)
    """

    outputs: int

    @abstractmethod
    def forward(self, tiles: Tensor) -> SlideOutput:
        """tiles (n, dim) float32, n at least 1. Their order changes nothing but the last bits,
        where the model's paper does not say otherwise."""

    def prepare(self, means: Callable[[], Tensor]) -> None:
        """Called once, before the first step of a training; most models have nothing to do.

        means   gives float64 (b, dim), the mean embedding of each bag that is trained on. All of
                them are read for it, so only a model that needs them asks

        What a model keeps of them belongs in buffers, which are saved with its weights.
        """

    def with_own_loss(self, tiles: Tensor, label: int | None) -> tuple[SlideOutput, Tensor]:
        """The same, and a loss of the model's own beside that of its logits: 0 where it has none.

        label   class of the study's first task; None where unknown, or no class
        """
        found: SlideOutput = self(tiles)
        return found, found.logits.new_zeros(())
