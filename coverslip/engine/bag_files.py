"""Bags of tile embeddings in files: what all have, HDF5 of TRIDENT, CLAM and STAMP, CLAM's .pt."""

from __future__ import annotations

import pickle
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig, RecipeMismatch, StoreError, printable
from coverslip.export.hdf5_features import FeatureFile
from coverslip.heads.tile_classifier import SAME_MPP

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.integer[Any]]
Corners = npt.NDArray[np.int64]
Facts = Mapping[str, Any]
NO_TILES = "it has no tiles"
TRIDENT = "features_"
"""How TRIDENT's folders of features begin."""
UNKNOWN: Facts = {
    "encoder": "",
    "dim": 0,
    "recipe_sha256": "",
    "weights_sha256": "",
    "mpp": None,
    "tile_px": None,
    "stain": "",
}


class FileBags(ABC):
    """A folder of embeddings, a file or a store a slide (see `mil.bags`).

    names     of the slides, sorted
    dim       numbers in a tile's embedding
    facts     what made them, JSON-able: encoder, dim, recipe_sha256, weights_sha256, mpp, tile_px,
              stain; "" or None where the files do not say
    missing   slides of the folder without a bag -> why
    """

    def __init__(
        self, folder: Path, names: Sequence[str], facts: Facts, missing: Mapping[str, str]
    ) -> None:
        self.folder, self.names, self.facts = folder, tuple(names), dict(facts)
        self.dim, self.missing = int(facts["dim"]), dict(sorted(missing.items()))

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def count(self, index: int) -> int:
        """Tiles of a slide."""

    @abstractmethod
    def read(self, index: int, rows: Rows | None = None) -> Floats:
        """float16 or float32 [n, dim] of a slide, or of some of its tiles in the order given.

        Raises StoreError for a file that is gone, cut short or damaged.
        """

    @abstractmethod
    def corners(self, index: int) -> Corners | None:
        """int64 [n, 2] the tiles' top-left corners (x, y) in level-0 px; None where the files do
        not say."""


def facts_difference(wanted: Facts, given: Facts) -> str:
    """What of `given` is not as `wanted` has it; empty where embeddings mean the same as far as
    both say what they are."""
    for name in ("encoder", "dim", "weights_sha256", "recipe_sha256", "code_hash", "stain"):
        ours, theirs = wanted.get(name), given.get(name)
        unsaid = None in (ours, theirs) or (name != "stain" and "" in (ours, theirs))
        if not unsaid and ours != theirs:
            shown = [str(value)[:12] or "none" for value in (theirs, ours)]
            return f"{name.replace('_sha256', '')} {shown[0]}, not {shown[1]}"
    for name, tolerance in (("tile_px", 0.0), ("mpp", SAME_MPP)):
        ours, theirs = wanted.get(name), given.get(name)
        if ours and theirs and abs(theirs / ours - 1) > tolerance:
            return f"{name} {theirs:g}, not {ours:g}"
    return ""


class HDF5Bags(FileBags):
    """A folder of .h5 files as TRIDENT, CLAM or STAMP writes them."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        """Raises StoreError, RecipeMismatch."""
        opened = {path: FeatureFile.open(path) for path in files}
        facts = _alike(folder, {path: _facts(file, folder) for path, file in opened.items()})
        self._files = [file for file in opened.values() if file.count]
        names = [Path(file.path).stem for file in self._files]
        empty = {path.stem: NO_TILES for path, file in opened.items() if not file.count}
        super().__init__(folder, names, facts, empty)

    def count(self, index: int) -> int:
        return self._files[index].count

    def read(self, index: int, rows: Rows | None = None) -> Floats:
        found: Floats = self._files[index].features(rows)
        return found.astype(np.float32) if found.dtype.itemsize > 4 else found

    def corners(self, index: int) -> Corners | None:
        file = self._files[index]
        if file.layout == "stamp":
            return None  # µm; only the slide knows its pixels
        coords = file.coords()
        if not np.isfinite(coords).all():
            raise StoreError(file.path, "holds coordinates that are not finite")
        return np.rint(coords).astype(np.int64)


class TensorBags(FileBags):
    """A folder of .pt files as CLAM writes them: a tensor [n, dim] each, mapped from disk."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        """Raises StoreError, RecipeMismatch."""
        shapes = {path: tuple(_tensor(path).shape) for path in files}
        facts = _alike(folder, {path: {**UNKNOWN, "dim": s[1]} for path, s in shapes.items()})
        self._paths = [path for path in files if shapes[path][0]]
        self._shapes = [shapes[path] for path in self._paths]
        empty = {path.stem: NO_TILES for path in files if not shapes[path][0]}
        super().__init__(folder, [path.stem for path in self._paths], facts, empty)

    def count(self, index: int) -> int:
        return self._shapes[index][0]

    def read(self, index: int, rows: Rows | None = None) -> Floats:
        import torch

        tensor = _tensor(self._paths[index])
        if tuple(tensor.shape) != self._shapes[index]:
            raise StoreError(self._paths[index], "has changed since it was opened", "start again")
        if tensor.dtype not in (torch.float16, torch.float32):
            tensor = tensor.float()
        mapped: Floats = tensor.numpy()
        return mapped.copy() if rows is None else mapped[rows]

    def corners(self, index: int) -> None:
        return None


def open_bag_files(folder: Path, *, encoder: str = "", grid: str = "") -> FileBags:
    """Bags of a folder of other programs' files; see `bags.open_bags`."""
    found = _feature_folders(folder)
    meant = [
        place
        for name, laid, place in found
        if encoder in ("", name or encoder) and grid in ("", laid or grid)
    ]
    known = ", ".join("@".join(filter(None, (n, g))) or str(f) for n, g, f in found)
    shown = printable(str(folder))
    if not found:
        raise InvalidConfig(
            f"{shown}: holds no features: neither stores (*.zarr), nor .h5 or .pt files as "
            "TRIDENT, CLAM or STAMP lays them out"
        )
    if not meant:
        asked = " and ".join(filter(None, (encoder, grid)))
        raise InvalidConfig(f"{shown}: no features of {asked}; there are {known}")
    if len(meant) > 1:
        raise InvalidConfig(
            f"{shown}: holds features of {known}; name one with --encoder and --grid"
        )
    bags = _opened(meant[0])
    if encoder not in ("", bags.facts["encoder"] or encoder):
        raise InvalidConfig(f"{shown}: no features of {encoder}, but {bags.facts['encoder']}")
    return bags


