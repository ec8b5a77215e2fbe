"""Heads learn, go on where they stopped, say how sure they are, and live in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.errors import InvalidConfig, MissingWeights, UnknownName
from coverslip.heads.augmentation import Augmentation, crop_of, paled_nuclei, recoloured
from coverslip.heads.depth import agreement, best_iou, expectations, remarks
from coverslip.heads.metrics import Overlaps, f1_at, panoptic_quality
from coverslip.heads.network_nuclei import NetworkNuclei, _turned, _turned_back
from coverslip.heads.normalisation import Normalisation, percentile_span
from coverslip.heads.nucleus_training import NucleusBatches, NucleusImage, nucleus_figures, tuned
from coverslip.heads.recipe import HeadRecipe, load_head, read_recipe, save_head
from coverslip.heads.registry import load_nucleus_head
from coverslip.heads.segmentation import Segmentation
from coverslip.heads.training import Training, TrainingConfig, training_settings
from coverslip.kernels.labels import label_depth, largest_parts

TINY = HeadRecipe(
    "tiny",
    "nuclei",
    "stardist",
    {"filters": 8, "features": 32},
    settings={"probability": 0.5, "overlap": 0.4},
)
PLAIN = Augmentation(scale=(1.0, 1.0), stain=0.0, brightness=0.0, blur=0.0, noise=0.0)


def discs(seed: int, side: int = 96, classes: int = 1) -> NucleusImage:
    """A pink field with blue discs; those of the second class are brown."""
    random = np.random.default_rng(seed)
    rgb = np.full((side, side, 3), (230, 190, 210), np.uint8)
    labels, kinds = np.zeros((side, side), np.int32), []
    v, u = np.mgrid[:side, :side]
    for y in range(12, side - 8, 20):
        for x in range(12, side - 8, 20):
            kind = int(random.integers(classes))
            inside = np.hypot(v - y - random.uniform(-2, 2), u - x - random.uniform(-2, 2))
            inside = inside < random.uniform(5.5, 7.5)
            labels[inside] = len(kinds) + 1
            rgb[inside] = (90, 60, 140) if kind == 0 else (130, 70, 40)
            kinds.append(kind)
    noisy = rgb + random.normal(0, 6, rgb.shape)
    return NucleusImage(np.clip(noisy, 0, 255).astype(np.uint8), labels,
                        np.array(kinds, np.uint8), f"discs {seed}")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> NetworkNuclei:
    """A tiny StarDist that has seen discs of two classes."""
    torch.set_num_threads(1)
    recipe = replace(
        TINY,
        arguments={**TINY.arguments, "classes": 2},
        classes=("blue", "brown"),
        settings={"probability": 0.3, "overlap": 0.3},  # it has not seen much
    )
    config = TrainingConfig(steps=200, batch=2, crop=64, learning_rate=6e-3, validate_every=100,
                            average=0.9, augmentation=PLAIN)  # fmt: skip
    training = Training(recipe, config, tmp_path_factory.mktemp("head"), "cpu")
    images = [discs(seed, classes=2) for seed in range(4)]
    source = NucleusBatches(images, recipe, training.network, config)
    path = training.run(source, lambda n: nucleus_figures(NetworkNuclei(recipe, n, ""), images[:2]))
    return NetworkNuclei.load(path, "cpu")


def test_a_stardist_learns_discs_and_their_classes(trained: NetworkNuclei) -> None:
    new = discs(99, classes=2)
    found = trained.fitted(new.rgb).segment(new.rgb)
    assert f1_at(new.labels, found.labels, 0.5) > 0.9
    assert panoptic_quality(new.labels, found.labels).pq > 0.65
    overlaps = Overlaps.of(new.labels, found.labels)
    t, p = np.nonzero(overlaps.iou > 0.5)
    assert (new.class_id[t] == found.class_id[p]).mean() > 0.9
    assert ((found.probability > 0.3) & (found.probability <= 1)).all()
    assert np.isnan(found.agreement).all()


def test_the_average_learns_and_the_curves_are_written(trained: NetworkNuclei) -> None:
    assert trained.recipe.training["steps"] == 200
    assert trained.classes == ("blue", "brown")
    assert len(trained.sha256) == 64
    assert trained.parameters["weights_sha256"] == trained.sha256


def test_nothing_is_found_in_an_empty_picture(trained: NetworkNuclei) -> None:
    seen = Normalisation.of("percentile", discs(1).rgb)
    blank = np.full((50, 70, 3), (230, 190, 210), np.uint8)
    found = replace(trained, normalisation=seen).segment(blank)
    assert found.labels.shape == (50, 70)
    assert found.labels.max() == 0
    assert len(found.probability) == len(found.class_id) == 0


def test_a_window_elsewhere_shows_the_same_nuclei(trained: NetworkNuclei) -> None:
    whole = discs(7, side=224, classes=2)
    head = trained.fitted(whole.rgb)
    there = head.segment(whole.rgb).labels[64:160, 64:160]
    moved = head.segment(whole.rgb[16:208, 32:]).labels[48:144, 32:128]
    inner = slice(16, 80)  # what the crop's border does not cut
    assert f1_at(there[inner, inner], moved[inner, inner], 0.7) > 0.99


def test_agreement_is_of_the_views(trained: NetworkNuclei) -> None:
    image = discs(5, classes=2)
    looking = replace(trained.fitted(image.rgb), views=3)
    found = looking.segment(image.rgb)
    assert ((found.agreement > 0.6) & (found.agreement <= 1)).mean() > 0.9
    assert looking.parameters != trained.parameters  # stored results tell that somebody looked
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    lost = replace(trained, views=3, recipe=replace(trained.recipe, settings={
        "probability": 0.05, "overlap": 0.4})).fitted(noise).segment(noise)  # fmt: skip
    if len(lost.agreement):
        assert lost.agreement.mean() < found.agreement.mean()


@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))
def test_views_turn_back(view: int, h: int, w: int) -> None:
    image = np.arange(h * w * 3).reshape(h, w, 3)
    np.testing.assert_array_equal(_turned_back(_turned(image, view), view), image)


def test_the_best_iou_by_hand() -> None:
    labels = np.zeros((4, 8), np.int32)
    labels[:, :2], labels[:, 4:6] = 1, 2
    other = np.zeros_like(labels)
    other[:, 1:3] = 5  # half of the first: 4 of 12
    np.testing.assert_allclose(best_iou(labels, other), [1 / 3, 0])
    np.testing.assert_allclose(agreement(labels, [other, labels]), [2 / 3, 1 / 2])


def test_a_slide_beyond_what_is_expected_is_told() -> None:
    good = Segmentation.of(np.zeros((1, 1), np.int32))
    sure = good._replace(probability=np.full(30, 0.9, np.float32))
    expected = expectations([sure, sure])
    assert expected == {"probability": pytest.approx(0.9)}
    assert remarks("m", {"probability": np.full(50, 0.95, np.float32)}, expected) == []
    (said,) = remarks("m", {"probability": np.full(50, 0.6, np.float32)}, expected)
    assert "out of its depth" in said
    assert "0.60" in said
    few = {"probability": np.full(5, 0.6, np.float32)}
    assert remarks("m", few, expected) == []


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = TrainingConfig(steps=6, batch=2, crop=32, validate_every=3)
    images = [discs(seed) for seed in range(2)]

    def run(folder: Path, stop: int | None) -> bytes:
        training = Training(TINY, config, folder, "cpu")
        source = NucleusBatches(images, TINY, training.network, config)
        if stop is not None:

            def interrupt(step: int, total: int, row: object) -> None:
                if step == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                training.run(source, observer=interrupt)
            return run(folder, None)
        training.run(source)
        return (folder / "tiny.safetensors").read_bytes()

    assert run(tmp_path / "whole", None) == run(tmp_path / "parts", 4)
    rows = (tmp_path / "parts" / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *"123456"]
    with pytest.raises(InvalidConfig, match="began with batch 2"):
        Training(TINY, replace(config, batch=3), tmp_path / "whole", "cpu")


def test_a_checkpoint_that_is_none_is_told(tmp_path: Path) -> None:
    config = TrainingConfig(steps=1, batch=1, crop=16, augmentation=PLAIN)
    path = tmp_path / "checkpoint.pt"
    training = Training(TINY, config, tmp_path, "cpu")
    training.run(NucleusBatches([discs(0, 32)], TINY, training.network, config))
    whole = path.read_bytes()
    assert Training(TINY, config, tmp_path, "cpu").step == 1
    other_network = replace(TINY, arguments={"filters": 4})
    with pytest.raises(InvalidConfig, match=r"checkpoint\.pt: does not fit a network of stardist"):
        Training(other_network, config, tmp_path, "cpu")
    for cut_off in (b"", b"no checkpoint", whole[:100], whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(cut_off)
        with pytest.raises(MissingWeights, match=r"checkpoint\.pt: cannot be read .*\n  remove it"):
            Training(TINY, config, tmp_path, "cpu")
    for other, lacking in (
        (torch.zeros(3), "config, step, best"),
        ({"config": {}, "step": "1", "best": 0.0, "since_best": 0}, "step, network, averaged"),
    ):
        torch.save(other, path)
        with pytest.raises(MissingWeights, match=f"not a checkpoint.*it lacks {lacking}"):
            Training(TINY, config, tmp_path, "cpu")


def test_it_stops_when_it_no_longer_gets_better(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = TrainingConfig(steps=50, batch=1, crop=16, validate_every=2, patience=2)
    training = Training(TINY, config, tmp_path, "cpu")
    source = NucleusBatches([discs(0)], TINY, training.network, config)
    scores = iter([0.5, 0.7, 0.6, 0.6])
    training.run(source, lambda network: {"score": next(scores)})
    assert training.step == 8
    assert training.best == 0.7


def test_thresholds_are_chosen_by_what_they_find(trained: NetworkNuclei) -> None:
    images = [discs(seed, classes=2) for seed in (21, 22)]
    careless = replace(
        trained, recipe=replace(trained.recipe, settings={"probability": 0.99, "overlap": 0.3})
    )
    before = nucleus_figures(careless, images)["pq"]
    chosen = tuned(careless, images)
    assert nucleus_figures(chosen, images)["pq"] > before
    assert chosen.recipe.settings["probability"] < 0.99


def test_batches_are_the_same_whenever_asked_for() -> None:
    config = TrainingConfig(batch=3, crop=32, steps=1)
    network = TINY.network()
    source = NucleusBatches([discs(0), discs(1)], TINY, network, config)
    first, again, next_ = source.batch(5), source.batch(5), source.batch(6)
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(first.images - next_.images).max() > 0.1
    assert first.images.shape == (3, 32, 32, 3)
    assert first.targets["distance"].shape == (3, 32, 16, 16)
    with pytest.raises(InvalidConfig, match="multiple of 16"):
        NucleusBatches([discs(0)], TINY, network, replace(config, crop=40))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(8, 70), st.integers(8, 70), st.sampled_from([16, 48]))
def test_labels_stay_on_their_pixels(seed: int, h: int, w: int, side: int) -> None:
    """Whatever is cut, mirrored, turned and rescaled, image and labels go together."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(random.integers(0, 5, (h // 4 + 1, w // 4 + 1)), 4, 0), 4, 1)
    labels = labels[:h, :w].astype(np.int32)
    image = np.repeat((labels * 50).astype(np.uint8)[..., None], 3, axis=2)
    crop, (cut,) = crop_of(image, [labels], side, Augmentation(), random)
    assert crop.shape == (side, side, 3)
    wrong = np.abs(crop[..., 0].astype(int) - cut * 50) > 25
    assert wrong.mean() < 0.45  # edges, which resampling blurs, of blocks of 4 px
    plain, (same,) = crop_of(image, [labels], min(h, w, 16), PLAIN, random)
    np.testing.assert_array_equal(plain[..., 0], same * 50)


