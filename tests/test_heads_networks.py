"""Networks for nuclei: what they cover, learn, leave alone, and whose weights they take."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coverslip.errors import InvalidConfig, UnknownName
from coverslip.heads.augmentation import Augmentation
from coverslip.heads.cerberus import (
    OBJECTS,
    Cerberus,
    inside_and_boundary,
    object_labels,
    tissue_probability,
)
from coverslip.heads.hover_maps import hover_targets, offsets
from coverslip.heads.hovernet import HoverNet, published_checkpoint
from coverslip.heads.losses import pixel_classes
from coverslip.heads.metrics import panoptic_quality
from coverslip.heads.network_nuclei import NetworkNuclei
from coverslip.heads.nucleus_training import NucleusBatches, NucleusImage
from coverslip.heads.recipe import HeadRecipe
from coverslip.heads.token_decoder import TokenDecoder, nucleus_tokens
from coverslip.heads.training import Training, TrainingConfig

SMALL_PLUTO = {"width": 32, "depth": 3, "heads": 2, "hidden": 64, "patch": 8, "grid": 12}
SMALL_VIT = {"depth": 4, "embed_dim": 32, "num_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    "hovernet": {"classes": 2, "width": 8, "units": [1, 1, 1, 1]},
    "token-decoder": {
        "encoder": "pluto",
        "encoder_arguments": SMALL_PLUTO,
        "depths": [1, 2, 3],
        "classes": 2,
        "width": 8,
    },
    "cerberus": {
        "tissue_classes": 3,
        "width": 8,
        "encoder_arguments": {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]},
    },
}
STEPS = {"hovernet": 32, "token-decoder": 40, "cerberus": 60}


def recipe_of(architecture: str) -> HeadRecipe:
    classes = ("Blue", "Brown") if "classes" in SMALL[architecture] else ("Nucleus",)
    return HeadRecipe(
        "small", "nuclei", architecture, SMALL[architecture], 0.25, classes, "imagenet"
    )


def discs(side: int = 96, pitch: int = 24) -> NucleusImage:
    """Blue and brown discs in turn, every other row in touching pairs."""
    rgb = np.full((side, side, 3), (228, 190, 214), np.uint8)
    labels, classes = np.zeros((side, side), np.int32), []
    v, u = np.mgrid[:side, :side]
    for row, y in enumerate(range(pitch // 2, side, pitch)):
        for column, x in enumerate(range(pitch // 2, side, pitch)):
            shift = (4 if column % 2 == 0 else -3) if row % 2 else 0
            disc = (u - x - shift) ** 2 + (v - y) ** 2 <= 72
            disc &= labels == 0
            classes.append((row + column) % 2)
            labels[disc] = len(classes)
            rgb[disc] = ((92, 60, 130), (130, 80, 50))[classes[-1]]
    return NucleusImage(rgb, labels, np.array(classes, np.uint8), "discs")


@cache
def memorised(architecture: str) -> NetworkNuclei:
    """A small network that has seen one image some tens of times."""
    torch.manual_seed(0)
    recipe, image = recipe_of(architecture), discs()
    network = recipe.network()
    head = NetworkNuclei(recipe, network, "")
    x = torch.from_numpy(head.normalised(image.rgb).transpose(2, 0, 1)[None])
    targets = network.targets(image.labels, image.class_id)
    targets = {k: torch.from_numpy(v[None]) for k, v in targets.items()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01)
    network.train()
    for step in range(STEPS[architecture]):
        optimiser.param_groups[0]["lr"] = 0.01 * (1 - step / STEPS[architecture])
        loss = torch.stack(list(network.losses(network(x), targets).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    return head


@pytest.mark.parametrize("architecture", SMALL)
def test_one_image_is_memorised(architecture: str) -> None:
    image = discs()
    found = memorised(architecture).segment(image.rgb)
    assert panoptic_quality(image.labels, found.labels).pq > 0.6
    assert found.labels.max() == len(found.probability) == len(found.class_id)
    assert (found.probability > 0.5).all()
    if "classes" in SMALL[architecture]:
        overlap = np.zeros((found.labels.max() + 1, image.labels.max() + 1), np.int64)
        np.add.at(overlap, (found.labels, image.labels), 1)
        true = image.class_id[overlap[1:, 1:].argmax(axis=1)]
        assert (found.class_id == true).mean() > 0.8


@pytest.mark.parametrize("architecture", SMALL)
def test_maps_cover_any_input(architecture: str) -> None:
    head = memorised(architecture)
    for shape in [(33, 70), (8, 8), (64, 96)]:
        rgb = np.full((*shape, 3), 255, np.uint8)
        maps = head.maps(rgb)
        padded = [-(-n // head.multiple) * head.multiple for n in shape]
        assert list(maps[0].shape[1:]) == padded
        assert head.segment(rgb).labels.shape == shape


@pytest.mark.parametrize("architecture", SMALL)
def test_it_trains_as_every_head_does(architecture: str, tmp_path: Path) -> None:
    """From batches of augmented crops into a file, which gives the head again."""
    config = TrainingConfig(steps=2, batch=2, crop=32, augmentation=Augmentation(stain=0))
    training = Training(recipe_of(architecture), config, tmp_path, "cpu")
    image = discs()
    unknown = replace(image, class_id=np.full_like(image.class_id, 255))
    source = NucleusBatches([image, unknown], training.recipe, training.network, config)
    head = NetworkNuclei.load(training.run(source), "cpu")
    expected = replace(head, network=training.averaged.eval()).maps(image.rgb)
    for one, other in zip(head.maps(image.rgb), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("classes", [1, 5])
def test_hovernet_is_the_published_network(classes: int) -> None:
    """Counts of TIAToolbox 2's HoVerNet, "fast", with num_types=None and 6."""
    with torch.device("meta"):
        network = HoverNet(classes)
    state = network.state_dict()
    branches = ["np", "hv"] + (["tp"] if classes > 1 else [])
    counts = {1: (33_625_412, 632), 5: (37_639_626, 798)}
    assert (sum(p.numel() for p in network.parameters()), len(state)) == counts[classes]
    shapes = {
        "conv0./.weight": (64, 3, 7, 7),
        "conv0.bn.running_var": (64,),
        "d0.units.0.conv1.weight": (64, 64, 1, 1),
        "d0.units.2.preact/bn.weight": (256,),
        "d1.units.0.conv2/bn.bias": (128,),
        "d2.units.5.conv3.weight": (1024, 256, 1, 1),
        "d3.shortcut.weight": (2048, 1024, 1, 1),
        "d3.blk_bna.bn.weight": (2048,),
        "conv_bot.weight": (1024, 2048, 1, 1),
        "upsample2x.unpool_mat": (2, 2),
    }
    for name in branches:
        shapes |= {
            f"decoder.{name}.u3.conva.weight": (256, 1024, 3, 3),
            f"decoder.{name}.u3.dense.units.7.preact_bna/bn.weight": (480,),
            f"decoder.{name}.u3.dense.units.0.conv2.weight": (32, 32, 3, 3),
            f"decoder.{name}.u2.dense.blk_bna.bn.bias": (256,),
            f"decoder.{name}.u2.convf.weight": (256, 256, 1, 1),
            f"decoder.{name}.u1.conva.weight": (64, 256, 3, 3),
            f"decoder.{name}.u0.conv.bias": (6 if name == "tp" else 2,),
        }
    for name, shape in shapes.items():
        assert tuple(state[name].shape) == shape, name
    assert {k.split(".")[1] for k in state if k.startswith("decoder.")} == set(branches)


