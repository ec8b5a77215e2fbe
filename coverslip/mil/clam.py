"""CLAM: gated attention that is also taught which tiles are alike.

Lu et al. 2021, "Data-efficient and weakly supervised computational pathology on whole-slide images"
(doi:10.1038/s41551-020-00682-w, arXiv:2004.09666). The tiles that a class attends to most and least
are pseudo-labelled, and a small classifier a class learns to tell them apart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.mil.abmil import Attention, AttentionModel, GatedAttention
from coverslip.mil.slide_model import SlideOutput


class ClamSB(AttentionModel):
    """CLAM with a single branch of attention.

    hidden, attention_dim   widths of h and of the attention; 512 and 256 (its "small"), 384 ("big")
    gated                   whether the attention is
    dropout                 share of the numbers of both left out while training
    instances               tiles a class pseudo-labels at either end of its attention; at most half
                            of the bag, so that none is both
    instance_share          of the whole loss, against 1 - instance_share of the logits'
    subtyping               classes exclude each other: what one attends to is no instance of others
    classes                 how many have an instance classifier: 0 for one an output
    """

    many_branches = False

    def __init__(
        self,
        dim: int,
        outputs: int,
        hidden: int = 512,
        attention_dim: int = 256,
        gated: bool = True,
        dropout: float = 0.25,
        instances: int = 8,
        instance_share: float = 0.3,
        subtyping: bool = False,
        classes: int = 0,
    ) -> None:
        if not 0 <= instance_share < 1:
            raise ValueError(f"instance_share must be in 0..1, below 1, got {instance_share}")
        if self.many_branches and classes > outputs:
            raise ValueError(
                f"{classes} classes need a branch of attention each: {outputs} outputs"
            )
        scorer = GatedAttention if gated else Attention
        attend = scorer(hidden, attention_dim, outputs if self.many_branches else 1, dropout)
        super().__init__(dim, outputs, hidden, dropout, attend, width=hidden)
        self.instances, self.subtyping = instances, subtyping
        self.own_weight = instance_share / (1 - instance_share)
        self.instance_classifiers = nn.ModuleList(
            nn.Linear(hidden, 2) for _ in range(classes or outputs)
        )

    def with_own_loss(self, tiles: Tensor, label: int | None) -> tuple[SlideOutput, Tensor]:
        """The same, and the loss of the instance classifiers, weighed so that beside a loss of the
        logits of weight 1 it has its share of the whole.

        Raises ValueError for a label that has no instance classifier.
        """
        found: SlideOutput = self(tiles)
        if label is None:
            return found, found.logits.new_zeros(())
        count = len(self.instance_classifiers)
        if not 0 <= label < count:
            raise ValueError(f"label must be in 0..{count - 1}, a class of the model, got {label}")
        losses = [self._instance_loss(tiles, found.attention, label, inside=True)]
        if self.subtyping:
            others = (c for c in range(count) if c != label)
            losses += [self._instance_loss(tiles, found.attention, c, inside=False) for c in others]
        return found, self.own_weight * torch.stack(losses).sum() / len(losses)

    def _instance_loss(
        self, tiles: Tensor, attention: Tensor, label: int, *, inside: bool
    ) -> Tensor:
        """Of one class' classifier; inside: whether the bag is of that class."""
        row = attention[label if self.many_branches else 0].detach()  # (n)
        most = row.topk(min(self.instances, len(row) // 2 if inside else len(row))).indices  # (k)
        least = row.topk(len(most), largest=False).indices[: len(most) if inside else 0]
        chosen = torch.cat([most, least])  # (2 k), or (k) outside
        if not len(chosen):
            return row.new_zeros(())
        target = torch.zeros_like(chosen)
        target[: len(most)] = int(inside)
        scores = self.instance_classifiers[label](self.project(tiles[chosen]))  # (2 k, 2)
        return smooth_svm(scores, target)


class ClamMB(ClamSB):
    """CLAM with a branch of attention, and a z, for every output; arguments as ClamSB's."""

    many_branches = True


def smooth_svm(scores: Tensor, target: Tensor) -> Tensor:
    """Smooth top-1 SVM loss of margin and temperature 1, the mean: log(sum_c(exp(s_c + [c != y])))
    - s_y (Berrada et al. 2018, arXiv:1802.07595).

    scores   (n, classes)
    target   (n) class indices
    """
    margin = 1 - F.one_hot(target, scores.shape[1])  # (n, classes)
    return F.cross_entropy(scores + margin, target)