def test_a_crop_holds_its_centre() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    labels = np.zeros((60, 80), np.int32)
    labels[3, 77] = 1
    random = np.random.default_rng(0)
    for _ in range(50):
        _, (cut,) = crop_of(image, [labels], 16, PLAIN, random, (3, 77))
        assert cut.any()


def test_no_change_is_none() -> None:
    crops = discs(0).rgb[None]
    np.testing.assert_array_equal(recoloured(crops, PLAIN, np.random.default_rng(0)), crops)
    other = recoloured(crops, Augmentation(), np.random.default_rng(0))
    assert other.dtype == np.uint8
    assert (other != crops).any()


def test_a_head_is_one_file(tmp_path: Path) -> None:
    network = TINY.network()
    save_head(tmp_path / "a.safetensors", TINY, network, torch.float16)
    recipe, again, _ = load_head(tmp_path / "a.safetensors", "cpu")
    assert recipe == TINY == read_recipe(tmp_path / "a.safetensors")
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name].half().float())
    assert load_nucleus_head(str(tmp_path / "a.safetensors"), "cpu").name == "tiny"


def test_what_is_no_head_is_told(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InvalidConfig, match="not a head's file"):
        load_nucleus_head(str(tmp_path / "broken.safetensors"))
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(InvalidConfig, match="no record of a head"):
        load_nucleus_head(str(tmp_path / "other.safetensors"))
    other = replace(TINY, arguments={"filters": 4, "features": 32})
    save_head(tmp_path / "c.safetensors", other, TINY.network())
    with pytest.raises(InvalidConfig, match="does not fit"):
        load_nucleus_head(str(tmp_path / "c.safetensors"))
    save_head(tmp_path / "d.safetensors", replace(TINY, task="clicks"), TINY.network())
    with pytest.raises(InvalidConfig, match="a head for clicks"):
        load_nucleus_head(str(tmp_path / "d.safetensors"))
    with pytest.raises(InvalidConfig, match="no such file"):
        load_nucleus_head(str(tmp_path / "e.safetensors"))
    with pytest.raises(UnknownName, match="watershed"):
        load_nucleus_head("watershd")
    with pytest.raises(UnknownName, match="stardist"):
        replace(TINY, architecture="starfish").network()


