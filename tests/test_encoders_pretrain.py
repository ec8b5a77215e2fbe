"""Pretraining: each term by its law, views by theirs, and a training that stops and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coverslip.curve import log_rows
from coverslip.encoders.loading import load_encoder
from coverslip.encoders.pretrain import PretrainConfig, Pretraining, TileBatch
from coverslip.encoders.pretrain_objective import (
    balanced,
    crowding,
    painting_losses,
    per_image,
)
from coverslip.encoders.pretrain_views import (
    blurred,
    hidden_patches,
    jittered,
    turned_crops,
    views_of,
)
from coverslip.errors import InvalidConfig, MissingWeights
from coverslip.settings import settings_from_toml

TINY = PretrainConfig(
    name="tiny",
    input_px=64,
    width=48,
    depth=2,
    heads=3,
    registers=1,
    patches=(16, 32),
    mpps=(0.5,),
    tile=80,
    large=64,
    small=32,
    parts=2,
    steps=6,
    batch=4,
    prototypes=16,
    head_hidden=32,
    probe_every=3,
    save_every=2,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Tiles:
    """Tiles that are noise of their own for every step."""

    def __init__(self, config: PretrainConfig = TINY) -> None:
        self.config, self.asked = config, list[int]()

    def batch(self, step: int) -> TileBatch:
        self.asked.append(step)
        side, count = self.config.tile, self.config.batch
        pixels = np.random.default_rng(step).integers(0, 256, (count, side, side, 3), np.uint8)
        return TileBatch(pixels, np.arange(step * count, (step + 1) * count))


def test_a_whole_crop_is_the_tile_turned_or_mirrored() -> None:
    tile = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), np.uint8))
    turned = [torch.rot90(t, k, (2, 3)) for t in (tile, tile.flip(3)) for k in range(4)]
    seen = set()
    for seed in range(40):
        crop = turned_crops(tile, 16, (1.0, 1.0), seeded(seed))
        same = [i for i, t in enumerate(turned) if torch.allclose(crop, t.float(), atol=0.02)]
        assert len(same) == 1
        seen.add(same[0])
    assert seen == set(range(8))


def test_a_crop_is_enlarged_tissue() -> None:
    """A quarter of a smooth picture's area, shown at the same side: its slope is halved."""
    x = torch.arange(64.0).expand(1, 3, 64, 64)
    crop = turned_crops(x, 64, (0.25, 0.25), seeded(1))
    slope = max(abs(crop.diff(dim=3).median()), abs(crop.diff(dim=2).median()))
    assert slope == pytest.approx(0.5, abs=1e-3)


