"""Bags to vectors by mean, by maximum and by learned attention.

Ilse et al. 2018, "Attention-based Deep Multiple Instance Learning" (arXiv:1802.04712), as Feather,
CHIEF, MADELEINE and TANGLE use it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from coverslip.encoders.networks.bag import Bag, Pooled


class SoftmaxSum:
    """softmax(scores) @ values over tiles that come in blocks.

    The sums are kept relative to the largest score so far, and shrink when a larger one comes
    (Milakov & Gimelshein 2018, arXiv:1805.02867). In float32 whatever the blocks are in.
    """

    def __init__(self) -> None:
        self._peak: Tensor | None = None
        self._total = self._weighed = torch.empty(0)

    def add(self, scores: Tensor, values: Tensor) -> None:
        """scores (..., m, n); values (..., n, d)."""
        with torch.autocast(scores.device.type, enabled=False):
            scores, values = scores.float(), values.float()
            peak = scores.amax(dim=-1, keepdim=True)  # (..., m, 1)
            if self._peak is not None:
                peak = torch.maximum(peak, self._peak)
            share = (scores - peak).exp()  # (..., m, n)
            total, weighed = share.sum(dim=-1, keepdim=True), share @ values  # (..., m, 1 | d)
            if self._peak is not None:
                shrink = (self._peak - peak).exp()
                total, weighed = total + shrink * self._total, weighed + shrink * self._weighed
            self._peak, self._total, self._weighed = peak, total, weighed

    def result(self) -> Tensor:
        """(..., m, d)."""
        return self._weighed / self._total


class MeanPooling(nn.Module):
    """The mean of the tiles."""

    def forward(self, bag: Bag) -> Pooled:
        width = bag.features.shape[1]
        total = sum(x.sum(dim=0, dtype=torch.float64) for x in bag.blocks(width))
        share = torch.full((1, len(bag)), 1 / len(bag), device=bag.device)
        return Pooled((torch.as_tensor(total) / len(bag)).float(), share)


class MaxPooling(nn.Module):
    """The largest of every number over the tiles."""

    def forward(self, bag: Bag) -> Pooled:
        blocks = [x.amax(dim=0) for x in bag.blocks(bag.features.shape[1])]
        return Pooled(torch.stack(blocks).amax(dim=0), torch.empty(0, len(bag), device=bag.device))


class GatedAttention(nn.Module):
    """A score for every tile."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, h: Tensor) -> Tensor:  # (n, d) -> (n)
        out: Tensor = self.score(self.value(h).tanh() * self.gate(h).sigmoid())
        return out.squeeze(-1)


class AttentionPooling(nn.Module):
    """One head of gated attention over projected tiles; the embedding is their weighted mean."""

    def __init__(self, input_dim: int, hidden: int = 512, attention_dim: int = 384) -> None:
        super().__init__()
        self.widest = max(input_dim, hidden)
        self.project = nn.Sequential(nn.Linear(input_dim, hidden), nn.ReLU())
        self.attend = GatedAttention(hidden, attention_dim)

    def forward(self, bag: Bag) -> Pooled:
        mean, scores = SoftmaxSum(), []
        for x in bag.blocks(self.widest):
            h = self.project(x)  # (b, hidden)
            scores.append(self.attend(h)[None])  # (1, b)
            mean.add(scores[-1], h)
        return Pooled(mean.result()[0], torch.cat(scores, dim=1).float().softmax(dim=1))


class Chief(nn.Module):
    """CHIEF (Wang et al. 2024, doi:10.1038/s41586-024-07894-z).

    organ   None: the weighted mean of the tiles as they came (768), its `WSI_feature`.
            0 to 18, as its authors number anatomic sites: the weighted mean of the projected tiles
            plus the prompt of that organ (512), its `WSI_feature_anatomical`
    """

    def __init__(
        self,
        input_dim: int = 768,
        hidden: int = 512,
        attention_dim: int = 256,
        organ: int | None = None,
    ) -> None:
        super().__init__()
        self.organ, self.widest = organ, max(input_dim, hidden)
        self.project = nn.Sequential(nn.Linear(input_dim, hidden), nn.ReLU())
        self.attend = GatedAttention(hidden, attention_dim)
        if organ is not None:
            self.register_buffer("organs", torch.zeros(19, 768))  # their names, by a text encoder
            self.prompt = nn.Sequential(nn.Linear(768, hidden), nn.ReLU())

    def forward(self, bag: Bag) -> Pooled:
        mean, scores = SoftmaxSum(), []
        for x in bag.blocks(self.widest):
            h = self.project(x)  # (b, hidden)
            scores.append(self.attend(h)[None])  # (1, b)
            mean.add(scores[-1], x if self.organ is None else h)
        embedding = mean.result()[0]  # (input_dim | hidden)
        if self.organ is not None:
            embedding = embedding + self.prompt(self.get_buffer("organs")[self.organ])
        return Pooled(embedding, torch.cat(scores, dim=1).float().softmax(dim=1))


class MultiHeadPooling(nn.Module):
    """Gated attention in several heads over a perceptron's output, joined by one last layer.

    MADELEINE (Jaume et al. 2024, arXiv:2408.02859) and TANGLE (Jaume et al. 2024,
    arXiv:2405.11618). Number i of the perceptron's output belongs to head i mod `heads`.
    """

    def __init__(self, input_dim: int, hidden: int = 512, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.widest = heads, max(input_dim, hidden * heads)
        widths = (input_dim, hidden, hidden, hidden * heads)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
        self.embed = nn.Sequential(*layers)
        self.attend = nn.ModuleList(GatedAttention(hidden, hidden) for _ in range(heads))
        self.project = nn.Linear(hidden * heads, hidden)

    def forward(self, bag: Bag) -> Pooled:
        mean, scores = SoftmaxSum(), []
        for x in bag.blocks(self.widest):
            h = self.embed(x).unflatten(1, (-1, self.heads)).permute(2, 0, 1)  # (heads, b, hidden)
            of_heads = [attend(part) for attend, part in zip(self.attend, h, strict=True)]
            scores.append(torch.stack(of_heads))  # (heads, b)
            mean.add(scores[-1][:, None], h)
        joined = mean.result()[:, 0].T.flatten()  # (hidden · heads), heads interleaved
        attention = torch.cat(scores, dim=1).float().softmax(dim=1)
        return Pooled(self.project(joined).float(), attention)
