"""Models of bags: the laws they keep, the papers' formulas, CLAM's own checkpoints."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from coverslip.errors import InvalidConfig, MissingWeights, UnknownName
from coverslip.mil import blocks, registry
from coverslip.mil.blocks import by_blocks, softmax_pooled
from coverslip.mil.clam import ClamMB, ClamSB, smooth_svm
from coverslip.mil.clam_checkpoint import clam_model
from coverslip.mil.pooling import MeanPooling
from coverslip.mil.registry import MODELS, model_arguments, slide_model, slide_model_names
from coverslip.mil.slide_model import SlideModel, SlideOutput
from coverslip.mil.study_network import StudyNetwork

Array = npt.NDArray[np.float64]

DIM, OUTPUTS = 8, 3
WIDTHS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mean": {"hidden": 16},
    "max": {"hidden": 16},
    "abmil": {"hidden": 16, "attention_dim": 8},
    "gated-abmil": {"hidden": 16, "attention_dim": 8},
    "additive": {"hidden": 16, "attention_dim": 8, "part_dim": 12},
    "clam-sb": {"hidden": 16, "attention_dim": 8, "instances": 4},
    "clam-mb": {"hidden": 16, "attention_dim": 8, "instances": 4},
    "dsmil": {"query_dim": 8},
    "transmil": {"hidden": 16, "heads": 2, "landmarks": 4},
}
ADDITIVE = sorted(MODELS.keys() - {"dsmil", "transmil"})


def model(name: str, seed: int = 0, **further: Any) -> SlideModel:
    torch.manual_seed(seed)
    return slide_model(name, DIM, OUTPUTS, **(WIDTHS[name] | further)).eval()


def bag(tiles: int, seed: int = 0, dim: int = DIM, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tiles, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(a: SlideOutput, b: SlideOutput, tolerance: float) -> None:
    for name, first, second in zip(SlideOutput._fields, a, b, strict=True):
        assert torch.allclose(first, second, rtol=tolerance, atol=tolerance), name


# --- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tiles", [1, 2, 3, 30])
def test_every_output_has_its_shape_and_attention_sums_to_one(name: str, tiles: int) -> None:
    found = model(name)(bag(tiles))
    assert found.logits.shape == (OUTPUTS,)
    assert found.attention.shape == (len(found.attention), tiles)
    assert len(found.attention) in (1, OUTPUTS)
    assert (found.attention >= 0).all()
    assert torch.allclose(found.attention.sum(dim=1), torch.ones(len(found.attention)))
    assert found.embedding.ndim == 1
    assert torch.allclose(found.streams.mean(dim=0), found.logits, atol=1e-6)
    assert found.contributions.shape == (tiles if name in ADDITIVE else 0, OUTPUTS)
    assert not found.contributions.requires_grad
    assert all(part.isfinite().all() for part in found)


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize("block", [7, 4096])
def test_contributions_sum_to_the_logits(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    network, tiles = model(name), 5 * bag(40)
    found = network(tiles)
    assert torch.allclose(found.contributions.sum(dim=0), found.logits, atol=1e-5)
    assert (found.contributions.std(dim=0) > 0).all()


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"transmil"}))
def test_the_order_of_tiles_changes_nothing(name: str) -> None:
    network, tiles = model(name).double(), bag(30, dtype=torch.float64)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    one, other = network(tiles), network(tiles[order])
    reordered = one._replace(
        attention=one.attention[:, order],
        contributions=one.contributions[order if len(one.contributions) else []],
    )
    close(other, reordered, 1e-12)


def test_places_in_transmils_square_matter() -> None:
    network, tiles = model("transmil"), bag(30)
    assert not torch.allclose(network(tiles).logits, network(tiles.flip(0)).logits, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_change_only_the_last_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    further = {"dropout": 0.0} if "dropout" in model_arguments(name) else {}
    network = model(name, **further).double().train()
    tiles, found, gradients = bag(90, dtype=torch.float64), [], []
    for block in (4096, 90, 89, 7):
        monkeypatch.setattr(blocks, "BLOCK", block)
        network.zero_grad()
        output, own = network.with_own_loss(tiles, 1)
        (output.streams.square().sum() + own).backward()
        found.append(output)
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for output, gradient in zip(found[1:], gradients[1:], strict=True):
        close(output, found[0], 1e-11)
        for one, other in zip(gradient, gradients[0], strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def kept_numbers(network: SlideModel, tiles: Tensor) -> int:
    """How many numbers, beside the bag and the weights, wait for the gradient."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 4
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        found = network(tiles)
    assert found.logits.requires_grad
    for own in (tiles, *network.parameters()):
        kept.pop(own.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"linear"}))