def _feature_folders(folder: Path) -> list[tuple[str, str, Path]]:
    """(encoder, grid, folder) of everything that may be meant; "" for what is not known."""
    if _files(folder):
        return [("", "", folder)]
    for name in ("h5_files", "pt_files"):  # of CLAM's two, that which has coordinates
        if (folder / name).is_dir():
            return [("", "", folder / name)]
    trident = [*folder.glob(f"{TRIDENT}*"), *folder.glob(f"*/{TRIDENT}*")]
    if trident:
        return [(p.name.removeprefix(TRIDENT), p.parent.name, p) for p in sorted(trident)]
    return [(p.name, "", p) for p in sorted(folder.iterdir()) if p.is_dir() and _nested(p)]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.h5")) or sorted(folder.glob("*.pt"))


def _nested(folder: Path) -> list[Path]:
    """STAMP keeps the slides' folders below the extractor's."""
    return sorted(folder.rglob("*.h5"), key=lambda path: path.stem)


def _opened(folder: Path) -> FileBags:
    files = _files(folder) or _nested(folder)
    if not files:
        raise InvalidConfig(f"{printable(str(folder))}: holds no .h5 or .pt files")
    twice = [name for name, times in Counter(path.stem for path in files).items() if times > 1]
    if twice:
        raise InvalidConfig(
            f"{printable(str(folder))}: holds several files of {printable(twice[0])}"
            f"{f' and {len(twice) - 1} other slides' if twice[1:] else ''}; a slide's name must be "
            "its own"
        )
    kind: Callable[[Path, Sequence[Path]], FileBags] = (
        HDF5Bags if files[0].suffix == ".h5" else TensorBags
    )
    return kind(folder, files)


def _alike(folder: Path, facts: Mapping[Path, Facts]) -> Facts:
    """What made all files. Raises RecipeMismatch."""
    first, *others = facts.items()
    for path, other in others:
        if why := facts_difference(first[1], other):
            raise RecipeMismatch(
                f"{printable(str(folder))}: its files were not made alike: {path.name} has {why} "
                f"as {first[0].name} has\n  keep one encoder's features of one grid in a folder"
            )
    return first[1]


def _facts(file: FeatureFile, folder: Path) -> Facts:
    """What made a file, as far as its attributes say."""
    found, marks = {**UNKNOWN, "dim": file.dim}, file.attributes
    if file.layout == "trident":
        power = _number(marks.get("target_magnification"))
        found["encoder"] = str(marks.get("encoder", ""))
        found["mpp"] = 10 / power if power else None
        found["tile_px"] = _number(marks.get("patch_size"))
    elif file.layout == "stamp":
        side_um, side = _number(marks.get("tile_size_um")), _number(marks.get("tile_size_px"))
        found["encoder"] = str(marks.get("extractor", ""))
        found["code_hash"] = str(marks.get("code_hash", ""))
        found["mpp"] = side_um / side if side_um and side else None
        found["tile_px"] = side
    if not found["encoder"] and folder.name.startswith(TRIDENT):
        found["encoder"] = folder.name.removeprefix(TRIDENT)
    return found


def _number(value: Any) -> float | None:
    """None for what is no number above 0: TRIDENT writes None as a word."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


def _tensor(path: Path) -> Tensor:
    """The file's tensor [n, dim], mapped from disk where its format allows. Raises StoreError."""
    import torch

    try:
        tensor = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(path, f"cannot be read as a tensor ({reason})") from None
    if not (isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and tensor.is_floating_point()):
        shape = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise StoreError(path, f"holds {shape}, not numbers [n, dim]")
    return tensor.detach()
