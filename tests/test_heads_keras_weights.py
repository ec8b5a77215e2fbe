"""Models of the package stardist: the same numbers, the same nuclei, and files that lie.

`data/stardist_keras` is such a model with random weights, 4 filters and 16 rays, and what the
package makes of an image; `benchmarks/stardist_parity.py --make FOLDER --small` writes it.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from coverslip.cli import main
from coverslip.errors import InvalidConfig, MissingPackage
from coverslip.heads import keras_weights
from coverslip.heads.keras_weights import convert_stardist, load_stardist
from coverslip.heads.registry import load_nucleus_head
from coverslip.heads.stardist import LEAST_DISTANCE, StarDist
from coverslip.kernels.star_convex import surviving_stars

MODEL = Path(__file__).parent / "data" / "stardist_keras"
WEIGHTS = "weights_best.h5"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(MODEL / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def maps(expected: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ours says of the image."""
    _, network = load_stardist(MODEL)
    image = expected["image"]
    low, high = np.percentile(image, [1, 99.8], axis=(0, 1))
    x = ((image - low) / (high - low)).astype(np.float32).transpose(2, 0, 1)[None]
    with torch.inference_mode():
        return [m[0].numpy() for m in network(torch.from_numpy(x.copy()))]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the model's folder, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "thresholds.json", WEIGHTS):
        shutil.copy(MODEL / name, folder)
    return folder


def zipped(folder: Path, to: Path, inside: str = "2D_versatile_he/") -> Path:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, inside + path.name)
    return to


def as_keras_3(folder: Path, to: Path) -> Path:
    """The weights as Keras 3 lays them out: numbered, with an optimiser beside them."""
    with h5py.File(folder / WEIGHTS) as old, h5py.File(to, "w") as new:
        layers = [n for n in old.attrs["layer_names"] if len(old[n])]
        for i, layer in enumerate(layers):
            place = f"layers/conv2d_{i}" if i else "layers/conv2d"
            name = layer.decode() if isinstance(layer, bytes) else layer
            for k, part in enumerate(("kernel", "bias")):
                new[f"{place}/vars/{k}"] = old[f"{name}/{name}/{part}"][()]
        new["optimizer/vars/0"] = 3
    return to


def as_keras_2(folder: Path, to: Path) -> Path:
    """`kernel:0`, a whole model's file, and Keras' counter further on, past a power of ten."""
    with h5py.File(folder / WEIGHTS) as old, h5py.File(to, "w") as new:
        unnamed = sorted(n for n in old if n.startswith("conv2d"))
        renamed = dict(zip(unnamed, ("conv2d_9", "conv2d_10"), strict=True))
        for layer in (n for n in old if len(old[n])):
            name = renamed.get(layer, layer)
            for part in ("kernel", "bias"):
                new[f"model_weights/{name}/{name}/{part}:0"] = old[f"{layer}/{layer}/{part}"][()]
        new["optimizer_weights/Adam/iter:0"] = 3
    return to


def test_the_numbers_are_the_packages(
    expected: dict[str, np.ndarray], maps: list[np.ndarray]
) -> None:
    logit, distance, classes = maps
    probability = 1 / (1 + np.exp(-logit[0]))
    np.testing.assert_allclose(probability, expected["probability"], atol=1e-4)
    np.testing.assert_allclose(distance.transpose(1, 2, 0), expected["distance"], atol=1e-4)
    assert len(classes) == 0
    assert np.ptp(probability) > 0.5, "a network that says nothing proves nothing"


def test_the_survivors_are_the_packages(
    expected: dict[str, np.ndarray], maps: list[np.ndarray]
) -> None:
    """The same ones in the same order."""
    recipe, _ = load_stardist(MODEL)
    logit, distance, _ = maps
    probability = 1 / (1 + np.exp(-logit[0]))
    row, column = np.nonzero(probability > recipe.settings["probability"])
    centre = np.stack([2 * column, 2 * row], axis=1)
    rays = np.maximum(distance[:, row, column].T, LEAST_DISTANCE)
    score = probability[row, column]
    kept = surviving_stars(centre, rays, score, recipe.settings["overlap"])
    ours = centre[kept][np.argsort(-score[kept])][:, ::-1]
    assert len(ours) > 40
    assert np.array_equal(ours, expected["points_to_the_border"])