def test_long_bags_keep_little_for_their_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, kept = model(name).train(), []
    for block in (64, 4096):
        monkeypatch.setattr(blocks, "BLOCK", block)
        kept.append(kept_numbers(network, bag(2048)) - kept_numbers(network, bag(1024)))
    # a score or two an output; TransMIL: the tokens before each of its layers, 16 wide
    assert kept[0] < 1024 * (40 if name == "transmil" else 2 * OUTPUTS)
    assert kept[1] > 4 * kept[0]


@pytest.mark.parametrize("name", MODELS)
def test_bags_are_memorised(name: str) -> None:
    further = {"dropout": 0.0} if "dropout" in model_arguments(name) else {}
    network = model(name, **further).train()
    bags = [bag(tiles, seed) for seed, tiles in enumerate((3, 5, 8, 13))]
    labels = [0, 1, 2, 1]
    optimiser = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(50):
        optimiser.zero_grad()
        for tiles, label in zip(bags, labels, strict=True):
            found, own = network.with_own_loss(tiles, label)
            target = torch.tensor([label] * len(found.streams))
            (F.cross_entropy(found.streams, target) + own).backward()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
        optimiser.step()
    network.eval()
    assert [int(network(tiles).logits.argmax()) for tiles in bags] == labels


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_decides_everything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 16)
    gradients = []
    for _ in range(2):
        network = model(name).train()
        torch.manual_seed(3)
        network(bag(40)).logits.sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    network = model(name).train()
    found, own = network.with_own_loss(bag(40), 1)
    (found.streams * torch.arange(1, OUTPUTS + 1)).sum().add(own).backward()
    idle = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    # instance classifiers of classes that the bag is not of, where classes need not exclude
    assert idle == {n for n, _ in network.named_parameters() if n.startswith(
        ("instance_classifiers.0", "instance_classifiers.2")
    )}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_no_bag_is_empty(name: str) -> None:
    with pytest.raises(ValueError, match="n at least 1"):
        model(name)(torch.empty(0, DIM))


# --- pooling in blocks --------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99))
def test_pooling_in_blocks_is_the_softmax(tiles: int, block: int, seed: int) -> None:
    rows = 30 * bag(tiles, seed, dtype=torch.float64)  # scores in the hundreds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", block)
        pooled, attention, more = softmax_pooled(lambda x: (x[:, :2], x, x[:, 3:]), rows)
    weight = np.exp(rows[:, :2].numpy() - rows[:, :2].numpy().max(axis=0))
    weight /= weight.sum(axis=0)
    assert np.allclose(attention.numpy(), weight.T)
    assert np.allclose(pooled.numpy(), weight.T @ rows.numpy())
    assert torch.equal(more, rows[:, 3:])


def test_rows_of_several_tensors_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)
    tiles, numbers = bag(10), torch.arange(10)
    rows, indices = by_blocks(lambda x, i: (x, i), tiles, numbers)
    assert [len(i) for i in indices] == [len(x) for x in rows] == [4, 4, 2]
    assert torch.equal(torch.cat(rows), tiles)
    assert torch.equal(torch.cat(indices), numbers)


# --- the papers' formulas, in float64 -----------------------------------------------------------


def weights(network: torch.nn.Module) -> dict[str, Array]:
    return {name: p.detach().double().numpy() for name, p in network.state_dict().items()}


def linear(w: dict[str, Array], name: str, x: Array) -> Array:
    return np.asarray(x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0))


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def test_mean_max_and_linear_are_what_they_say() -> None:
    x = bag(20).double().numpy()
    for name, pool in {"mean": np.mean, "max": np.max, "linear": np.mean}.items():
        network = model(name)
        w = weights(network)
        h = x if name == "linear" else np.maximum(linear(w, "project.0", x), 0)
        wanted = linear(w, "classify", pool(h, axis=0))
        assert np.allclose(network(bag(20)).logits.detach(), wanted, atol=1e-6)


