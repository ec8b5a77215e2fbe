"""Models made by the package stardist (Keras) as heads of ours.

A 2D model there is a folder: `config.json`, `thresholds.json` and the weights as HDF5, often
zipped. Its layers are those of `coverslip.heads.stardist`, one by one:

    stardist               here             at
    conv2d, conv2d_1       enter            full size; named by Keras, so known by their order
    down_level_N_no_M      down             1/2, 1/4, 1/8
    middle_0, middle_2     middle           1/16
    up_level_N_no_M        up               of [what comes from below, what was kept], in that order
    features, prob, dist   features, probability, distance

Keras keeps kernels as (height, width, in, out), torch as (out, in, height, width).
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.errors import InvalidConfig, MissingPackage, printable
from coverslip.heads.recipe import HeadRecipe, save_head

if TYPE_CHECKING:
    from coverslip.heads.stardist import StarDist

ENTER = ("enter.0", "enter.2")
NAMED = {
    **{f"down_level_{n}_no_{m}": f"down.{n}.{2 * m}" for n in range(3) for m in (0, 1)},
    "middle_0": "middle.0",
    "middle_2": "middle.2",
    **{f"up_level_{n}_no_{m}": f"up.{n}.{m}" for n in (2, 1, 0) for m in (0, 2)},
    "features": "features",
    "prob": "probability",
    "dist": "distance",
}
"""The package's layers as we name them, in the order in which pixels pass."""

FIXED = {
    "n_dim": 2,
    "axes": "YXC",
    "n_channel_in": 3,
    "grid": [2, 2],
    "backbone": "unet",
    "n_classes": None,
    "unet_n_depth": 3,
    "unet_kernel_size": [3, 3],
    "unet_n_conv_per_depth": 2,
    "unet_pool": [2, 2],
    "unet_activation": "relu",
    "unet_last_activation": "relu",
    "unet_batch_norm": False,
    "unet_expansion": 2,
    "unet_prefix": "",
}
"""What a model's configuration has to say; all but the first of `NEEDED` may be left out."""
NEEDED = ("n_channel_in", "grid")
FREE = {
    "n_rays": ("rays", 3, 256),
    "unet_n_filter_base": ("filters", 1, 128),
    "net_conv_after_unet": ("features", 1, 1024),
}
"""What it may choose: our argument, and from where to where."""
THRESHOLDS = {"prob": 0.5, "nms": 0.4}
"""The package's, for models that come without."""

MOST_JSON, MOST_WEIGHTS, MOST_OBJECTS = 1 << 20, 1 << 29, 10_000
"""Bytes of a configuration and of weights; groups and arrays in a file of weights."""
HDF5 = (".h5", ".hdf5")
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, NotImplementedError)
"""What h5py and zipfile raise over broken files."""


class Stored(NamedTuple):
    """An array in a file, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[Any]]


Layers = Mapping[str, Mapping[str, Stored]]  # layer -> "kernel" or "bias"


class _Model(NamedTuple):
    """A model's parts as they lie on disk."""

    config: bytes | None
    thresholds: bytes | None
    weights: Path | BytesIO  # HDF5; a folder or a prefix is TensorFlow's
    place: str  # of the weights, for messages


def load_stardist(
    source: Path,
    *,
    name: str = "stardist",
    mpp: float = 0.5,
    classes: Sequence[str] = ("Nucleus",),
    licence: str = "",
) -> tuple[HeadRecipe, StarDist]:
    """A model of the package stardist: (recipe, network), as our own heads are.

    source    the model's folder, or it zipped; HDF5 weights alone (legacy or Keras 3), which come
              without thresholds, so the package's own; or a TensorFlow checkpoint or SavedModel
    name      what users and stores will call it
    mpp       µm per px of the images it was trained on; its files do not say
    classes   one name: that of what it finds

    Raises InvalidConfig for what is no such model, or one that our network cannot be: another
    grid, depth or kernel, or classes (they have layers of their own there). Raises MissingPackage
    for a checkpoint where there is no TensorFlow.
    """
    if not (math.isfinite(mpp) and mpp > 0):
        raise InvalidConfig(f"mpp must be above 0 µm per px, got {mpp:g}")
    if len(classes) != 1:
        raise InvalidConfig(f"one class was wanted, for what the model finds, got {list(classes)}")
    source = Path(source)
    shown = printable(str(source))
    model = _found(source, shown)
    settings = _settings(model.thresholds, f"{shown}: thresholds.json")
    from coverslip.heads.stardist import StarDist

    with _layers(model) as stored:
        layers = _ours(stored, model.place)
        arguments = (
            _arguments_of_layers(layers, model.place)
            if model.config is None
            else _arguments(model.config, f"{shown}: config.json")
        )
        network = StarDist(**arguments)
        network.load_state_dict(_state(layers, network.state_dict(), model.place))
    recipe = HeadRecipe(
        name=name,
        task="nuclei",
        architecture="stardist",
        arguments=arguments,
        mpp=mpp,
        classes=tuple(classes),
        settings=settings,
        licence=licence,
    )
    return recipe, network.eval().requires_grad_(False)