@pytest.mark.parametrize(("mode", "side", "out"), [("fast", 256, 164), ("original", 270, 80)])
def test_hovernet_takes_off_what_was_published(mode: Any, side: int, out: int) -> None:
    network = HoverNet(3, mode, width=8, units=[1, 1, 1, 1]).eval()
    with torch.inference_mode():
        valid = network.valid(torch.zeros(1, 3, side, side))
        whole = network(torch.zeros(1, 3, 64, 40))
    assert [m.shape[1:] for m in valid] == [(c, out, out) for c in (2, 2, 4)]
    assert [m.shape[1:] for m in whole] == [(c, 64, 40) for c in (2, 2, 4)]


@pytest.mark.parametrize(("mode", "first", "side"), [("fast", 0, 256), ("original", 5, 270)])
def test_hovernet_s_maps_lie_where_the_published_ones_do(mode: Any, first: int, side: int) -> None:
    """`first`: where the published network's lattice must begin to be that of the whole input."""
    torch.manual_seed(0)
    network = HoverNet(3, mode, width=8, units=[1, 1, 1, 1]).eval()
    x = torch.randn(1, 3, 280, 280)
    with torch.inference_mode():
        valid = network.valid(x[..., first : first + side, first : first + side])
        whole = network(x)
    out = valid.nucleus.shape[-1]
    begin = first + (side - out) // 2
    for one, other in zip(valid, whole, strict=True):
        middle = other[..., begin : begin + out, begin : begin + out]
        near = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # it pads its edge with zeros
        torch.testing.assert_close(one[near], middle[near], atol=1e-5, rtol=1e-4)


