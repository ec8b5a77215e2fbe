"""NuClick: what it makes of marks, and the clicks it is trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from coverslip.errors import InvalidConfig
from coverslip.heads.augmentation import Augmentation
from coverslip.heads.click_training import (
    ClickBatches,
    ClickHabits,
    click_figures,
)
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.heads.nuclick import (
    NuClick,
    click_input,
    line_points,
    mark_map,
    marked_part,
    probabilities,
)
from coverslip.heads.recipe import HeadRecipe, load_head, save_head
from coverslip.heads.simulated_marks import inside_point, squiggle
from coverslip.heads.training import TrainingConfig

PLAIN = Augmentation(scale=(1.0, 1.0), stain=0.0, brightness=0.05, blur=0.0, noise=0.0)
NONE = np.empty((0, 2))


def disc_image(seed: int, side: int = 96, count: int = 14) -> NucleusImage:
    """Dark discs, many of them touching, on a light ground."""
    random = np.random.default_rng(seed)
    v, u = np.mgrid[:side, :side] + 0.5
    labels = np.zeros((side, side), np.int32)
    for number in range(1, count + 1):
        x, y = random.uniform(8, side - 8, 2)
        inside = (u - x) ** 2 + (v - y) ** 2 <= random.uniform(6, 9) ** 2
        labels[inside & (labels == 0)] = number
    left, place = np.unique(labels, return_inverse=True)
    labels = np.arange(len(left), dtype=np.int32)[place].reshape(labels.shape)
    rgb = np.where(labels[..., None] > 0, (110, 60, 130), (230, 190, 220)) + random.normal(
        0, 8, (side, side, 3)
    )
    return NucleusImage(
        np.clip(rgb, 0, 255).astype(np.uint8), labels, np.zeros(len(left) - 1, np.uint8), f"{seed}"
    )


@pytest.fixture(scope="module")
def trained() -> NuClick:
    """A hundred and fifty steps on discs."""
    torch.manual_seed(0)
    network = NuClick(width=8).to(memory_format=torch.channels_last)
    config = TrainingConfig(batch=8, crop=48, augmentation=PLAIN)
    source = ClickBatches(
        [disc_image(i) for i in range(8)], config, ClickHabits(background=0.1, jitter=4)
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(150):
        batch = source.batch(step)
        x = torch.from_numpy(np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2)))
        targets = {k: torch.from_numpy(v) for k, v in batch.targets.items()}
        loss = torch.stack(list(network.losses(network(x), targets).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


def test_it_learns_discs(trained: NuClick) -> None:
    images = [disc_image(i) for i in range(20, 23)]
    figures = click_figures(trained, images, 48)
    assert figures["iou"] > 0.6
    assert figures["dice"] > figures["iou"]
    assert figures["found"] > 0.9
    assert click_figures(trained, images, 48, most=5, exclude=True)["iou"] > 0.5


def test_a_mark_on_the_neighbour_keeps_it_out(trained: NuClick) -> None:
    v, u = np.mgrid[:48, :48] + 0.5
    one, other = ((u - x) ** 2 + (v - 24) ** 2 <= 49 for x in (18, 31))
    rgb = np.where((one | other)[..., None], (110, 60, 130), (230, 190, 220)).astype(np.uint8)
    click, neighbour = np.array([[18.0, 24.0]]), np.array([[31.0, 24.0]])
    alone, apart = probabilities(
        trained, np.stack([click_input(rgb, click, NONE), click_input(rgb, click, neighbour)])
    )
    assert apart[other & ~one].mean() < alone[other & ~one].mean()
    swapped = probabilities(trained, click_input(rgb, neighbour, click)[None])[0]
    assert apart[one & ~other].mean() > 0.5 > apart[other & ~one].mean()
    assert swapped[one & ~other].mean() < 0.5 < swapped[other & ~one].mean()
    found = marked_part(apart, click, 0.5)
    assert found[24, 18]
    assert np.count_nonzero(found & other) < 0.2 * np.count_nonzero(found)


def test_a_batch_changes_no_answer(trained: NuClick) -> None:
    image = disc_image(3, 48)
    clicks = [np.array([[x, y]]) for x, y in ((12.0, 12.0), (30.0, 20.0))]
    inputs = np.stack([click_input(image.rgb, click, NONE) for click in clicks])
    together = probabilities(trained, inputs)
    for one, chance in zip(inputs, together, strict=True):
        np.testing.assert_allclose(probabilities(trained, one[None])[0], chance, atol=1e-5)


def test_the_marked_part_is_one_part_without_holes() -> None:
    probability = np.zeros((20, 24), np.float32)
    probability[2:9, 2:9] = 0.9
    probability[5, 5] = 0.1  # a hole
    probability[12:18, 12:20] = 0.8
    first = marked_part(probability, np.array([[3.2, 4.7]]), 0.5)
    assert first[2:9, 2:9].all()
    assert np.count_nonzero(first) == 49
    in_the_hole = marked_part(probability, np.array([[5.5, 5.5]]), 0.5)
    assert np.array_equal(in_the_hole, first)
    most = marked_part(probability, np.array([[3.0, 3.0], [14.0, 14.0], [15.0, 14.0]]), 0.5)
    assert np.array_equal(most, np.pad(np.ones((6, 8), bool), ((12, 2), (12, 4))))
    assert not marked_part(probability, np.array([[22.0, 1.0]]), 0.5).any()
    assert not marked_part(probability, np.array([[-1.0, 30.0]]), 0.5).any()
    assert not marked_part(probability, NONE, 0.5).any()


def test_marks_are_where_they_were_made() -> None:
    found = mark_map(np.array([[4.5, 7.5], [19.9, 0.1], [-3.0, 2.0]]), (12, 20))
    assert found.shape == (12, 20)
    assert found[7, 4] == 1
    assert found[0, 19] > 0.9
    assert found[7, 12] < 1e-3
    assert not mark_map(NONE, (3, 4)).any()


def test_a_line_is_gone_along_in_steps_of_a_pixel() -> None:
    line = line_points(np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [3.0, -1.0]]))
    assert np.hypot(*np.diff(line, axis=0).T).max() <= 1 + 1e-9
    assert line[0].tolist() == [0, 0]
    assert line[-1].tolist() == [3, -1]
    assert line_points(np.array([[2.0, 5.0]])).tolist() == [[2, 5]]


def test_the_loss_vanishes_for_the_truth_and_for_rightly_nothing() -> None:
    network = NuClick(width=8)
    wanted = torch.zeros(2, 1, 32, 32)
    wanted[0, 0, 8:20, 8:20] = 1
    targets = {"object": wanted, "others": torch.zeros_like(wanted)}
    right = network.losses(40 * (wanted - 0.5), targets)
    wrong = network.losses(-40 * (wanted - 0.5), targets)
    assert sum(right.values()) < 1e-3
    assert wrong["dice"] > 0.9
    other = {**targets, "others": 1 - wanted}
    assert (
        network.losses(0 * wanted, other)["entropy"]
        > network.losses(0 * wanted, targets)["entropy"]
    )


def test_a_saved_head_says_the_same(tmp_path: Path, trained: NuClick) -> None:
    recipe = HeadRecipe("discs", "clicks", "nuclick", {"width": 8}, normalisation="imagenet")
    save_head(tmp_path / "discs.safetensors", recipe, trained, torch.float16)
    again, network, _ = load_head(tmp_path / "discs.safetensors", "cpu")
    assert again == recipe
    seen = click_input(disc_image(1, 48).rgb, np.array([[24.0, 24.0]]), NONE)[None]
    np.testing.assert_allclose(
        probabilities(network, seen), probabilities(trained, seen), atol=0.02
    )


def blob(seed: int) -> np.ndarray:
    """One 4-connected object of any shape."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.random((40, 33)), random.uniform(1, 4))
    parts, count = ndimage.label(smooth > np.quantile(smooth, random.uniform(0.3, 0.95)))
    return np.asarray(parts == random.integers(1, count + 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000))
