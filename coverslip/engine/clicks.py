"""Objects by clicks: the patch around a click is read, and what the click means is outlined.

Patches stand on the lattice of the model's pixels that is anchored at the slide's corner, so that
a slide of just that resolution is read pixel by pixel.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from coverslip.errors import InvalidConfig, UnknownName
from coverslip.heads.instances import SIMPLIFY_PX
from coverslip.heads.recipe import HeadRecipe, load_head, read_recipe
from coverslip.heads.registry import SHIPPED
from coverslip.kernels.labels import label_outlines
from coverslip.kernels.shapes import outline_polygons, simplified_outlines
from coverslip.tiling.reading import read_window
from coverslip.wsi.slide import Slide

if TYPE_CHECKING:
    from coverslip.heads.nuclick import NuClick

Points = npt.NDArray[np.float64]
Clicks = Sequence[tuple[float, float]] | npt.NDArray[np.floating[Any]]
"""(x, y) level-0 px each."""

DEFAULT = "nuclick-he"
BATCH = 16
"""Patches that go through the network together."""
LARGEST_PX = 2048
"""Side of the largest patch."""


@dataclass(frozen=True, slots=True)
class ClickedObject:
    """What a click meant.

    polygon       outline, level-0 px; valid, its holes covered
    probability   mean over its pixels, 0 to 1
    whole         False where the object reaches the patch's border and may go on beyond it
    """

    polygon: shapely.Polygon
    probability: float
    area_um2: float
    whole: bool


@dataclass(frozen=True, slots=True)
class _Patch:
    """corner (x, y) and marks in model px of the slide; the corner on whole ones."""

    corner: Points
    side: int
    meant: Points
    others: Points


@dataclass(frozen=True, eq=False)
class ClickSegmenter:
    """A click model, loaded; many threads may use one.

    recipe    what it is; settings: "threshold" of the probability, "patch_px" of a click,
              "least_um2" of an object
    network   torch, in its place, not training
    sha256    of the weights' file
    """

    recipe: HeadRecipe
    network: NuClick
    sha256: str
    _turn: Any = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def load(cls, model: str = DEFAULT, device: str = "auto") -> ClickSegmenter:
        """The model that ships under a name, or the one in a head's file.

        Raises UnknownName, InvalidConfig.
        """
        path = _path(model)
        recipe, network, sha256 = load_head(path, device)
        if recipe.task != "clicks":
            raise InvalidConfig(f"{path}: a head for {recipe.task}, not for clicks")
        return cls(recipe, network, sha256)

    def segment(
        self,
        slide: Slide,
        points: Clicks,
        *,
        squiggle: bool = False,
        exclude: Clicks = (),
        patch_um: float | None = None,
    ) -> list[ClickedObject | None]:
        """The objects that `points` mean, in their order; see `segment_click`."""
        scale = np.array([self.recipe.mpp / slide.mpp[0], self.recipe.mpp / slide.mpp[1]])
        meant = _on_slide(points, slide) / scale
        others = _array(exclude) / scale
        side = self._side(patch_um)
        if squiggle:
            patches = [self._of_line(meant, others, side, patch_um is None)] if len(meant) else []
        else:
            patches = [
                _Patch(
                    np.floor(point) - side // 2,
                    side,
                    point[None],
                    np.concatenate([np.delete(meant, i, axis=0), others]),
                )
                for i, point in enumerate(meant)
            ]
        found: list[ClickedObject | None] = []
        for first in range(0, len(patches), BATCH):
            found += self._answers(slide, patches[first : first + BATCH], scale)
        return found

    def _side(self, patch_um: float | None) -> int:
        """Of a patch, px: a multiple of the network's."""
        wanted = self.recipe.settings["patch_px"]
        if patch_um is not None:
            wanted = patch_um / self.recipe.mpp
            if not 0 < wanted <= LARGEST_PX:
                raise ValueError(
                    f"patch_um must be above 0 and at most {LARGEST_PX * self.recipe.mpp:g} "
                    f"({LARGEST_PX} px), got {patch_um}"
                )
        step = self.network.multiple
        return int(np.ceil(wanted / step)) * step

    def _of_line(self, line: Points, others: Points, side: int, grows: bool) -> _Patch:
        """About the line's middle; by default so large that it sees beyond the line's ends."""
        from coverslip.heads.nuclick import line_points

        low, high = line.min(axis=0), line.max(axis=0)
        extent = float((high - low).max())
        step = self.network.multiple
        if grows:
            side = max(side, int(np.ceil((extent + side / 2) / step)) * step)
        if extent >= side or side > LARGEST_PX:
            raise ValueError(
                f"the squiggle is {extent * self.recipe.mpp:.0f} µm long, "
                f"too long for a patch of {min(side, LARGEST_PX) * self.recipe.mpp:.0f} µm"
            )
        return _Patch(np.floor((low + high) / 2) - side // 2, side, line_points(line), others)

    def _answers(
        self, slide: Slide, patches: Sequence[_Patch], scale: Points
    ) -> Iterator[ClickedObject | None]:
        from coverslip.heads.nuclick import click_input, marked_part, probabilities

        inputs = []
        for patch in patches:
            x, y = (patch.corner * scale).tolist()
            size, step = (patch.side, patch.side), (float(scale[0]), float(scale[1]))
            rgb = read_window(slide, (x, y), size, step)
            others = patch.others - patch.corner
            seen = ((others >= 0) & (others < patch.side)).all(axis=1)
            inputs.append(click_input(rgb, patch.meant - patch.corner, others[seen]))
        with self._turn:  # one at a time: a network takes all processors, or the whole device
            chances = probabilities(self.network, np.stack(inputs))
        for chance, patch in zip(chances, patches, strict=True):
            _blank_beyond(chance, patch.corner, np.array(slide.size) / scale)
            marks = patch.meant - patch.corner
            mask = marked_part(chance, marks, self.recipe.settings["threshold"])
            yield self._object(chance, mask, patch, slide, scale)

    def _object(
        self,
        chance: npt.NDArray[np.float32],
        mask: npt.NDArray[np.bool_],
        patch: _Patch,
        slide: Slide,
        scale: Points,
    ) -> ClickedObject | None:
        area_um2 = int(np.count_nonzero(mask)) * self.recipe.mpp**2
        if not mask.any() or area_um2 < self.recipe.settings["least_um2"]:
            return None
        outline = simplified_outlines(label_outlines(mask.astype(np.int32)), SIMPLIFY_PX)
        vertex = np.clip((patch.corner + outline.vertex) * scale, 0, slide.size)
        (polygon,) = outline_polygons(replace(outline, vertex=vertex))
        inside = np.pad(np.ones((patch.side - 2,) * 2, np.bool_), 1)
        return ClickedObject(
            polygon, float(chance[mask].mean()), area_um2, not (mask & ~inside).any()
        )


def segment_click(
    slide: Slide,
    points: Clicks,
    *,
    squiggle: bool = False,
    exclude: Clicks = (),
    model: str | ClickSegmenter = DEFAULT,
    patch_um: float | None = None,
) -> list[ClickedObject | None]:
    """The objects that clicks mean: nuclei, with the model that ships.

    points     (x, y) level-0 px each: a click inside every object that is wanted. For each of them
               the others in its patch count as clicks on other objects
    squiggle   instead: all points are one line, drawn along the inside of one object
    exclude    clicks on objects that are not wanted
    model      a name, a head's file, or one loaded already; a model is loaded once
    patch_um   side of what the model sees around a click; by default what it was trained with, and
               more for a long squiggle

    Returns one answer for each point, or one for the squiggle; None where nothing was found there.
    Raises ValueError for a point off the slide, MissingMpp, UnreadableTile, UnknownName,
    InvalidConfig.
    """
    if isinstance(model, str):
        path = _path(model)
        model = _loaded(path, path.stat().st_mtime_ns)
    return model.segment(slide, points, squiggle=squiggle, exclude=exclude, patch_um=patch_um)


def click_model_names() -> list[str]:
    """The click models that ship, sorted."""
    files = SHIPPED.glob("*.safetensors")
    return sorted(path.stem for path in files if read_recipe(path).task == "clicks")


@lru_cache(maxsize=2)
def _loaded(path: Path, changed_ns: int) -> ClickSegmenter:
    """A file's model; loaded again once the file has changed."""
    return ClickSegmenter.load(str(path))


def _path(model: str) -> Path:
    path = Path(model) if model.endswith(".safetensors") else SHIPPED / f"{model}.safetensors"
    if path.exists():
        return path
    if path.parent == SHIPPED:
        raise UnknownName("click model", model, click_model_names())
    raise InvalidConfig(f"{path}: no such file")


def _array(points: Clicks) -> Points:
    """[n, 2] (x, y)."""
    found = np.asarray(points, np.float64)
    if found.size == 0:
        return np.empty((0, 2))
    if found.ndim != 2 or found.shape[1] != 2:
        raise ValueError(f"points are (x, y) each, got an array of shape {found.shape}")
    return found


def _on_slide(points: Clicks, slide: Slide) -> Points:
    found = _array(points)
    off = ~((found >= 0) & (found < slide.size)).all(axis=1)  # nan is off
    if off.any():
        x, y = found[off][0].tolist()
        width, height = slide.size
        raise ValueError(f"point ({x:g}, {y:g}) is off the slide of {width} x {height} px")
    return found


def _blank_beyond(chance: npt.NDArray[np.float32], corner: Points, size: Points) -> None:
    """No object where a pixel's middle lies off a slide of `size` (w, h) model px."""
    x, y = (corner[i] + np.arange(chance.shape[0]) + 0.5 for i in (0, 1))
    chance[:, (x < 0) | (x > size[0])] = 0
    chance[(y < 0) | (y > size[1])] = 0
