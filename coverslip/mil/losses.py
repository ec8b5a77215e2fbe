"""What a study's tasks minimise. Each is a mean over bags; of no bag at all it is 0, and so is its
gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_loss(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy; a scalar.

    logits   (b, classes)
    label    (b) int64
    weight   (classes). It multiplies and is not divided out again: a step of one bag would
             otherwise know no weights.
    """
    return _mean(F.cross_entropy(logits, label, reduction="none"), label, weight)


def ordinal_loss(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of the questions "is it above class k?", summed over them; a scalar.

    logits   (b, classes - 1), log odds of being above class k (Frank & Hall 2001; Niu et al. 2016)
    label    (b) int64; weight (classes) as in `class_loss`
    """
    step = torch.arange(logits.shape[1], device=logits.device)
    above = (label[:, None] > step).to(logits.dtype)  # (b, classes - 1)
    entropy = F.binary_cross_entropy_with_logits(logits, above, reduction="none")
    return _mean(entropy.sum(dim=1), label, weight)


def number_loss(value: Tensor, wanted: Tensor) -> Tensor:
    """Squared error, beyond 1 growing like the error itself (smooth L1); both (b); a scalar."""
    return _mean(F.smooth_l1_loss(value, wanted, reduction="none"))


def cox_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative log partial likelihood by event (Cox 1972; ties as Efron 1977); a scalar.

    risk    (b), log risks
    time    (b) float64: until the event, or how long it was waited for
    event   (b) bool: it happened

    A bag is compared with those that were still at risk when its event happened, the censored of
    the same time among them. So one bag alone says nothing, and neither do bags without an event.
    """
    if not event.any():
        return risk[:0].sum()
    order = torch.argsort(time, descending=True, stable=True)
    risk, time, event = risk[order], time[order], event[order]
    _, group, size = torch.unique_consecutive(time, return_inverse=True, return_counts=True)
    everybody = risk.logcumsumexp(0)[size.cumsum(0) - 1][group]  # (b) log of all at risk
    died = group[event]  # (events), never falling
    deaths = torch.bincount(died, minlength=len(size))  # (times)
    share = (risk - everybody).exp()[event]  # of its own time's risk set
    tied = share.new_zeros(len(size)).index_add(0, died, share)[died]
    rank = torch.arange(len(died), device=risk.device) - (deaths.cumsum(0) - deaths)[died]
    gone = rank / deaths[died]  # what Efron takes away of those who die at the same time
    return _mean(everybody[event] - risk[event] + torch.log1p(-gone * tied))


def hazard_loss(logits: Tensor, interval: Tensor, event: Tensor) -> Tensor:
    """Negative log likelihood of hazards in discrete time (Zadeh & Schmid 2020); a scalar.

    logits     (b, bins), log odds of the event in a bin for who reached it
    interval   (b) int64, the bin of the event or of the last look; event (b) bool

    Who is censored in a bin counts as having survived it.
    """
    bins = torch.arange(logits.shape[1], device=logits.device)
    survived = (bins < interval[:, None]) | ((bins == interval[:, None]) & ~event[:, None])
    struck = (bins == interval[:, None]) & event[:, None]  # (b, bins)
    likelihood = F.logsigmoid(-logits) * survived + F.logsigmoid(logits) * struck
    return _mean(-likelihood.sum(dim=1))


def _mean(loss: Tensor, label: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    if label is not None and weight is not None:
        loss = loss * weight[label]
    return loss.sum() / max(len(loss), 1)