def test_settings_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("steps = 7\n[augmentation]\nstain = 0\n[network]\nfilters = 8\n")
    config, arguments = training_settings(path)
    assert (config.steps, config.augmentation.stain, arguments) == (7, 0.0, {"filters": 8})
    for wrong, said in (
        ("step = 7", "no setting named 'step'"),
        ("steps = 0", "at least 1"),
        ("precision = 'int8'", "float32 or bfloat16"),
        ("[augmentation]\nscale = [2, 1]", "rising"),
        ("steps = ", "t.toml"),
        ("network = 3", r"t\.toml: network must be a table"),
    ):
        path.write_text(wrong)
        with pytest.raises(InvalidConfig, match=said):
            training_settings(path)


def test_percentiles_of_nothing_and_of_one_colour() -> None:
    assert percentile_span(np.empty((0, 3), np.uint8))[1] == (255.0, 255.0, 255.0)
    low, width = percentile_span(np.full((10, 3), 200, np.uint8))
    assert low == (200.0, 200.0, 200.0)
    assert width == (16.0, 16.0, 16.0)


def test_only_the_largest_part_of_a_star_is_left() -> None:
    labels: npt.NDArray[np.int32] = np.zeros((5, 9), np.int32)
    labels[1:4, 1:4], labels[1:4, 6:8], labels[:, 5], labels[0, 8] = 1, 1, 2, 3
    found = largest_parts(labels)
    assert (found == 1).sum() == 9
    assert (found == 2).sum() == 5
    assert (found == 3).sum() == 1


