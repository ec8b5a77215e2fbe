"""PLUTO's pretraining objective: two networks that agree, and one that paints what it cannot see.

    DINO      the class tokens of all views of a tile predict the teacher's (Caron et al. 2021,
              arXiv:2104.14294)
    iBOT      withheld patches predict the teacher's patch tokens (Zhou et al. 2021,
              arXiv:2111.07832)
    KoLeo     class tokens of a batch keep apart (DINOv2, Oquab et al. 2023, arXiv:2304.07193)
    MAE       a shallow decoder paints the withheld patches (He et al. 2021, arXiv:2111.06377)
    Fourier   what it painted is compared in the frequency domain, where the fine detail that a mean
              squared error lets blur away counts more (PLUTO, Juyal et al. 2024, arXiv:2405.07905)

Where PLUTO's paper leaves it open: one masked pass serves iBOT and MAE (withheld patches are
replaced by a token, as in SimMIM, not left out); patches are painted up to their mean and spread;
and the Fourier term is the mean amplitude of the difference's spectrum, each frequency weighted by
its distance from zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coverslip.encoders.pluto import Block, Hidden, Pluto
from coverslip.encoders.pretrain_views import Views

FLAT = 0.01
"""Added to the variance of a patch, so that what is blank stays so: a standard deviation of 6 grey
levels."""


class ProjectionHead(nn.Module):
    """Tokens to prototypes: three layers, then cosines with learned directions."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor) -> Tensor:  # (..., d) -> (..., prototypes)
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Painter(nn.Module):
    """Tokens of patches to pixels: a shallow decoder."""

    def __init__(self, width: int, inner: int, side: int, depth: int = 2) -> None:
        super().__init__()
        self.side = side
        self.enter = nn.Linear(width, inner)
        self.blocks = nn.ModuleList(Block(inner, inner // 32, 4 * inner) for _ in range(depth))
        self.leave = nn.Linear(inner, 3 * side * side)

    def forward(self, tokens: Tensor, patch: int) -> Tensor:
        """(b, h · w, d) -> (b, h · w, 3, patch, patch)."""
        x = self.enter(tokens)
        for block in self.blocks:
            x = block(x, None)
        pixels: Tensor = self.leave(x).float().reshape(-1, 3, self.side, self.side)
        if patch != self.side:
            pixels = F.interpolate(pixels, (patch, patch), mode="bilinear", antialias=True)
        return pixels.reshape(*tokens.shape[:2], 3, patch, patch)


class Trained(nn.Module):
    """What is trained: the encoder, and all that only its training needs."""

    def __init__(
        self, encoder: Pluto, width: int, prototypes: int, head_hidden: int, teacher_dim: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.tile_head = ProjectionHead(width, head_hidden, 128, prototypes)
        self.patch_head = ProjectionHead(width, head_hidden, 128, prototypes)
        self.hidden_token = nn.Parameter(torch.zeros(width))
        self.painter = Painter(width, 128, encoder.patch)
        self.imitate = nn.Linear(2 * width, teacher_dim) if teacher_dim else None


class Losses(NamedTuple):
    """Each term before its weight; scalars."""

    dino: Tensor
    ibot: Tensor
    koleo: Tensor
    mae: Tensor
    fourier: Tensor
    distil: Tensor


def losses(
    student: Trained,
    teacher: Trained,
    views: Views,
    where: Tensor,
    patch: int,
    temperature: tuple[float, float],
    wanted: Tensor | None,
) -> Losses:
    """All terms for one batch.

    where         (2 · b, h, w) bool: patches of the large crops withheld from the student
    temperature   of the student's and of the teacher's softmax
    wanted        (b, teacher_dim): another network's embedding of each tile, standardised, or None
    """
    whole = views.whole
    count = len(whole) // 2
    with torch.no_grad():
        seen = teacher.encoder.forward_features(whole, patch)  # (2b, t, d)
        first = teacher.encoder.num_prefix_tokens
        tile_target = balanced(teacher.tile_head(seen[:, 0]) / temperature[1])  # (2b, k)
        places = seen[:, first:][where.flatten(1)]  # (withheld, d)
        patch_target = balanced(teacher.patch_head(places) / temperature[1])
    tokens = student.encoder.forward_features(whole, patch, Hidden(where, student.hidden_token))
    small = student.encoder.forward_features(views.parts, patch)
    cls = torch.cat([tokens[:, 0], small[:, 0]])
    logits = student.tile_head(cls) / temperature[0]  # ((2 + n) · b, k)
    patches = tokens[:, first:]  # (2b, h · w, d)
    guesses = student.patch_head(patches[where.flatten(1)]) / temperature[0]
    painted = student.painter(patches[::2], patch)
    mae, fourier = painting_losses(painted, whole[::2], where[::2])
    return Losses(
        agreement(tile_target, logits, count),
        per_image(cross_entropy(patch_target, guesses), where),
        torch.stack([crowding(half) for half in tokens[:, 0].chunk(2)]).mean(),
        mae,
        fourier,
        _imitation(student, tokens[:, 0], patches, wanted),
    )


def agreement(target: Tensor, logits: Tensor, count: int) -> Tensor:
    """Every view's guess against the teacher's view of each large crop but itself."""
    terms = [
        cross_entropy(t, guess).mean()
        for i, t in enumerate(target.chunk(len(target) // count))
        for j, guess in enumerate(logits.chunk(len(logits) // count))
        if i != j
    ]
    return torch.stack(terms).mean()


def balanced(logits: Tensor, rounds: int = 3) -> Tensor:
    """(n, k) -> (n, k) assignments whose rows sum to 1 and that use all prototypes alike:
    Sinkhorn-Knopp (Cuturi 2013; as SwAV and DINOv2 use it)."""
    q = torch.exp((logits - logits.amax()).float())
    for _ in range(rounds):
        q = q / q.sum(dim=0, keepdim=True).clamp_min(1e-12) / q.shape[1]
        q = q / q.sum(dim=1, keepdim=True).clamp_min(1e-12) / q.shape[0]
    return q * q.shape[0]


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """(n, k), (n, k) -> (n)."""
    return -(target * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


def per_image(values: Tensor, where: Tensor) -> Tensor:
    """Mean over images of the mean over their withheld patches; values (withheld,)."""
    per = where.flatten(1).sum(dim=1)  # (images,)
    weight = (1 / per.clamp_min(1))[:, None].expand(-1, where[0].numel())[where.flatten(1)]
    return (values * weight).sum() / (per > 0).sum().clamp_min(1)


def crowding(x: Tensor) -> Tensor:
    """KoLeo: minus the mean log distance of each to its nearest neighbour on the sphere."""
    x = F.normalize(x.float(), dim=-1)
    with torch.no_grad():
        similarity = x @ x.T
        similarity.fill_diagonal_(-2)
        nearest = similarity.argmax(dim=1)
    return -torch.log(F.pairwise_distance(x, x[nearest]) + 1e-8).mean()


def painting_losses(painted: Tensor, images: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """(MAE, Fourier) of withheld patches only, each patch's own mean and spread taken out of what
    was to be painted: texture counts, not how dark the patch is.

    painted   (b, h · w, 3, p, p); images (b, 3, H, W); where (b, h, w) bool
    """
    patch, hidden = painted.shape[-1], where.flatten(1)
    (rows, columns), count = where.shape[1:], len(images)
    pieces = images.reshape(count, 3, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    wanted = pieces.reshape(count, rows * columns, 3, patch, patch)[hidden].float()
    mean = wanted.mean(dim=(1, 2, 3), keepdim=True)
    spread = (wanted.var(dim=(1, 2, 3), keepdim=True) + FLAT).sqrt()
    difference = painted[hidden].float() - (wanted - mean) / spread  # (withheld, 3, p, p)
    spectrum = torch.fft.rfft2(difference, norm="ortho").abs()
    high = torch.fft.fftfreq(patch, device=images.device).abs()[:, None]
    wide = torch.fft.rfftfreq(patch, device=images.device)[None]
    weight = (high.square() + wide.square()).sqrt()
    return difference.square().mean(), (spectrum * weight / weight.mean()).mean()


def _imitation(student: Trained, cls: Tensor, patches: Tensor, wanted: Tensor | None) -> Tensor:
    if wanted is None or student.imitate is None:
        return cls.new_zeros(())
    said = student.imitate(torch.cat([cls, patches.mean(dim=1)], dim=1)).float()  # (2b, D)
    return F.smooth_l1_loss(said, torch.cat([wanted, wanted]))