def test_simulated_marks_lie_inside(seed: int) -> None:
    mask, random = blob(seed), np.random.default_rng(seed)
    x, y = inside_point(mask, random)
    assert mask[int(y), int(x)]
    line = squiggle(mask, np.array([x, y]), random)
    columns, rows = np.floor(line).astype(int).T
    assert mask[rows, columns].all()
    assert (rows[0], columns[0]) == (int(y), int(x))
    assert (np.abs(np.diff(line, axis=0)).sum(axis=1) == 1).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100_000))
def test_marks_of_a_batch_lie_where_they_should(step: int) -> None:
    config = TrainingConfig(batch=4, crop=48)  # augmented as by default
    images = [disc_image(i) for i in range(3)]
    source = ClickBatches(images, config, ClickHabits(squiggles=0, alone=0.2, background=0.3))
    batch = source.batch(step)
    assert batch.images.shape == (4, 48, 48, 5)
    for image, wanted, others in zip(
        batch.images, batch.targets["object"][:, 0], batch.targets["others"][:, 0], strict=True
    ):
        assert not (wanted * others).any()
        meant, not_meant = image[..., 3], image[..., 4]
        place = np.unravel_index(meant.argmax(), meant.shape)
        if wanted.any():
            assert wanted[place] == 1
        else:
            assert others[place] == 0
        peaks = (not_meant == ndimage.maximum_filter(not_meant, 3)) & (not_meant > 0.9)
        assert others[peaks].all()


def test_batches_are_the_same_whenever_they_are_asked_for() -> None:
    config = TrainingConfig(batch=3, crop=48)
    source = ClickBatches([disc_image(5)], config, ClickHabits(squiggles=1.0))
    first, again, next_one = source.batch(4), source.batch(4), source.batch(5)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.targets["object"], again.targets["object"])
    assert not np.array_equal(first.images, next_one.images)


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="multiple of 16, got 50"):
        ClickBatches([disc_image(0)], TrainingConfig(crop=50))
    full = NucleusImage(
        np.zeros((20, 20, 3), np.uint8), np.arange(400, dtype=np.int32).reshape(20, 20) + 1,
        np.zeros(400, np.uint8), "full",
    )  # fmt: skip
    with pytest.raises(ValueError, match="full: neither an object"):
        ClickBatches([full], TrainingConfig(crop=32)).batch(0)