@pytest.mark.parametrize("block", [7, 4096])
def test_the_linear_model_standardises_means(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers that differ by little of their size: exactly, and tile by tile."""
    monkeypatch.setattr(blocks, "BLOCK", block)
    means = 100 + bag(12, seed=1, dtype=torch.float64) * torch.logspace(-3, 1, DIM)
    means[:, 2], means[:, 5] = 0, 40.1  # the same in all bags
    network, tiles = model("linear"), 100 + bag(40)
    network.prepare(lambda: means)
    spread = means.numpy().std(axis=0)
    spread[[2, 5]] = 1
    np.testing.assert_allclose(network.spread, spread, rtol=1e-6)
    np.testing.assert_allclose(network.centre, means.numpy().mean(axis=0), rtol=1e-6)
    found, w = network(tiles), weights(network)
    z = (tiles.double().numpy() - w["centre"]) / w["spread"]
    np.testing.assert_allclose(found.embedding, z.mean(axis=0), rtol=1e-5, atol=1e-4)
    wanted = linear(w, "classify", z)
    np.testing.assert_allclose(found.contributions, wanted / 40, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.logits.detach(), wanted.mean(axis=0), rtol=1e-4, atol=1e-4)
    total = found.contributions.sum(dim=0)
    np.testing.assert_allclose(total, found.logits.detach(), rtol=1e-5, atol=1e-4)
    assert found.logits.requires_grad
    assert {n for n, _ in network.named_parameters()} == {"classify.weight", "classify.bias"}


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"linear"}))
def test_other_models_ask_for_no_means(name: str) -> None:
    """It would read every bag that is trained on."""

    def asked() -> Tensor:
        raise AssertionError

    network = StudyNetwork(model(name), covariates=2)
    before = {n: p.clone() for n, p in network.state_dict().items()}
    network.prepare(asked)
    assert all(torch.equal(p, before[n]) for n, p in network.state_dict().items())


def test_a_tile_has_the_attention_of_the_maxima_it_gives() -> None:
    network = slide_model("max", 2, 1, hidden=4)
    with torch.no_grad():
        network.project[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, -1]]))
        network.project[0].bias.zero_()
    found = network.eval()(torch.tensor([[3.0, 0], [0, 2], [1, 1]]))
    # the first has the largest x and x + y, the second the largest y; -x - y is above 0 nowhere
    assert found.attention.tolist() == [pytest.approx([2 / 3, 1 / 3, 0])]
    with torch.no_grad():
        network.project[0].bias.fill_(-9)
    assert network(torch.ones(4, 2)).attention.tolist() == [[0.25] * 4]


@pytest.mark.parametrize("name", ["abmil", "gated-abmil", "additive"])
def test_attention_models_follow_their_formulas(name: str) -> None:
    network, x = model(name), bag(20)
    w, found = weights(network), network(x)
    h = np.maximum(linear(w, "project.0", x.double().numpy()), 0)
    u = np.tanh(linear(w, "attend.value", h))
    if name != "abmil":
        u = u * sigmoid(linear(w, "attend.gate", h))
    a = softmax(linear(w, "attend.score", u)[:, 0], axis=0)
    if name == "additive":  # a perceptron of a_k h_k for each tile, summed
        part = np.maximum((a[:, None] * h) @ w["part.0.weight"].T, 0) @ w["classify.weight"].T
        part += a[:, None] * w["classify.bias"]
        assert np.allclose(found.contributions.detach(), part, atol=1e-6)
        wanted = part.sum(axis=0)
    else:
        wanted = linear(w, "classify", a @ h)
    assert np.allclose(found.attention[0].detach(), a, atol=1e-6)
    assert np.allclose(found.logits.detach(), wanted, atol=1e-6)


def test_additive_logits_do_not_grow_with_the_bag() -> None:
    network, x = model("additive"), bag(20)
    assert torch.allclose(network(x).logits, network(x.repeat(50, 1)).logits, atol=1e-5)


def test_dsmil_follows_its_formula() -> None:
    network, x = model("dsmil"), bag(20)
    w, found = weights(network), network(x)
    rows = x.double().numpy()
    scores = linear(w, "instance", rows)  # (n, outputs)
    query, value = linear(w, "query", rows), linear(w, "value", rows)
    likeness = query @ query[scores.argmax(axis=0)].T / math.sqrt(query.shape[1])
    a = softmax(likeness, axis=0)  # (n, outputs)
    pooled = a.T @ value  # (outputs, dim)
    second = linear(w, "classify", pooled.reshape(-1))
    assert np.allclose(found.attention.detach(), a.T, atol=1e-6)
    assert np.allclose(found.streams.detach(), [scores.max(axis=0), second], atol=1e-6)
    assert np.allclose(found.logits.detach(), (scores.max(axis=0) + second) / 2, atol=1e-6)


def nystrom_reference(
    w: dict[str, Array], layer: str, x: Array, heads: int, landmarks: int
) -> tuple[Array, Array]:
    """x + attention(LayerNorm(x)) (t, d), and the attention (heads, t, t), all of it in memory."""
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    y = (x - mean) / np.sqrt(variance + 1e-5) * w[f"{layer}.norm.weight"] + w[f"{layer}.norm.bias"]
    lead = -len(x) % landmarks
    y = np.concatenate([np.zeros((lead, y.shape[1])), y])
    run, width = len(y) // landmarks, y.shape[1] // heads
    found, whole = [], []
    q, k, v = (y @ w[f"{layer}.{part}.weight"].T for part in ("query", "key", "value"))
    means = [np.stack([p[i * run : (i + 1) * run].mean(axis=0) for i in range(landmarks)])
             for p in (q, k)]  # fmt: skip
    parts = [[p[:, h * width : (h + 1) * width] for h in range(heads)] for p in (q, k, v, *means)]
    middle = [softmax(m @ n.T / math.sqrt(width), 1) for m, n in zip(*parts[3:], strict=True)]
    largest = max(m.sum(axis=1).max() for m in middle) * max(m.sum(axis=0).max() for m in middle)
    for h, (q_, k_, v_, m_, n_) in enumerate(zip(*parts, strict=True)):
        z, one = middle[h].T / largest, np.eye(landmarks)
        for _ in range(6):
            a = middle[h] @ z
            z = z @ (13 * one - a @ (15 * one - a @ (7 * one - a))) / 4
        attention = softmax(q_ @ n_.T / math.sqrt(width), 1) @ z
        attention = attention @ softmax(m_ @ k_.T / math.sqrt(width), 1)
        around = np.pad(v_, ((16, 16), (0, 0)))
        kernel = w[f"{layer}.convolve.weight"][h, 0, :, 0]
        beside = sum(kernel[j] * around[j : j + len(v_)] for j in range(33))
        found.append(attention @ v_ + beside)
        whole.append(attention)
    out = linear(w, f"{layer}.out.0", np.concatenate(found, axis=1))
    return x + out[lead:], np.stack(whole)[:, lead:, lead:]


def transmil_reference(w: dict[str, Array], tiles: Array) -> tuple[Array, Array]:
    """Logits, and attention of the tiles."""
    h = np.maximum(linear(w, "project.0", tiles), 0)
    n, side = len(h), math.ceil(math.sqrt(len(h)))
    h = np.concatenate([w["class_token"], h, h[: side * side - n]])
    h, _ = nystrom_reference(w, "first", h, 2, 4)
    square = h[1:].reshape(side, side, -1)
    placed = square.copy()
    for reach in (3, 2, 1):
        name = f"place.convolve_{2 * reach + 1}"
        around = np.pad(square, ((reach, reach), (reach, reach), (0, 0)))
        for i, j in product(range(2 * reach + 1), repeat=2):
            placed += around[i : i + side, j : j + side] * w[f"{name}.weight"][:, 0, i, j]
        placed += w[f"{name}.bias"]
    h, attention = nystrom_reference(
        w, "second", np.concatenate([h[:1], placed.reshape(-1, 16)]), 2, 4
    )
    token = (h[0] - h[0].mean()) / np.sqrt(h[0].var() + 1e-5) * w["norm.weight"] + w["norm.bias"]
    row = attention.mean(axis=0)[0, 1:]
    row[: len(row) - n] += row[n:]
    row = np.maximum(row[:n], 0)
    return linear(w, "classify", token), row / row.sum()


@pytest.mark.parametrize(("tiles", "block"), [(1, 4096), (30, 4096), (30, 8), (83, 16)])
def test_transmil_follows_its_formula(
    tiles: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    network, x = model("transmil").double(), bag(tiles, dtype=torch.float64)
    found = network(x)
    logits, attention = transmil_reference(weights(network), x.numpy())
    assert np.allclose(found.logits.detach(), logits, atol=1e-12)
    assert np.allclose(found.attention[0].detach(), attention, atol=1e-12)


# --- CLAM ---------------------------------------------------------------------------------------


def test_smooth_svm_by_hand() -> None:
    scores = torch.tensor([[0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    one = math.log(math.exp(0 + 1) + math.exp(2)) - 2  # right by 2
    other = math.log(math.exp(1) + math.exp(1 + 1)) - 1  # undecided
    assert float(smooth_svm(scores, torch.tensor([1, 0]))) == pytest.approx((one + other) / 2)


@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("name", ["clam-sb", "clam-mb"])
@pytest.mark.parametrize("tiles", [30, 5])
def test_clam_teaches_its_instance_classifiers(name: str, subtyping: bool, tiles: int) -> None:
    network, x, label = model(name, subtyping=subtyping).double(), bag(tiles).double(), 1
    found, own = network.with_own_loss(x, label)
    w = weights(network)
    h = np.maximum(linear(w, "project.0", x.numpy()), 0)

    def loss(c: int, rows: list[tuple[int, int]]) -> float:
        each = []
        for row, target in rows:
            s = linear(w, f"instance_classifiers.{c}", h[row])
            s = s + 1 - np.eye(2)[target]
            each.append(np.log(np.exp(s).sum()) - s[target])
        return float(np.mean(each))

    order = [np.argsort(-a) for a in found.attention.detach().numpy()]
    order = order * (1 if name == "clam-mb" else OUTPUTS)
    k = min(4, tiles // 2)
    wanted = loss(1, [(r, 1) for r in order[1][:k]] + [(r, 0) for r in order[1][-k:]])
    if subtyping:
        wanted += sum(loss(c, [(r, 0) for r in order[c][:4]]) for c in (0, 2))
        wanted /= OUTPUTS
    assert own.item() == pytest.approx(0.3 / 0.7 * wanted, rel=1e-9)


def test_clam_has_nothing_to_teach_by_one_tile_or_without_a_label() -> None:
    network = model("clam-sb")
    assert float(network.with_own_loss(bag(1), 0)[1].detach()) == 0
    assert float(network.with_own_loss(bag(9), None)[1].detach()) == 0
    with pytest.raises(ValueError, match=r"label must be in 0\.\.2"):
        network.with_own_loss(bag(9), 3)


def test_clams_classes_may_be_other_than_its_outputs() -> None:
    network = model("clam-sb", classes=5)
    assert float(network.with_own_loss(bag(9), 4)[1].detach()) > 0
    with pytest.raises(InvalidConfig, match="branch of attention"):
        model("clam-mb", classes=5)


def clam_state(
    gated: bool, many: bool, dropout: bool, wrapped: bool, dim: int = 6, classes: int = 3
) -> dict[str, Tensor]:
    """A checkpoint as CLAM saves it, with widths 5 and 4."""
    torch.manual_seed(0)
    net = "attention_net.module." if wrapped else "attention_net."
    layers: dict[str, tuple[int, int]] = {f"{net}0": (5, dim)}
    at, branches = f"{net}{3 if dropout else 2}", classes if many else 1
    if gated:
        layers |= {f"{at}.attention_a.0": (4, 5), f"{at}.attention_b.0": (4, 5)}
        layers |= {f"{at}.attention_c": (branches, 4)}
    else:
        layers |= {f"{at}.module.0": (4, 5), f"{at}.module.{3 if dropout else 2}": (branches, 4)}
    if many:
        layers |= {f"classifiers.{c}": (1, 5) for c in range(classes)}
    else:
        layers |= {"classifiers": (classes, 5)}
    layers |= {f"instance_classifiers.{c}": (2, 5) for c in range(classes)}
    state = {f"{name}.weight": torch.randn(shape) for name, shape in layers.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in layers.items()}
    return state | {"instance_loss_fn.labels": torch.arange(2)}


def clam_reference(state: dict[str, Tensor], x: Array) -> tuple[Array, Array]:
    """Logits and attention (branches, n) by the paper's formulas, from a checkpoint's tensors."""
    w = {name.replace("attention_net.module.", "attention_net."): t.double().numpy()
         for name, t in state.items()}  # fmt: skip
    h = np.maximum(linear(w, "attention_net.0", x), 0)
    at = (
        "attention_net.3"
        if any(name.startswith("attention_net.3") for name in w)
        else "attention_net.2"
    )
    if f"{at}.attention_c.weight" in w:
        value = np.tanh(linear(w, f"{at}.attention_a.0", h))
        scores = linear(
            w, f"{at}.attention_c", value * sigmoid(linear(w, f"{at}.attention_b.0", h))
        )
    else:
        last = 3 if f"{at}.module.3.weight" in w else 2
        scores = linear(w, f"{at}.module.{last}", np.tanh(linear(w, f"{at}.module.0", h)))
    a = softmax(scores.T, axis=1)
    pooled = a @ h
    if "classifiers.weight" in w:
        return linear(w, "classifiers", pooled[0]), a
    return np.array([linear(w, f"classifiers.{c}", z)[0] for c, z in enumerate(pooled)]), a


@pytest.mark.parametrize(
    ("gated", "many", "dropout", "wrapped"), list(product([True, False], repeat=4))
)
def test_a_clam_checkpoint_becomes_the_same_model(
    gated: bool, many: bool, dropout: bool, wrapped: bool, tmp_path: Path
) -> None:
    state = clam_state(gated, many, dropout, wrapped)
    torch.save(state, tmp_path / "s_0_checkpoint.pt")
    network = clam_model(tmp_path / "s_0_checkpoint.pt", subtyping=True).eval()
    assert type(network) is (ClamMB if many else ClamSB)
    assert network.subtyping
    x = bag(50, dim=6)
    logits, attention = clam_reference(state, x.double().numpy())
    found = network(x)
    assert np.abs(found.logits.detach().numpy() - logits).max() < 1e-5
    assert np.abs(found.attention.detach().numpy() - attention).max() < 1e-6
    for c in range(3):
        own = network.state_dict()[f"instance_classifiers.{c}.weight"]
        assert torch.equal(own, state[f"instance_classifiers.{c}.weight"])


def test_clams_published_checkpoint_becomes_the_same_model(real_data: Path) -> None:
    path = real_data / "weights" / "clam_sb_resnet50_demo.pt"
    if not path.is_file():
        pytest.skip(f"no checkpoint of CLAM's: {path} is absent")
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = clam_model(path).eval()
    assert (network.project[0].in_features, network.outputs) == (1024, 2)
    for seed, tiles in enumerate((1, 7, 500)):
        x = bag(tiles, seed, dim=1024).abs() / 2  # ResNet-50 embeddings are at least 0
        logits, attention = clam_reference(state, x.double().numpy())
        found = network(x)
        assert np.abs(found.logits.detach().numpy() - logits).max() < 1e-5
        assert np.abs(found.attention.detach().numpy() - attention).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("classifiers.bias", None, "first missing: classifiers.bias"),
        ("classifiers.weight", None, "first missing: classifiers.weight"),
        ("attention_net.3.attention_b.0.bias", None, "attention_b.0.bias"),
        ("head.weight", torch.ones(2), "first unknown: head.weight"),
        ("instance_classifiers.3.bias", torch.ones(2), "instance_classifiers.3.bias"),
        ("attention_net.0.weight", torch.ones(5), "no matrices"),
        ("attention_net.0.weight", torch.ones(0, 6), "empty"),
        ("attention_net.0.bias", torch.tensor(1.0), "no matrices"),
        ("attention_net.3.attention_a.0.bias", torch.ones(3), r"\(3,\), not \(4,\)"),
        ("classifiers.weight", torch.tensor(1.0), "first unknown: instance_classifiers.1.bias"),
        ("classifiers.weight", torch.ones(3, 5, dtype=torch.int64), "no tensor of numbers"),
        ("classifiers.weight", "text", "no tensor of numbers"),
    ],
)
def test_other_tensors_are_refused_by_name(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    state = {**clam_state(True, False, True, False), name: value}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "c.pt")
    with pytest.raises(MissingWeights, match=message) as caught:
        clam_model(tmp_path / "c.pt")
    assert str(tmp_path / "c.pt") in str(caught.value)


def test_no_file_but_weights_is_read(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="no such file"):
        clam_model(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(MissingWeights, match="weights alone"):
        clam_model(tmp_path / "text.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled.pt")
    with pytest.raises(MissingWeights, match="weights alone"):
        clam_model(tmp_path / "pickled.pt")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with pytest.raises(MissingWeights, match="holds a Tensor"):
        clam_model(tmp_path / "tensor.pt")


# --- the registry -------------------------------------------------------------------------------


def test_the_registry_loads_no_torch() -> None:
    code = (
        "import sys; from coverslip.mil.registry import slide_model_names; slide_model_names();"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_every_name_is_known_and_near_misses_are_named() -> None:
    assert slide_model_names() == sorted(WIDTHS)
    with pytest.raises(UnknownName, match="did you mean transmil"):
        slide_model("transmill", DIM, OUTPUTS)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("linear", {"hidden": 4}, "takes no 'hidden'; it takes: none"),
        ("abmil", {"gated": True}, "it takes: attention_dim, dropout, hidden"),
        ("abmil", {"hidden": 4.0}, "hidden must be int, got 4.0"),
        ("abmil", {"hidden": True}, "hidden must be int, got True"),
        ("abmil", {"hidden": 0}, "hidden cannot be 0"),
        ("abmil", {"dropout": "much"}, "dropout must be float"),
        ("abmil", {"dropout": 1.5}, "1.5"),
        ("abmil", {"dropout": float("nan")}, "dropout cannot be nan"),
        ("clam-sb", {"instance_share": 1}, "instance_share must be in"),
        ("clam-sb", {"subtyping": 1}, "subtyping must be bool"),
        ("transmil", {"hidden": 16, "heads": 3}, "multiple of heads"),
    ],
)
def test_arguments_a_model_does_not_take_are_refused(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=message) as caught:
        slide_model(name, DIM, OUTPUTS, **arguments)
    assert f"model {name}" in str(caught.value)


def test_a_share_may_be_a_whole_number_and_sizes_are_at_least_one() -> None:
    assert slide_model("abmil", DIM, OUTPUTS, dropout=0).outputs == OUTPUTS
    for sizes in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            slide_model("mean", *sizes)


class Points:
    """Stands in for an installed package's entry points."""

    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value


def test_packages_add_models_and_replace_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str, value: str) -> None:
        monkeypatch.setattr(registry, "entry_points", lambda group: [Points(name, value)])

    installed("my-mean", "coverslip.mil.pooling:MeanPooling")
    assert "my-mean" in slide_model_names()
    assert isinstance(slide_model("my-mean", DIM, OUTPUTS, hidden=4), MeanPooling)
    installed("mean", "elsewhere:Mean")
    with pytest.raises(InvalidConfig, match="elsewhere:Mean"):
        slide_model_names()
    installed("odd", "coverslip.mil.blocks:BLOCK")
    with pytest.raises(InvalidConfig, match="no SlideModel"):
        slide_model("odd", DIM, OUTPUTS)


