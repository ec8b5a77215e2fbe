"""DSMIL: the most telling tile of each output, and attention by likeness to it.

Li et al. 2021, "Dual-stream Multiple Instance Learning Network for Whole Slide Image
Classification with Self-supervised Contrastive Learning" (arXiv:2011.08939).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coverslip.mil.blocks import Parts, by_blocks, softmax_pooled
from coverslip.mil.slide_model import SlideModel, SlideOutput


class DSMIL(SlideModel):
    """logits = (s_m + s_b) / 2, with for each output c, whose most telling tile is m:

        s_m = max_k(w_c x_k + b_c)               the first stream
        a_k = softmax_k(<q_k, q_m> / sqrt(d))    with q = Q x, of width d
        z_c = sum_k(a_k V x_k)
        s_b = a linear layer of all z            the second stream

    query_dim   width of q
    dropout     share of x's numbers left out before V while training
    """

    def __init__(self, dim: int, outputs: int, query_dim: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        self.outputs = outputs
        self.instance = nn.Linear(dim, outputs)
        self.query = nn.Linear(dim, query_dim)
        self.drop = nn.Dropout(dropout)
        self.value = nn.Linear(dim, dim)
        self.classify = nn.Linear(outputs * dim, outputs)

    def forward(self, tiles: Tensor) -> SlideOutput:  # (n, dim)
        (scores,) = by_blocks(lambda rows: (self.instance(rows),), tiles)
        highest, critical = torch.cat(scores).max(dim=0)  # (outputs) each
        wanted = self.query(tiles[critical])  # (outputs, d)

        def read(rows: Tensor) -> Parts:
            likeness = self.query(rows) @ wanted.T / wanted.shape[1] ** 0.5  # (b, outputs)
            return likeness, self.drop(rows)

        mean, attention = softmax_pooled(read, tiles)  # (outputs, dim), (outputs, n)
        # V is linear and attention sums to 1: the mean's value is the mean of the values
        embedding = self.value(mean).flatten()  # (outputs · dim)
        streams = torch.stack([highest, self.classify(embedding)])  # (2, outputs)
        none = streams.new_empty(0, self.outputs)
        return SlideOutput(streams.mean(dim=0), attention, embedding, none, streams)