def test_published_weights_see_grey_levels_by_255() -> None:
    torch.manual_seed(0)
    network = HoverNet(width=8, units=[1, 1, 1, 1], published=True).eval()
    plain = HoverNet(width=8, units=[1, 1, 1, 1]).eval()
    plain.load_state_dict(network.state_dict())
    rgb = discs(48).rgb
    head = NetworkNuclei(replace(recipe_of("hovernet"), classes=("Nucleus",)), network, "")
    with torch.inference_mode():
        expected = plain(torch.from_numpy(rgb.transpose(2, 0, 1)[None] / np.float32(255)))
    np.testing.assert_allclose(head.maps(rgb)[0], expected.nucleus[0], atol=1e-5)


def test_published_checkpoints_are_unwrapped(tmp_path: Path) -> None:
    network = HoverNet(width=8, units=[1, 1, 1, 1])
    state = network.state_dict()
    torch.save({"desc": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "net.tar")
    torch.save(state, tmp_path / "net.pth")
    for name in ("net.tar", "net.pth"):
        assert published_checkpoint(tmp_path / name).keys() == state.keys()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("nothing")
    for name in ("other.pth", "text.pth", "missing.pth"):
        with pytest.raises(InvalidConfig, match=name):
            published_checkpoint(tmp_path / name)


def test_offsets_by_hand() -> None:
    labels = np.zeros((4, 7), np.int32)
    labels[1, 1:6] = 1  # five px, the middle one is column 3
    labels[2, 5:7] = labels[3, 6] = 2  # centroid (row 2.33, column 5.67): pixel (2, 6)
    across, down = offsets(labels)
    np.testing.assert_allclose(across[1], [0, -1, -0.5, 0, 0.5, 1, 0])
    np.testing.assert_allclose(across[2:, 5:], [[-1, 0], [0, 0]])
    np.testing.assert_allclose(down[1:, 5:], [[0, 0], [0, 0], [0, 1]])
    uneven = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]], np.int32)  # centroid: column 2
    np.testing.assert_allclose(offsets(uneven)[0, 0], [-1, -0.5, 0, 1 / 3, 2 / 3, 1])
    assert not offsets(np.zeros((0, 3), np.int32)).size