def test_what_is_shrunk_is_averaged() -> None:
    """A chessboard of single pixels, seen at a quarter of its side, is grey and not a pattern."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = (255.0 * ((x + y) % 2)).expand(1, 3, 64, 64)
    crop = turned_crops(board, 16, (1.0, 1.0), seeded())
    torch.testing.assert_close(crop, torch.full_like(crop, 127.5))


def test_views_have_their_shapes_and_depend_on_the_seed_alone() -> None:
    tiles = torch.from_numpy(Tiles().batch(0).pixels).permute(0, 3, 1, 2)
    views = [
        views_of(tiles, (64, (0.3, 1.0)), (32, (0.1, 0.3)), 3, 0.3, 0.5, seeded(s))
        for s in (7, 7, 8)
    ]
    assert views[0].whole.shape == (8, 3, 64, 64)
    assert views[0].parts.shape == (12, 3, 32, 32)
    assert torch.equal(views[0].whole, views[1].whole)
    assert not torch.equal(views[0].whole, views[2].whole)


def test_stains_change_and_come_back() -> None:
    x = 40 + 200 * torch.rand(4, 3, 8, 8, generator=seeded())
    torch.testing.assert_close(jittered(x, 1e-6, seeded()), x, rtol=0, atol=0.02)
    changed = jittered(x, 0.3, seeded())
    assert (changed - x).abs().mean() > 5
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_blur_keeps_the_mean_and_takes_detail() -> None:
    x = 255 * torch.rand(8, 3, 32, 32, generator=seeded())
    some = blurred(x, 0.5, seeded(3))
    moved = (some != x).flatten(1).any(dim=1)
    assert 0 < moved.sum() < 8
    assert (some[moved].std(dim=(2, 3)) < x[moved].std(dim=(2, 3))).all()
    torch.testing.assert_close(some.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)), rtol=0.02, atol=0)


@pytest.mark.parametrize(("patch", "cell"), [(8, 4), (16, 2), (32, 1)])
def test_what_is_hidden_is_the_same_tissue_at_every_patch_size(patch: int, cell: int) -> None:
    where = hidden_patches(6, 128 // patch, cell, (0.1, 0.5), seeded())
    fine = where.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    coarse = hidden_patches(6, 4, 1, (0.1, 0.5), seeded()).repeat_interleave(32, 1)
    assert torch.equal(fine, coarse.repeat_interleave(32, 2))
    assert not where[1::2].any()
    share = where[::2].float().mean(dim=(1, 2))
    assert (share > 0).all()
    assert (share <= 0.5 + 1 / 16).all()


def test_assignments_are_balanced() -> None:
    logits = torch.randn(32, 8, generator=seeded()) * 3
    logits[:, 0] += 10  # all tiles would choose the first prototype
    q = balanced(logits, rounds=50)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(32))
    torch.testing.assert_close(q.sum(dim=0), torch.full((8,), 4.0), rtol=1e-3, atol=1e-3)


def test_crowding_by_hand() -> None:
    """Two unit vectors at a right angle are sqrt(2) apart; a third on the first is 0 apart."""
    apart = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    assert crowding(apart).item() == pytest.approx(-0.5 * np.log(2), abs=1e-4)
    assert crowding(torch.cat([apart, apart[:1]])).item() > 5


def test_withheld_patches_weigh_by_image() -> None:
    where = torch.zeros(3, 2, 2, dtype=torch.bool)
    where[0, 0, 0] = where[1, 0, 0] = where[1, 1, 1] = True
    assert per_image(torch.tensor([6.0, 1.0, 3.0]), where).item() == pytest.approx((6 + 2) / 2)


def patches_of(images: torch.Tensor, side: int) -> torch.Tensor:
    """(b, 3, H, W) -> (b, h · w, 3, side, side)."""
    b, _, height, width = images.shape
    pieces = images.reshape(b, 3, height // side, side, width // side, side)
    return pieces.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def test_painting_counts_only_what_was_withheld() -> None:
    images = torch.randn(2, 3, 32, 48, generator=seeded())
    pieces = patches_of(images, 16)
    spread = (pieces.var(dim=(2, 3, 4), keepdim=True) + 0.01).sqrt()
    painted = (pieces - pieces.mean(dim=(2, 3, 4), keepdim=True)) / spread
    where = torch.zeros(2, 2, 3, dtype=torch.bool)
    where[:, 1, 2] = True
    assert all(loss < 1e-5 for loss in painting_losses(painted, images, where))
    elsewhere = painted.clone()
    elsewhere[:, 0] += 1
    assert all(loss < 1e-5 for loss in painting_losses(elsewhere, images, where))
    off = painted.clone()
    off[:, 5] += 2
    assert painting_losses(off, images, where)[0].item() == pytest.approx(4, rel=1e-4)


def test_painting_does_not_mind_how_dark_a_patch_is() -> None:
    images = torch.randn(1, 3, 32, 32, generator=seeded())
    painted, where = torch.randn(1, 4, 3, 16, 16, generator=seeded(1)), torch.ones(1, 2, 2) > 0
    plain = painting_losses(painted, images, where)
    darker = painting_losses(painted, 3 * images - 5, where)
    torch.testing.assert_close(torch.stack(plain), torch.stack(darker), rtol=0.02, atol=0.01)
    blank = painting_losses(torch.zeros_like(painted), torch.full_like(images, 2.0), where)
    assert all(loss < 1e-6 for loss in blank)


def test_the_fourier_term_minds_fine_detail_more() -> None:
    """The same error in the mean square, once smooth and once fine; nothing to be painted."""
    blank, where = torch.zeros(1, 3, 32, 32), torch.ones(1, 2, 2, dtype=torch.bool)
    x = torch.arange(32.0)

    def error(wave: int) -> torch.Tensor:
        picture = torch.cos(2 * torch.pi * wave * x / 32).expand(1, 3, 32, 32)
        return torch.stack(painting_losses(patches_of(picture, 16), blank, where))

    smooth, fine = error(2), error(12)
    assert smooth[0].item() == pytest.approx(fine[0].item(), rel=1e-3)
    assert fine[1] > 4 * smooth[1]


def test_a_stopped_training_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = Pretraining(TINY, tmp_path / "whole", "cpu").run(Tiles())

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, row: object) -> None:
        if done == 5:  # the checkpoint is of step 4
            raise Stopped

    with pytest.raises(Stopped):
        Pretraining(TINY, tmp_path / "parts", "cpu").run(Tiles(), observer=stop)
    assert not (tmp_path / "parts" / "tiny.safetensors").exists()
    tiles = Tiles()
    again = Pretraining(TINY, tmp_path / "parts", "cpu").run(tiles)
    assert tiles.asked == [4, 5]
    assert again.read_bytes() == whole.read_bytes()
    steps = [[r["step"] for r in log_rows(f.parent / "log.csv")] for f in (whole, again)]
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5, 6]


def test_what_comes_out_is_an_encoder(tmp_path: Path) -> None:
    training = Pretraining(TINY, tmp_path, "cpu")
    before = {k: v.clone() for k, v in training.teacher.encoder.state_dict().items()}
    asked: list[int] = []

    def probe(encoder: object) -> dict[str, float]:
        asked.append(training.step)
        return {"linear": 0.5}

    path = training.run(Tiles(), probe)
    assert asked == [0, 3, 6]
    assert [r["step"] for r in log_rows(tmp_path / "probe.csv")] == [0, 3, 6]
    assert any(not torch.equal(before[k], v) for k, v in load_file(path).items())
    tiles = np.random.default_rng(0).integers(0, 256, (3, 80, 80, 3), np.uint8)
    encoder = load_encoder(str(tmp_path / "tiny.json"), device="cpu")
    assert encoder.name == "tiny"
    expected = training.encoder().encode(tiles)
    np.testing.assert_array_equal(encoder.encode(tiles), expected)
    assert expected.shape == (3, 96)


def test_it_learns_what_it_is_shown(tmp_path: Path) -> None:
    """The same four tiles at every step: every term but the repulsion falls."""
    config = replace(TINY, steps=60, save_every=60, learning_rate=2e-3, momentum=0.95)

    class Same(Tiles):
        def batch(self, step: int) -> TileBatch:
            return super().batch(0)

    Pretraining(config, tmp_path, "cpu").run(Same(config))
    rows = list(log_rows(tmp_path / "log.csv"))
    for term in ("dino", "ibot", "mae"):
        first, last = (np.mean([r[term] for r in part]) for part in (rows[:5], rows[-5:]))
        assert last < 0.95 * first, term


def test_another_encoder_can_be_imitated(tmp_path: Path) -> None:
    config = replace(TINY, imitate="efficientnet-lite0", steps=40, save_every=40, tiles=24, batch=8)

    class Few(Tiles):
        def batch(self, step: int) -> TileBatch:
            return super().batch(step % 3)

    training = Pretraining(config, tmp_path, "cpu")
    training.run(Few(config))
    assert len(training._guided) == 24  # each tile once
    rows = list(log_rows(tmp_path / "log.csv"))
    assert np.mean([r["distil"] for r in rows[-5:]]) < 0.9 * rows[0]["distil"]


def test_bfloat16_trains(tmp_path: Path) -> None:
    Pretraining(replace(TINY, precision="bfloat16"), tmp_path, "cpu").run(Tiles())
    assert all(np.isfinite(r["loss"]) for r in log_rows(tmp_path / "log.csv"))


def test_another_training_in_the_folder_is_not_gone_on_with(tmp_path: Path) -> None:
    Pretraining(TINY, tmp_path, "cpu").run(Tiles())
    with pytest.raises(InvalidConfig, match="another seed"):
        Pretraining(replace(TINY, seed=1), tmp_path, "cpu")
    (tmp_path / "checkpoint.pt").write_bytes(b"cut off")
    with pytest.raises(MissingWeights, match=r"checkpoint\.pt: cannot be read"):
        Pretraining(TINY, tmp_path, "cpu")
    a_heads = {"config": {}, "step": 3, "network": {}, "optimiser": {}}
    torch.save(a_heads, tmp_path / "checkpoint.pt")
    with pytest.raises(MissingWeights, match="lacks student, teacher"):
        Pretraining(TINY, tmp_path, "cpu")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("stepps = 3", "no setting named 'stepps'"),
        ("steps = 'many'", "steps must be int"),
        ("large = 208\npatches = [16]\nsmall = 96", "large must be a multiple of 32"),
        ("patches = [12]", "do not divide into 12"),
        ("heads = 5", "5 heads do not divide"),
        ("steps = ", "Invalid value"),
    ],
)
def test_settings_that_mean_nothing(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "p.toml").write_text(content)
    with pytest.raises(InvalidConfig, match=problem):
        settings_from_toml(PretrainConfig, tmp_path / "p.toml")


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("steps = 3\nmpps = [0.5, 1]\nlearning_rate = 1\n")
    found = settings_from_toml(PretrainConfig, tmp_path / "p.toml")
    assert (found.steps, found.mpps, found.learning_rate) == (3, (0.5, 1), 1.0)