def test_the_drawing_is_the_packages(
    expected: dict[str, np.ndarray], maps: list[np.ndarray]
) -> None:
    """But for what others cut off a nucleus: of that we keep the largest part."""
    recipe, network = load_stardist(MODEL)
    found = network.segmentation(maps, expected["image"].shape[:2], recipe.settings)
    drawn = expected["labels_to_the_border"]
    inside = found.labels > 0
    assert (drawn[inside] > 0).all()
    assert (inside == (drawn > 0)).mean() > 0.98
    pairs = np.unique(np.stack([found.labels[inside], drawn[inside]]), axis=1)
    assert len(pairs.T) == found.labels.max()
    assert len(np.unique(pairs[1])) == found.labels.max()


def test_a_recipe_says_what_the_model_is() -> None:
    recipe, network = load_stardist(MODEL, name="mine", mpp=0.4, classes=("Cell",), licence="BSD")
    assert (recipe.name, recipe.mpp, recipe.classes, recipe.licence) == (
        "mine",
        0.4,
        ("Cell",),
        "BSD",
    )
    assert recipe.arguments == {"rays": 16, "filters": 4, "features": 16}
    assert recipe.settings == {"probability": 0.3, "overlap": 0.3}
    assert recipe.architecture == "stardist"
    assert not network.training


def test_every_layout_holds_the_same(model: Path, tmp_path: Path) -> None:
    reference = load_stardist(MODEL)[1].state_dict()
    zip_path = zipped(model, tmp_path / "model.zip")
    sources = [
        zip_path,
        zipped(model, tmp_path / "flat.zip", ""),
        model / WEIGHTS,
        as_keras_3(model, tmp_path / "model.weights.h5"),
        as_keras_2(model, tmp_path / "whole.h5"),
    ]
    for source in sources:
        recipe, network = load_stardist(source)
        assert recipe.arguments == {"rays": 16, "filters": 4, "features": 16}
        for key, value in network.state_dict().items():
            assert torch.equal(value, reference[key]), (source.name, key)
    assert load_stardist(zip_path)[0].settings == {"probability": 0.3, "overlap": 0.3}
    alone = load_stardist(model / WEIGHTS)[0].settings
    assert alone == {"probability": 0.5, "overlap": 0.4}, "the package's own"