def test_nuclei_of_unknown_class_teach_no_class() -> None:
    labels = np.zeros((16, 16), np.int32)
    labels[2:6, 2:6], labels[9:14, 9:14] = 1, 2
    targets = hover_targets(labels, np.array([1, 255], np.uint8))
    assert targets["class"][3, 3] == 2
    assert targets["class"][10, 10] == 255
    logits = torch.randn(1, 3, 16, 16, requires_grad=True)
    kind = torch.from_numpy(targets["class"][None])
    pixel_classes(logits, kind, kind != 255).backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, labels == 2] == 0).all()
    assert (logits.grad[0, :, labels == 1] != 0).any()


def test_a_shifted_window_shows_the_same_nuclei() -> None:
    """HoVer-Net's nuclei, bit for bit, as soon as their surroundings are in both windows."""
    head, side, shift = memorised("hovernet"), 232, 8
    rgb = discs(side).rgb
    one = head.segment(rgb[:-shift, :-shift]).labels[shift:, shift:]
    other = head.segment(rgb[shift:, shift:]).labels[:-shift, :-shift]
    middle = slice(80, 136)  # the small encoder sees 41 px, the instances' gradients 13 more
    inside = [np.setdiff1d(x[middle, middle], 0) for x in (one, other)]
    assert len(inside[0]) == len(inside[1]) >= 4
    masks = [{np.flatnonzero(x == i).tobytes() for i in ids}
             for x, ids in zip((one, other), inside, strict=True)]  # fmt: skip
    assert masks[0] == masks[1]


def test_cerberus_hardly_minds_a_shifted_window() -> None:
    head, side, shift = memorised("cerberus"), 352, 32
    rgb = discs(side).rgb
    one = head.segment(rgb[:-shift, :-shift]).labels[shift:, shift:]
    other = head.segment(rgb[shift:, shift:]).labels[:-shift, :-shift]
    middle = slice(96, 192)
    assert panoptic_quality(one[middle, middle], other[middle, middle]).pq > 0.9


def test_tasks_without_labels_teach_nothing() -> None:
    torch.manual_seed(0)
    network = Cerberus(**SMALL["cerberus"])
    nuclei, glands = discs(64).labels, discs(64, 32).labels
    samples = [
        network.partial_targets({"nuclei": nuclei}),
        network.partial_targets({"nuclei": nuclei, "glands": glands}, tissue=2),
    ]
    targets = {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}
    maps = network(torch.randn(2, 3, 64, 64))
    for one in maps:
        one.retain_grad()
    terms = network.losses(maps, targets)
    assert list(terms) == ["nuclei", "glands", "lumina", "tissue"]
    assert terms["lumina"].item() == 0
    torch.stack(list(terms.values())).sum().backward()
    assert maps.nuclei.grad.abs().sum((1, 2, 3)).gt(0).tolist() == [True, True]
    assert maps.glands.grad.abs().sum((1, 2, 3)).gt(0).tolist() == [False, True]
    assert maps.tissue.grad.abs().sum((1, 2, 3)).gt(0).tolist() == [False, True]
    for task in OBJECTS:
        decoder = network.decoders[task]
        moved = any(p.grad.abs().sum() > 0 for p in decoder.parameters())
        assert moved == (task != "lumina"), task


def test_a_missing_task_counts_for_nothing() -> None:
    """The loss of a batch is that of the images that are labelled."""
    logits = torch.randn(3, 3, 8, 8)
    target = torch.randint(0, 3, (3, 8, 8))
    known = torch.tensor([1.0, 0, 1])[:, None, None]
    expected = pixel_classes(logits[[0, 2]], target[[0, 2]])
    torch.testing.assert_close(pixel_classes(logits, target, known), expected)


