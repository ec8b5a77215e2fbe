"""Attention-based multiple-instance learning: tiles vote, weighed by learned attention.

Ilse et al. 2018, "Attention-based Deep Multiple Instance Learning" (arXiv:1802.04712). Widths are
CLAM's (Lu et al. 2021), which later work compares with.
"""

from __future__ import annotations

from torch import Tensor, nn

from coverslip.mil.blocks import Parts, softmax_pooled, without_gradient
from coverslip.mil.slide_model import SlideModel, SlideOutput


class Attention(nn.Module):
    """Scores of tiles, w^T tanh(V h): (n, d) -> (n, branches)."""

    def __init__(self, dim: int, attention_dim: int, branches: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Linear(dim, attention_dim)
        self.score = nn.Linear(attention_dim, branches)
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:  # (n, d)
        scores: Tensor = self.score(self.drop(self.value(h).tanh()))
        return scores  # (n, branches)


class GatedAttention(Attention):
    """Scores of tiles, w^T (tanh(V h) · sigmoid(U h)): (n, d) -> (n, branches)."""

    def __init__(self, dim: int, attention_dim: int, branches: int, dropout: float) -> None:
        super().__init__(dim, attention_dim, branches, dropout)
        self.gate = nn.Linear(dim, attention_dim)

    def forward(self, h: Tensor) -> Tensor:  # (n, d)
        value, gate = self.value(h).tanh(), self.gate(h).sigmoid()  # (n, attention_dim) each
        scores: Tensor = self.score(self.drop(value) * self.drop(gate))
        return scores  # (n, branches)


class AttentionModel(SlideModel):
    """logits = W z + b with z = sum_k(a_k h_k), a = softmax_k(score(h_k)) and h = ReLU(V x + c).

    attend   scores h: one branch for all outputs, or one an output, each with a z of its own
    width    of z: that of h, or of what a model pools in its place

    As the last layer is linear, tile k contributes a_k (W h_k + b).
    """

    def __init__(
        self, dim: int, outputs: int, hidden: int, dropout: float, attend: Attention, width: int
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.project = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.attend = attend
        self.classify = nn.Linear(width, outputs)

    def forward(self, tiles: Tensor) -> SlideOutput:  # (n, dim)
        embedding, attention, votes = softmax_pooled(self._read, tiles)
        # one row of the embedding for all rows of W, or one for each
        logits = (self.classify.weight * embedding).sum(dim=1) + self.classify.bias  # (outputs)
        contributions = attention.detach().T * votes  # (n, outputs)
        return SlideOutput(logits, attention, embedding.flatten(), contributions, logits[None])

    def _read(self, rows: Tensor) -> Parts:
        h = self.project(rows)  # (b, hidden)
        return self.attend(h), h, without_gradient(self.classify, h)


class ABMIL(AttentionModel):
    """ABMIL as first published.

    hidden          width of h
    attention_dim   width of V h
    dropout         share of the numbers of both left out while training
    """

    scorer: type[Attention] = Attention

    def __init__(
        self,
        dim: int,
        outputs: int,
        hidden: int = 512,
        attention_dim: int = 256,
        dropout: float = 0.25,
    ) -> None:
        attend = self.scorer(hidden, attention_dim, 1, dropout)
        super().__init__(dim, outputs, hidden, dropout, attend, width=hidden)


class GatedABMIL(ABMIL):
    """ABMIL whose attention is gated; arguments as ABMIL's."""

    scorer = GatedAttention