# --- beside covariates --------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_covariates_are_one_more_term(name: str) -> None:
    network = StudyNetwork(model(name), covariates=4).eval()
    tiles, covariates = bag(20), torch.tensor([0.3, -1.0, 2.0, 0.0])
    found, plain, more = network(tiles, covariates), network.model(tiles), network.covariate_logits(
        covariates
    )  # fmt: skip
    assert more.abs().min() > 0
    assert torch.allclose(found.logits, plain.logits + more)
    assert torch.allclose(found.streams.mean(dim=0), found.logits, atol=1e-6)
    if name in ADDITIVE:
        assert torch.allclose(found.contributions.sum(dim=0) + more, found.logits, atol=1e-5)
    taught, own = network.with_own_loss(tiles, covariates, 1)
    assert torch.equal(taught.logits, found.logits)
    assert torch.equal(own, network.model.with_own_loss(tiles, 1)[1])


def test_without_covariates_the_network_is_its_model() -> None:
    network = StudyNetwork(model("abmil")).eval()
    close(network(bag(20)), network.model(bag(20)), 0)
    assert network.outputs == OUTPUTS
    assert network.covariate_logits(None).tolist() == [0] * OUTPUTS
    assert [n for n, _ in network.named_parameters() if not n.startswith("model.")] == []


@pytest.mark.parametrize(
    ("has", "given"), [(0, torch.ones(2)), (2, None), (2, torch.ones(3)), (2, torch.ones(1, 2))]
)
def test_other_covariates_are_refused(has: int, given: Tensor | None) -> None:
    network = StudyNetwork(model("mean"), covariates=has)
    with pytest.raises(ValueError, match=rf"covariates must be \({has},\)"):
        network(bag(5), given)
    with pytest.raises(ValueError, match="at least 0"):
        StudyNetwork(model("mean"), covariates=-1)