def test_inside_less_boundary_gives_the_objects_back() -> None:
    labels = np.zeros((64, 64), np.int32)
    labels[8:30, 8:30], labels[8:30, 30:56], labels[40:60, 10:50] = 1, 2, 3  # two of them touch
    for task, kind in OBJECTS.items():
        pixels = inside_and_boundary(labels, kind.boundary).astype(int)
        assert (pixels[18, 8:30] == 2).sum() == 2 * kind.boundary
        logits = 20 * np.eye(3, dtype=np.float32)[pixels].transpose(2, 0, 1)
        maps = [logits] * 3
        found = object_labels(maps, (64, 64), task)
        quality = panoptic_quality(labels, found)
        assert quality.dq == 1
        assert quality.sq > 0.96  # corners come back round


def test_cerberus_answers_for_all_its_tasks() -> None:
    head = memorised("cerberus")
    maps = head.maps(discs(64).rgb)
    assert [m.shape for m in maps] == [(3, 64, 64)] * 3 + [(3, 2, 2)]
    assert tissue_probability(maps).sum() == pytest.approx(1)
    few = Cerberus(["nuclei", "lumina"], 0, 8, SMALL["cerberus"]["encoder_arguments"]).eval()
    maps_of_few = few(torch.zeros(1, 3, 32, 32))
    assert [m.shape[1] for m in maps_of_few] == [3, 0, 3, 0]
    assert list(few.losses(maps_of_few, {
        k: torch.from_numpy(v[None])
        for k, v in few.targets(np.ones((32, 32), np.int32), np.zeros(1, np.uint8)).items()
    })) == ["nuclei", "lumina"]  # fmt: skip
    with pytest.raises(UnknownName, match="gland"):
        Cerberus(["nuclei", "gland"])
    with pytest.raises(InvalidConfig, match="nuclei"):
        Cerberus(["glands"])


@pytest.mark.parametrize(
    ("encoder", "arguments", "depths", "multiple"),
    [
        ("vit_tiny_patch16_224", SMALL_VIT, [1, 2, 3, 4], 16),
        ("vit_small_patch14_dinov2", SMALL_VIT, [1, 2, 3, 4], 16),
        ("pluto", {**SMALL_PLUTO, "rotary": True}, [1, 2, 3], 8),
        ("coverslip.encoders.pluto:pluto_small", SMALL_PLUTO, [1, 2, 3], 8),
    ],
)
def test_tokens_come_from_any_transformer(
    encoder: str, arguments: dict[str, Any], depths: list[int], multiple: int
) -> None:
    network = TokenDecoder(encoder, arguments, depths, classes=3, width=8, freeze=True).train()
    assert network.multiple == multiple
    maps, tokens = network.with_tokens(torch.randn(2, 3, 32, 64))
    assert [m.shape for m in maps] == [(2, c, 32, 64) for c in (2, 2, 4)]
    assert tokens.shape == (2, 32, 32 // multiple, 64 // multiple)
    assert not network.encoder.training
    torch.stack([m.square().mean() for m in maps]).sum().backward()
    frozen = {n for n, p in network.named_parameters() if p.grad is None}
    assert frozen == {n for n, _ in network.named_parameters() if n.startswith("encoder.")}


def test_an_encoder_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="no_such_vit"):
        TokenDecoder("no_such_vit")
    with pytest.raises(InvalidConfig, match="no_such_module"):
        TokenDecoder("no_such_module:function")
    with pytest.raises(InvalidConfig, match="3 are needed for patches of 8 px"):
        TokenDecoder("pluto", SMALL_PLUTO, [1, 2])


def test_a_nucleus_is_embedded_by_the_tokens_it_lies_on() -> None:
    tokens = np.arange(8, dtype=np.float32).reshape(2, 2, 2)  # [d, h, w]
    labels = np.zeros((16, 16), np.int32)
    labels[0:4, 0:4] = 1  # on the first token alone
    labels[6:10, 12] = 2  # two px on the second, two on the fourth
    np.testing.assert_allclose(nucleus_tokens(tokens, labels, 8), [[0, 4], [2, 6]])
    assert nucleus_tokens(tokens, labels * 0, 8).shape == (0, 2)