def convert_stardist(
    source: Path,
    out_path: Path,
    *,
    name: str,
    mpp: float = 0.5,
    classes: Sequence[str] = ("Nucleus",),
    licence: str = "",
) -> HeadRecipe:
    """Write a model of the package stardist as one of our heads; see `load_stardist`."""
    out_path = Path(out_path)
    if out_path.suffix != ".safetensors":  # or no command would take it for a head's file
        raise InvalidConfig(f"{out_path}: a head's file is called *.safetensors")
    recipe, network = load_stardist(source, name=name, mpp=mpp, classes=classes, licence=licence)
    save_head(out_path, recipe, network)
    return recipe


def _found(source: Path, shown: str) -> _Model:
    """The parts of a model, wherever they lie."""
    try:
        if source.is_dir():
            return _in_folder(source, shown)
        if zipfile.is_zipfile(source):
            return _in_zip(source, shown)
        import h5py

        if h5py.is_hdf5(source):
            return _Model(None, None, source, shown)
        if source.with_name(source.name + ".index").exists():
            return _Model(None, None, source, shown)  # a checkpoint's prefix
        why = "no stardist model (a folder, a zip of one, or HDF5 weights)"
        raise InvalidConfig(f"{shown}: {why if source.exists() else 'no such file'}")
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise InvalidConfig(f"{shown}: cannot be read ({error})") from None


def _in_folder(source: Path, shown: str) -> _Model:
    def part(name: str) -> bytes | None:
        path = source / name
        if not path.exists():
            return None
        if path.stat().st_size > MOST_JSON:
            raise InvalidConfig(f"{shown}: {name} is larger than {MOST_JSON:,} bytes")
        return path.read_bytes()

    config, thresholds = part("config.json"), part("thresholds.json")
    names = sorted(p.name for p in source.iterdir() if p.suffix in HDF5)
    if names:
        chosen = _chosen(names, shown)
        return _Model(config, thresholds, source / chosen, f"{shown}: {chosen}")
    saved = sorted({*source.glob("*.index"), *source.glob("variables/variables.index")})
    if len(saved) == 1:
        return _Model(config, thresholds, saved[0].with_suffix(""), shown)
    raise InvalidConfig(
        f"{shown}: no weights of a stardist model in it\n"
        "  wanted weights_best.h5 beside config.json, or one TensorFlow checkpoint"
    )


