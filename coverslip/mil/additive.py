"""Additive MIL: every tile's part in every logit, exactly.

Javed et al. 2022, "Additive MIL: Intrinsically Interpretable Multiple Instance Learning for
Pathology" (arXiv:2206.01794).
"""

from __future__ import annotations

from torch import Tensor, nn

from coverslip.mil.abmil import AttentionModel, GatedAttention
from coverslip.mil.blocks import Parts, without_gradient


class AdditiveMIL(AttentionModel):
    """logits = sum_k(f(a_k h_k)) + b, with f a perceptron of one hidden layer.

    hidden          width of h = ReLU(V x + c)
    attention_dim   width of the attention
    part_dim        hidden width of f
    dropout         share of the numbers of all three left out while training

    f has no biases here: a tile without attention then contributes nothing, and logits do not grow
    with the number of tiles, as n f(0) would. So f(a h) = a f(h) for a >= 0, and the embedding is
    f's hidden layer, summed. b is contributed by attention: tile k gives f(a_k h_k) + a_k b.
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        hidden: int = 512,
        attention_dim: int = 256,
        part_dim: int = 256,
        dropout: float = 0.25,
    ) -> None:
        attend = GatedAttention(hidden, attention_dim, 1, dropout)
        super().__init__(dim, outputs, hidden, dropout, attend, width=part_dim)
        self.part = nn.Sequential(
            nn.Linear(hidden, part_dim, bias=False), nn.ReLU(), nn.Dropout(dropout)
        )

    def _read(self, rows: Tensor) -> Parts:
        h = self.project(rows)  # (b, hidden)
        part = self.part(h)  # (b, part_dim)
        return self.attend(h), part, without_gradient(self.classify, part)
