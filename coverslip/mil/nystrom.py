"""Attention between very many tokens, approximated through a few landmarks.

Xiong et al. 2021, "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention"
(arXiv:2102.03902), with TransMIL's settings. In blocks of tokens, so that memory does not grow with
tokens x landmarks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.mil import blocks
from coverslip.mil.blocks import Parts, recomputed

ITERATIONS = 6
"""Of the pseudo-inverse."""
REACH = 16
"""How far, in tokens, the convolution of the values reaches on either side: its kernel is of 33."""


class Landmarks(NamedTuple):
    """What tokens see each other through; m of them, in each head of width e.

    queries, keys   (heads, m, e)
    masses          (heads, m): log-sum-exp of a landmark's query with the keys of all tokens
    inverse         (heads, m, m): pseudo-inverse of the landmarks' attention to each other
    context         (heads, m, e): what the landmarks see of the tokens' values, times `inverse`
    """

    queries: Tensor
    keys: Tensor
    masses: Tensor
    inverse: Tensor
    context: Tensor


class NystromLayer(nn.Module):
    """x + attention(LayerNorm(x)), where attention is, in each head, with s = 1 / sqrt(its width):

        softmax(s Q L^T) pinv(softmax(s M L^T)) softmax(s M K^T) V + convolution(V)

    M and L are the landmarks of Q and K: means of runs of tokens. Zeros in front fill up the first
    run, and are attended to like tokens, as in the implementation that TransMIL was trained with.
    """

    def __init__(self, width: int, heads: int, landmarks: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"hidden must be a multiple of heads, got {width} and {heads}")
        self.heads, self.landmarks = heads, landmarks
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.convolve = nn.Conv2d(heads, heads, (2 * REACH + 1, 1), groups=heads, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, tokens: Tensor) -> Tensor:  # (t, d) -> (t, d)
        lead, pieces = self._pieces(tokens)
        marks = self._landmarks(pieces)
        firsts = [pieces[0][:0], *pieces[:-1]]  # what comes before each piece, and after it
        lasts = [*pieces[1:], pieces[0][:0]]
        rows = [
            recomputed(len(pieces) > 1, self._rows, *three, marks.keys, marks.context)[0]
            for three in zip(firsts, pieces, lasts, strict=True)
        ]  # (b, d) each
        rows[0] = rows[0][lead:]
        own = torch.split(tokens, [len(r) for r in rows])
        return torch.cat([a + b for a, b in zip(own, rows, strict=True)])

    def of_first(self, tokens: Tensor) -> Parts:
        """(d): the result for the first token alone; (t): its attention to each token, the mean
        over heads, without gradient."""
        lead, pieces = self._pieces(tokens)
        marks = self._landmarks(pieces)
        before, first, after = torch.split(
            torch.cat(pieces[:2]), [lead, 1, sum(map(len, pieces[:2])) - lead - 1]
        )
        (row,) = self._rows(before, first, after, marks.keys, marks.context)  # (1, d)
        with torch.no_grad():
            query = self._heads(self.query(first))  # (heads, 1, e)
            through = self._similar(query, marks.keys).softmax(dim=-1) @ marks.inverse
            parts = []
            for piece in pieces:
                seen = self._similar(marks.queries, self._heads(self.key(piece)))  # (heads, m, b)
                parts.append(through @ (seen - marks.masses[..., None]).exp())  # (heads, 1, b)
        return tokens[0] + row[0], torch.cat(parts, dim=2).mean(dim=(0, 1))[lead:]

    def _pieces(self, tokens: Tensor) -> tuple[int, tuple[Tensor, ...]]:
        """How many zeros fill the first run; and they and the normalised tokens, (b, d) each, in
        whole runs. All but the last are as long as the convolution reaches, and hold the zeros."""
        lead = -len(tokens) % self.landmarks
        x = F.pad(self.norm(tokens), (0, 0, lead, 0))  # (lead + t, d)
        run = len(x) // self.landmarks
        runs = -(-max(blocks.BLOCK, REACH, self.landmarks) // run)
        return lead, torch.split(x, runs * run)

    def _landmarks(self, pieces: tuple[Tensor, ...]) -> Landmarks:
        run = sum(map(len, pieces)) // self.landmarks
        means = torch.cat([p.reshape(-1, run, p.shape[1]).mean(dim=1) for p in pieces])  # (m, d)
        queries, keys = self._heads(self.query(means)), self._heads(self.key(means))
        inverse = pseudo_inverse(self._similar(queries, keys).softmax(dim=-1))  # (heads, m, m)
        long = len(pieces) > 1
        parts = [recomputed(long, self._seen, piece, queries) for piece in pieces]
        masses = torch.stack([mass for mass, _ in parts])  # (·, heads, m)
        share = masses.softmax(dim=0)[..., None]
        seen = (share * torch.stack([mean for _, mean in parts])).sum(dim=0)  # (heads, m, e)
        return Landmarks(queries, keys, masses.logsumexp(dim=0), inverse, inverse @ seen)

    def _seen(self, rows: Tensor, queries: Tensor) -> Parts:
        """What landmarks see in some of the tokens: log-sum-exp, and the softmax's mean of V."""
        similar = self._similar(queries, self._heads(self.key(rows)))  # (heads, m, b)
        mean = similar.softmax(dim=-1) @ self._heads(self.value(rows))  # (heads, m, e)
        return similar.logsumexp(dim=-1), mean

    def _rows(
        self, before: Tensor, rows: Tensor, after: Tensor, keys: Tensor, context: Tensor
    ) -> Parts:
        """(b, d): attention's result for some tokens, between others; zeros are beyond those."""
        queries = self._heads(self.query(rows))  # (heads, b, e)
        found = self._similar(queries, keys).softmax(dim=-1) @ context  # (heads, b, e)
        before, after = before[max(len(before) - REACH, 0) :], after[:REACH]
        around = torch.cat([before, rows, after])
        around = F.pad(around, (0, 0, REACH - len(before), REACH - len(after)))
        found = found + self.convolve(self._heads(self.value(around))[None])[0]
        return (self.out(found.transpose(0, 1).flatten(1)),)

    def _heads(self, x: Tensor) -> Tensor:  # (b, d) -> (heads, b, e)
        return x.reshape(len(x), self.heads, -1).transpose(0, 1)

    def _similar(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(heads, a, b) of (heads, a, e) and (heads, b, e)."""
        scale: float = queries.shape[-1] ** -0.5
        return (queries * scale) @ keys.transpose(1, 2)


def pseudo_inverse(x: Tensor) -> Tensor:
    """Moore-Penrose's, (..., m, m), by ITERATIONS of Razavi et al. 2014 from x^T / (|x|_1 |x|_inf),
    with the largest norms of all heads, as in the implementation that TransMIL was trained with."""
    rows, columns = x.abs().sum(dim=-1).amax(), x.abs().sum(dim=-2).amax()
    z = x.transpose(-1, -2) / (rows * columns)
    identity = torch.eye(x.shape[-1], device=x.device, dtype=x.dtype)
    for _ in range(ITERATIONS):
        xz = x @ z
        z = 0.25 * z @ (13 * identity - xz @ (15 * identity - xz @ (7 * identity - xz)))
    return z