def _in_zip(source: Path, shown: str) -> _Model:
    """Members are read in memory, never unpacked; names that lead elsewhere are refused anyway."""
    with zipfile.ZipFile(source) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for item in archive.infolist():
            path = PurePosixPath(item.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in item.filename:
                raise InvalidConfig(f"{shown}: its member {item.filename!r} leads out of it")
            wanted = path.suffix in HDF5 or path.name in ("config.json", "thresholds.json")
            if item.is_dir() or path.parts[0] == "__MACOSX" or not wanted:
                continue
            if path.name in members:
                raise InvalidConfig(f"{shown}: more than one {path.name} in it")
            members[path.name] = item

        def part(name: str, most: int = MOST_JSON) -> bytes | None:
            return _unpacked(archive, members[name], most, shown) if name in members else None

        names = sorted(n for n in members if n.endswith(HDF5))
        if not names:
            raise InvalidConfig(
                f"{shown}: no weights in it, *.h5 beside config.json\n"
                "  of a zipped TensorFlow SavedModel, unpack it and name the folder"
            )
        chosen = _chosen(names, shown)
        config, thresholds = part("config.json"), part("thresholds.json")
        weights = BytesIO(part(chosen, MOST_WEIGHTS) or b"")
        return _Model(config, thresholds, weights, f"{shown}: {chosen}")


def _unpacked(archive: zipfile.ZipFile, item: zipfile.ZipInfo, most: int, shown: str) -> bytes:
    what = f"{shown}: {item.filename!r}"
    try:
        with archive.open(item) as file:
            content = file.read(most + 1)  # whatever size it claims
    except (*DAMAGE, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InvalidConfig(f"{what} cannot be unpacked ({error})") from None
    if len(content) > most:
        raise InvalidConfig(f"{what} is larger than {most:,} bytes")
    return content


def _chosen(names: Sequence[str], shown: str) -> str:
    """Of several files of weights the best, as the package prefers."""
    best = [n for n in names if "best" in n]
    if len(best) == 1 or len(names) == 1:
        return (best or list(names))[0]
    raise InvalidConfig(
        f"{shown}: several files of weights, {', '.join(map(repr, names))}\n"
        "  keep the one that is wanted"
    )


def _settings(content: bytes | None, place: str) -> dict[str, float]:
    found = THRESHOLDS if content is None else _json(content, place)
    settings = {}
    for ours, theirs in (("probability", "prob"), ("overlap", "nms")):
        value = found.get(theirs)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise InvalidConfig(f"{place}: {theirs!r} must be from 0 to 1, it is {value!r}")
        settings[ours] = float(value)
    return settings


def _arguments(content: bytes, place: str) -> dict[str, int]:
    """Our network's arguments for a configuration that it can be built by."""
    config = _json(content, place)
    if config.get("n_classes") is not None:
        raise InvalidConfig(
            f"{place}: n_classes is {config['n_classes']!r}: the package gives classes layers of "
            "their own and a background class, which our network does not have\n"
            "  models of one kind of nucleus (n_classes null) can be loaded"
        )
    for key, wanted in FIXED.items():
        found = config.get(key, None if key in NEEDED else wanted)
        if found != wanted:
            raise InvalidConfig(f"{place}: {key} is {found!r}, our network has {wanted!r}")
    return {
        ours: _within(config.get(key), low, high, f"{place}: {key}")
        for key, (ours, low, high) in FREE.items()
    }


def _arguments_of_layers(layers: Layers, place: str) -> dict[str, int]:
    """Where no configuration says it, the biases' lengths do."""
    lengths = {"rays": "distance", "filters": ENTER[0], "features": "features"}
    found = {}
    for key, (ours, low, high) in FREE.items():
        shape = layers[lengths[ours]]["bias"].shape
        found[ours] = _within(math.prod(shape), low, high, f"{place}: {key}")
    return found


def _within(value: Any, low: int, high: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidConfig(f"{what} must be a whole number from {low} to {high}, it is {value!r}")
    return value


def _json(content: bytes, place: str) -> dict[str, Any]:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InvalidConfig(f"{place} is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise InvalidConfig(f"{place} must hold names and values")
    return found


@contextmanager
def _layers(model: _Model) -> Iterator[Layers]:
    """The layers as the file names them, while it is open."""
    import h5py

    if isinstance(model.weights, Path) and not model.weights.is_file():
        yield _layers_in_checkpoint(model.weights, model.place)
        return
    try:
        with h5py.File(model.weights, "r") as file:
            yield _layers_in_hdf5(file, model.place)
    except DAMAGE as error:
        raise InvalidConfig(f"{model.place}: damaged HDF5 ({error})") from None


def _layers_in_hdf5(file: Any, place: str) -> Layers:
    """`layer/.../kernel:0` as Keras 2 has it, or `layers/conv2d_7/vars/0` as Keras 3."""
    import h5py

    arrays, seen = [], 0

    def note(path: str, item: Any) -> bool | None:  # follows no link to another file
        nonlocal seen
        seen += 1
        if isinstance(item, h5py.Dataset):
            arrays.append((path, item))
        return True if seen > MOST_OBJECTS else None

    if file.visititems(note):
        raise InvalidConfig(f"{place}: more than {MOST_OBJECTS:,} groups and arrays in it")
    layers: dict[str, dict[str, Stored]] = {}
    for path, array in arrays:
        parts = path.removeprefix("model_weights/").split("/")
        last = parts[-1].removesuffix(":0")
        if parts[0].startswith("optimizer"):  # of training
            continue
        if len(parts) > 2 and parts[-2] == "vars" and last in ("0", "1"):
            layer, last = parts[-3], ("kernel", "bias")[int(last)]
        elif len(parts) > 1 and last in ("kernel", "bias"):
            layer = parts[0]
        else:
            raise InvalidConfig(f"{place}: {path!r} is neither kernel nor bias of a convolution")
        if last in layers.setdefault(layer, {}):
            raise InvalidConfig(f"{place}: layer {layer!r} has more than one {last}")
        layers[layer][last] = Stored(tuple(array.shape or ()), _reading(array, f"{place}: {path}"))
    return layers


def _reading(array: Any, what: str) -> Callable[[], npt.NDArray[Any]]:
    def read() -> npt.NDArray[Any]:
        if array.external or array.is_virtual:
            raise InvalidConfig(f"{what}: its numbers are in another file")
        if array.dtype.kind != "f" or math.prod(array.chunks or ()) > max(array.size, 1 << 20):
            raise InvalidConfig(f"{what}: {array.dtype} in chunks of {array.chunks}, no weights")
        return np.asarray(array[()])

    return read


LAYER_KEY = re.compile(
    r"(?:model/)?(?:layer_with_weights-|_operations/|layers/)(\d+)/_?(kernel|bias)/\.ATTRIBUTES/.+"
)
VARIABLE_KEY = re.compile(r"variables/(\d+)/\.ATTRIBUTES/.+")
"""How a checkpoint calls a layer's arrays (Keras 2; Keras 3), and how an exported model does."""


def _layers_in_checkpoint(prefix: Path, place: str) -> Layers:
    """Named by their order, as Keras 3's HDF5 has them."""
    try:
        tensorflow = import_module("tensorflow")
    except ImportError as error:
        what = f"{place}: TensorFlow's own format (HDF5 weights do not need it)"
        raise MissingPackage(what, "tensorflow", "tensorflow") from error
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
    except Exception as error:  # its errors have no base of their own
        raise InvalidConfig(f"{place}: no TensorFlow checkpoint ({error})") from None
    layers: dict[str, dict[str, Stored]] = {}
    named = any(LAYER_KEY.fullmatch(key) for key in shapes)
    for key, shape in shapes.items():
        if named and (match := LAYER_KEY.fullmatch(key)):
            number, part = int(match[1]), match[2]
        elif not named and (match := VARIABLE_KEY.fullmatch(key)):  # kernel, bias, kernel, ...
            number, part = int(match[1]) // 2, ("kernel", "bias")[int(match[1]) % 2]
        else:
            continue
        layer = layers.setdefault(f"conv2d_{number}", {})
        layer[part] = Stored(tuple(shape), partial(reader.get_tensor, key))
    return layers


def _ours(stored: Layers, place: str) -> Layers:
    """Under our names; known by theirs, or by their order where Keras numbered them."""
    numbers = {n: re.fullmatch(r"conv2d(?:_(\d{1,9}))?", n) for n in stored}
    by_order = sorted((-1 if m[1] is None else int(m[1]), n) for n, m in numbers.items() if m)
    numbered = [n for _, n in by_order]
    names = [*ENTER, *NAMED.values()]
    if len(numbered) == len(stored):
        if len(numbered) != len(names):
            raise InvalidConfig(
                f"{place}: {len(numbered)} convolutions, our network has {len(names)} (grid 2, "
                "depth 3, no classes)"
            )
        ours = dict(zip(names, numbered, strict=True))
    else:
        if missing := [n for n in NAMED if n not in stored]:
            raise InvalidConfig(f"{place}: layer {missing[0]!r} is missing")
        if more := sorted(stored.keys() - NAMED.keys() - set(numbered)):
            raise InvalidConfig(f"{place}: layer {more[0]!r} has no place in our network")
        if len(numbered) != len(ENTER):
            raise InvalidConfig(
                f"{place}: {len(numbered)} convolutions before the U-Net, our network has "
                f"{len(ENTER)} (grid 2)"
            )
        ours = {**dict(zip(ENTER, numbered, strict=True)), **{o: t for t, o in NAMED.items()}}
    for theirs in ours.values():
        for part in ("kernel", "bias"):
            if part not in stored[theirs]:
                raise InvalidConfig(f"{place}: layer {theirs!r} has no {part}")
    return {name: stored[theirs] for name, theirs in ours.items()}


def _state(layers: Layers, wanted: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The network's state; shapes are compared before anything is read."""
    import torch

    theirs = {**dict(zip(ENTER, ("conv2d (first)", "conv2d (second)"), strict=True))}
    theirs |= {o: t for t, o in NAMED.items()}
    state = {}
    for name, parts in layers.items():
        for part, key in (("kernel", f"{name}.weight"), ("bias", f"{name}.bias")):
            shape = tuple(wanted[key].shape)
            expected = (*shape[2:], shape[1], shape[0]) if part == "kernel" else shape
            what = f"{place}: {part} of layer {theirs[name]!r}"
            if parts[part].shape != expected:
                raise InvalidConfig(f"{what} is {parts[part].shape}, expected {expected}")
            value = parts[part].read().astype(np.float32)
            if not np.isfinite(value).all():
                raise InvalidConfig(f"{what} holds what is no number")
            if part == "kernel":
                value = value.transpose(3, 2, 0, 1)  # (out, in, height, width)
            state[key] = torch.from_numpy(np.ascontiguousarray(value))
    return state