@pytest.mark.parametrize("form", ["layer_with_weights-{}/{}", "model/_operations/{}/_{}", "export"])
def test_a_checkpoint_is_read_by_order(
    form: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys are those that TensorFlow 2.21 was seen to write; itself it is not needed here."""
    arrays: dict[str, np.ndarray] = {"_CHECKPOINTABLE_OBJECT_GRAPH": np.zeros(())}
    with h5py.File(as_keras_3(model, tmp_path / "k3.weights.h5")) as file:
        for i in range(len(file["layers"])):
            for k, part in enumerate(("kernel", "bias")):
                key = f"variables/{2 * i + k}" if form == "export" else form.format(i + 1, part)
                value = file[f"layers/conv2d_{i}/vars/{k}" if i else f"layers/conv2d/vars/{k}"][()]
                arrays[f"{key}/.ATTRIBUTES/VARIABLE_VALUE"] = value
                arrays[f"{key}/.OPTIMIZER_SLOT/Adam/m/.ATTRIBUTES/VARIABLE_VALUE"] = value
    reader = SimpleNamespace(
        get_variable_to_shape_map=lambda: {k: list(v.shape) for k, v in arrays.items()},
        get_tensor=arrays.__getitem__,
    )
    opened = []
    train = SimpleNamespace(load_checkpoint=lambda prefix: opened.append(prefix) or reader)
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(train=train))
    (model / WEIGHTS).unlink()
    (model / "variables").mkdir()
    (model / "variables" / "variables.index").touch()
    recipe, network = load_stardist(model)
    assert opened == [str(model / "variables" / "variables")]
    assert recipe.settings["probability"] == 0.3
    reference = load_stardist(MODEL)[1].state_dict()
    assert all(torch.equal(v, reference[k]) for k, v in network.state_dict().items())


def test_a_checkpoint_without_tensorflow_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "model.index").touch()
    for source in (tmp_path, tmp_path / "model"):
        with pytest.raises(MissingPackage, match="needs tensorflow"):
            load_stardist(source)


def test_converted_it_is_a_head_like_any(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: dict[str, np.ndarray]
) -> None:
    out = tmp_path / "versatile.safetensors"
    source = zipped(model, tmp_path / "model.zip")
    command = ["models", "convert", str(source), str(out), "--mpp", "0.45", "--licence", "BSD-3"]
    assert main(command) == 0
    assert f"--nuclei {out}" in capsys.readouterr().out.replace("\n", "")
    head = load_nucleus_head(str(out), "cpu")
    assert (head.name, head.mpp, head.classes) == ("versatile", 0.45, ("Nucleus",))
    found = head.segment(expected["image"])
    assert found.labels.max() > 40
    recipe = convert_stardist(source, out, name="again", classes=("Cell",))
    assert recipe.classes == ("Cell",)
    assert load_nucleus_head(str(out), "cpu").name == "again"


def test_a_conversion_needs_both_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "convert", str(MODEL)]) != 0
    assert "needs a model and the file to write" in capsys.readouterr().err
    with pytest.raises(InvalidConfig, match=r"\*\.safetensors"):
        convert_stardist(MODEL, tmp_path / "head.bin", name="x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("grid", [1, 1], "grid is"),
        ("grid", None, "grid is"),
        ("n_channel_in", 1, "n_channel_in is 1"),
        ("unet_n_depth", 4, "unet_n_depth is 4"),
        ("unet_kernel_size", [5, 5], "unet_kernel_size"),
        ("unet_batch_norm", True, "unet_batch_norm"),
        ("backbone", "resnet", "backbone"),
        ("n_classes", 3, "n_classes is 3: the package gives classes layers"),
        ("n_rays", 32, r"bias of layer 'dist' is \(16,\), expected \(32,\)|kernel of layer 'dist'"),
        ("n_rays", 10**9, "n_rays must be a whole number from 3"),
        ("unet_n_filter_base", "4", "unet_n_filter_base must be"),
        ("net_conv_after_unet", 0, "net_conv_after_unet must be"),
    ],
)
def test_a_configuration_that_is_not_ours(model: Path, key: str, value: Any, said: str) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InvalidConfig, match=said) as caught:
        load_stardist(model)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"prob": "1", "nms": 0.3}', '{"prob": 7, "nms": 0}']
)
def test_thresholds_that_are_none(model: Path, content: str) -> None:
    (model / "thresholds.json").write_text(content)
    with pytest.raises(InvalidConfig, match=r"thresholds\.json"):
        load_stardist(model)


def swapped(file: h5py.File) -> None:
    place = "middle_0/middle_0/kernel"
    value = file[place][()]
    del file[place]
    file[place] = value.transpose(0, 1, 3, 2)


def huge(file: h5py.File) -> None:
    del file["features/features/kernel"]
    file.create_dataset("features/features/kernel", (10**6, 10**6, 4, 4), "f4", chunks=(9, 9, 4, 4))


def nan(file: h5py.File) -> None:
    file["prob/prob/bias"][0] = np.nan


def of_text(file: h5py.File) -> None:
    del file["prob/prob/bias"]
    file.create_dataset("prob/prob/bias", data=np.array([b"1"]))


def elsewhere(file: h5py.File) -> None:
    del file["prob/prob/bias"]
    file.create_dataset("prob/prob/bias", (1,), "f4", external="/etc/hostname")


def linked(file: h5py.File) -> None:
    del file["prob/prob/bias"]
    file["prob/prob/bias"] = h5py.ExternalLink("/etc/other.h5", "x")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (swapped, r"kernel of layer 'middle_0' is \(3, 3, 32, 16\), expected \(3, 3, 16, 32\)"),
        (huge, r"kernel of layer 'features' is \(1000000, 1000000, 4, 4\), expected"),
        (nan, "bias of layer 'prob' holds what is no number"),
        (of_text, "no weights"),
        (elsewhere, "in another file"),
        (linked, "layer 'prob' has no bias"),
        (lambda f: f.__delitem__("up_level_1_no_2"), "layer 'up_level_1_no_2' is missing"),
        (lambda f: f.move("conv2d", "features_class"), "'features_class' has no place"),
        (lambda f: f.__delitem__("conv2d"), "1 convolutions before the U-Net"),
        (lambda f: f.__setitem__("gamma", 1.0), "neither kernel nor bias"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(
    model: Path, damage: Callable[[h5py.File], None], said: str
) -> None:
    with h5py.File(model / WEIGHTS, "r+") as file:
        damage(file)
    with pytest.raises(InvalidConfig, match=said) as caught:
        load_stardist(model)
    assert WEIGHTS in str(caught.value)


def test_numbered_layers_have_to_be_as_many(model: Path, tmp_path: Path) -> None:
    path = as_keras_3(model, tmp_path / "model.weights.h5")
    with h5py.File(path, "r+") as file:
        del file["layers/conv2d_7"]
    with pytest.raises(InvalidConfig, match="18 convolutions, our network has 19"):
        load_stardist(path)


def test_a_truncated_file_is_an_error_of_ours(model: Path) -> None:
    content = (model / WEIGHTS).read_bytes()
    for length in range(0, len(content), len(content) // 60):
        (model / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(InvalidConfig):
            load_stardist(model)


@pytest.mark.parametrize("name", ["../config.json", "/etc/x.h5", "a/../../x.h5", "..\\x.h5"])
def test_a_zip_may_not_lead_out_of_itself(name: str, model: Path, tmp_path: Path) -> None:
    path = zipped(model, tmp_path / "model.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "{}")
    with pytest.raises(InvalidConfig, match="leads out of it"):
        load_stardist(path)


def test_a_zip_that_unpacks_to_too_much(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "config.json").write_text(" " * (keras_weights.MOST_JSON + 1))
    with pytest.raises(InvalidConfig, match="larger than"):
        load_stardist(zipped(model, tmp_path / "model.zip"))
    with pytest.raises(InvalidConfig, match="larger than"):
        load_stardist(model)
    monkeypatch.setattr(keras_weights, "MOST_WEIGHTS", 1000)
    shutil.copy(MODEL / "config.json", model)
    with pytest.raises(InvalidConfig, match="larger than 1,000"):
        load_stardist(zipped(model, tmp_path / "model.zip"))


def test_a_damaged_zip(model: Path, tmp_path: Path) -> None:
    path = zipped(model, tmp_path / "model.zip")
    content = bytearray(path.read_bytes())
    content[200:1200] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(InvalidConfig):
        load_stardist(path)


def test_what_is_no_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no")
    empty = tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(tmp_path / "saved.zip", "w") as archive:
        archive.writestr("saved_model.pb", "")
    cases = {"absent": "no such file", "text.h5": "no stardist model", "empty": "no weights",
             "saved.zip": "unpack it"}  # fmt: skip
    for name, said in cases.items():
        with pytest.raises(InvalidConfig, match=said):
            load_stardist(tmp_path / name)
    (model / WEIGHTS).rename(model / "weights_last.h5")
    assert load_stardist(model)[0].arguments["rays"] == 16
    shutil.copy(MODEL / WEIGHTS, model / "weights_now.h5")
    with pytest.raises(InvalidConfig, match="several files of weights"):
        load_stardist(model)
    for wrong in ({"mpp": 0.0}, {"mpp": float("nan")}, {"classes": ("a", "b")}):
        with pytest.raises(InvalidConfig):
            load_stardist(MODEL, **wrong)


def test_the_layers_are_the_networks() -> None:
    ours = {k.rsplit(".", 1)[0] for k in StarDist().state_dict()}
    assert ours == {*keras_weights.ENTER, *keras_weights.NAMED.values()}