def test_paling_stays_inside_the_nuclei() -> None:
    image = discs(3)
    same = paled_nuclei(image.rgb, image.labels, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(same, image.rgb)
    pale = paled_nuclei(image.rgb, image.labels, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(pale[image.labels == 0], image.rgb[image.labels == 0])
    depth = label_depth(image.labels)
    middle, rim = depth > 0.9, (depth > 0) & (depth < 0.2)
    assert pale[middle].mean() > image.rgb[middle].mean() + 30
    np.testing.assert_array_equal(pale[rim], image.rgb[rim])
    empty = np.zeros_like(image.labels)
    np.testing.assert_array_equal(
        paled_nuclei(image.rgb, empty, 1.0, np.random.default_rng(0)), image.rgb
    )


def test_pixels_that_are_not_known_teach_nothing() -> None:
    recipe = replace(TINY, architecture="distance-map", arguments={"filters": 4})
    network, config = recipe.network(), TrainingConfig(batch=2, crop=32, augmentation=PLAIN)
    image = discs(0)
    unknown = replace(image, known=np.zeros(image.labels.shape, np.bool_))
    batch = NucleusBatches([unknown], recipe, network, config).batch(0)
    maps = network(torch.from_numpy(batch.images.transpose(0, 3, 1, 2)))
    targets = {k: torch.from_numpy(v) for k, v in batch.targets.items()}
    torch.stack(list(network.losses(maps, targets).values())).sum().backward()
    assert all(not p.grad.any() for p in network.parameters() if p.grad is not None)
    with pytest.raises(ValueError, match="all known"):
        NucleusBatches([unknown], TINY, TINY.network(), config)


def test_a_training_may_start_from_a_head(tmp_path: Path) -> None:
    network = TINY.network()
    save_head(tmp_path / "first.safetensors", TINY, network)
    config = TrainingConfig(steps=1, batch=1, crop=16)
    training = Training(TINY, config, tmp_path / "next", "cpu", tmp_path / "first.safetensors")
    for one, other in zip(training.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(one, other)
    other_arguments = replace(TINY, arguments={"filters": 4})
    with pytest.raises(InvalidConfig, match="does not fit a network of"):
        Training(other_arguments, config, tmp_path / "x", "cpu", tmp_path / "first.safetensors")
