"""Pretraining on slides: tiles streamed straight from them, a probe as it learns, the curve."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.encoders import evaluation
from coverslip.encoders.pretrain import PretrainConfig, Pretraining, Probe, TileBatch
from coverslip.engine.config import RunConfig
from coverslip.engine.labelled_tiles import LabelledTiles
from coverslip.engine.opening import open_for_run
from coverslip.engine.plots import draw_training
from coverslip.errors import InvalidConfig, SlideError
from coverslip.tiling.grid import TileGrid, all_boxes
from coverslip.tiling.stream import stream_windows
from coverslip.tiling.tissue import find_tissue
from coverslip.tiling.windows import Windows
from coverslip.wsi.naming import slide_name
from coverslip.wsi.slide import Slide

if TYPE_CHECKING:
    from coverslip.encoders.encoder import Encoder

TrainingObserver = Callable[[int, int, Mapping[str, float]], None]

CHUNK = 16
"""Batches read at once and then shuffled."""
PARTS = 8
"""Draws that make a chunk, each at one pixel size and from few slides."""
SLIDES_A_PART = 8
MIN_PROBED = 20
"""Tiles a slide must have to be asked for in the probe."""
ENLARGED = 1.3
"""How much finer than its own pixels a slide is still read."""

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """Where tiles may be read from one slide at one pixel size.

    centres   (N, 2) x, y in level-0 px; weights (N,) how often each is drawn, above 0
    reach     how far from its centre a tile may be drawn, px at `mpp`
    """

    path: str
    mpp: float
    centres: Points
    weights: npt.NDArray[np.float64]
    reach: float


class SlideTiles:
    """An endless, reproducible stream of tiles from slides (see `pretrain.TileSource`).

    Batches are drawn in chunks of 16. A chunk is a function of the seed and its number: eight
    draws, each at one of the configured pixel sizes, of tiles at random places in the tissue of a
    few slides, read in one pass each and shuffled together. The next chunk is read meanwhile.

    slides     that opened and hold tissue; `failed` says what was wrong with the others
    weights    slide name -> (centres (N, 2) in level-0 px, weights (N,)): draw tiles here, so often
               (RudolfV, arXiv:2401.04079, shows how much a curated sampling matters); slides it
               does not name are not used. By default all tissue is drawn alike
    """

    def __init__(
        self,
        paths: Sequence[str | PathLike[str]],
        config: PretrainConfig,
        opening: RunConfig,
        weights: Mapping[str, tuple[Points, npt.NDArray[np.float64]]] | None = None,
        observer: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config, self.failed = config, dict[str, str]()
        self._opening = opening
        self.slides: list[str] = []
        self.places: dict[float, list[Places]] = {mpp: [] for mpp in config.mpps}
        for done, path in enumerate(paths, 1):
            try:
                found = self._survey(str(path), weights)
            except SlideError as error:
                self.failed[str(path)] = str(error)
                continue
            for places in found:
                self.places[places.mpp].append(places)
            if found:
                self.slides.append(str(path))
            else:
                self.failed[str(path)] = f"{path}: no tissue at any of the pixel sizes asked for"
            if observer:
                observer(done, len(paths))
        empty = [f"{mpp:g}" for mpp, found in self.places.items() if not found]
        if empty:
            raise InvalidConfig(
                f"no slide has tissue at {', '.join(empty)} µm per pixel\n"
                "  leave these out of mpps, or add slides scanned as finely"
            )
        self._opening = dataclasses.replace(opening, cross_check=False)  # done above
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="coverslip-pretrain")
        self._chunks: dict[int, Future[TileBatch]] = {}

    def batch(self, step: int) -> TileBatch:
        """The tiles of a step: uint8 (b, T, T, 3)."""
        number, place = divmod(step, CHUNK)
        for wanted in (number, number + 1):
            if wanted not in self._chunks:
                self._chunks[wanted] = self._reader.submit(self._chunk, wanted)
        for old in [n for n in self._chunks if not number <= n <= number + 1]:
            del self._chunks[old]
        pixels, numbers = self._chunks[number].result()
        rows = slice(place * self.config.batch, (place + 1) * self.config.batch)
        return TileBatch(pixels[rows], numbers[rows])

    def labelled_by_slide(self, each: int = 40, most: int = 10) -> LabelledTiles | None:
        """Tiles of the slides with the most tissue, each labelled with its slide, at the pixel size
        that most of them share; None where there is only one slide."""
        mpp = max(self.places, key=lambda m: (len(self.places[m]), -m))
        places = sorted(self.places[mpp], key=lambda p: -len(p.centres))[:most]
        places = [p for p in places if len(p.centres) >= MIN_PROBED]
        if len(places) < 2:
            return None
        side = self.config.tile
        pixels = np.empty((len(places) * each, side, side, 3), np.uint8)
        draw = np.random.default_rng(self.config.seed)
        for i, place in enumerate(places):
            self._read(place, draw, pixels[i * each : (i + 1) * each])
        names = tuple(slide_name(p.path) for p in places)
        labels = np.repeat(np.arange(len(places)), each)
        return LabelledTiles(pixels, labels, names, tuple(names[i] for i in labels))

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown(cancel_futures=True)

    def _survey(
        self, path: str, weights: Mapping[str, tuple[Points, npt.NDArray[np.float64]]] | None
    ) -> list[Places]:
        with open_for_run(path, self._opening) as slide:
            mpps = [m for m in self.config.mpps if m * ENLARGED >= min(slide.mpp)]
            if weights is not None:
                if slide_name(path) not in weights:
                    return []
                centres, weight = weights[slide_name(path)]
                return [Places(path, m, centres, weight, self.config.tile / 4) for m in mpps]
            boxes = {m: _boxes(slide, self.config.tile, m) for m in mpps}
        return [
            Places(path, m, b[:, :2] + b[:, 2:] / 2, np.ones(len(b)), self.config.tile / 2)
            for m, b in boxes.items()
            if len(b)
        ]

    def _chunk(self, number: int) -> TileBatch:
        """A chunk's tiles, shuffled; with a limited number of tiles they come again, in a new
        order."""
        config = self.config
        size = CHUNK * config.batch
        distinct = -(-config.tiles // size) if config.tiles else number + 1
        again, source = divmod(number, distinct)
        draw = np.random.default_rng((config.seed, source))
        pixels = np.empty((size, config.tile, config.tile, 3), np.uint8)
        for rows in np.array_split(np.arange(size), PARTS):
            self._draw(draw, pixels[rows[0] : rows[-1] + 1])
        order = np.random.default_rng((config.seed, source, again)).permutation(size)
        return TileBatch(pixels[order], source * size + order)

    def _draw(self, draw: np.random.Generator, out: npt.NDArray[np.uint8]) -> None:
        """Fill `out` (n, T, T, 3) with tiles of one pixel size."""
        mpp = self.config.mpps[draw.integers(len(self.config.mpps))]
        places = self.places[mpp]
        share = np.array([p.weights.sum() for p in places])
        chosen = draw.choice(
            len(places), min(SLIDES_A_PART, len(places)), replace=False, p=share / share.sum()
        )
        counts = draw.multinomial(len(out), share[chosen] / share[chosen].sum())
        begin = 0
        for which, count in zip(chosen.tolist(), counts.tolist(), strict=True):
            if count:
                self._read(places[which], draw, out[begin : begin + count])
                begin += count

    def _read(self, places: Places, draw: np.random.Generator, out: npt.NDArray[np.uint8]) -> None:
        """Tiles at random places of one slide, in the order of their rows on it."""
        rows = draw.choice(len(places.centres), len(out), p=places.weights / places.weights.sum())
        shift = draw.uniform(-places.reach, places.reach, (len(out), 2))
        side = self.config.tile
        with open_for_run(places.path, self._opening) as slide:
            scale = (places.mpp / slide.mpp[0], places.mpp / slide.mpp[1])
            corner = places.centres[rows] + (shift - side / 2) * scale
            room = np.maximum(np.array(slide.size) - np.array(scale) * side, 0)
            corner = np.clip(corner, 0, room)
            windows = Windows(corner[np.argsort(corner[:, 1])], (side, side), scale)
            for batch in stream_windows(slide, [windows], threads=1, on_bad_tile="blank"):
                out[batch.index] = batch.pixels


@dataclass(frozen=True, slots=True)
class Trained:
    """What a pretraining leaves: files, and the slides that could not be used, with the reason."""

    weights: Path
    recipe: Path
    curve: Path
    failed: list[str]


def pretrain_on_slides(
    paths: Sequence[str],
    folder: Path,
    config: PretrainConfig,
    opening: RunConfig,
    *,
    probe: tuple[Path, str] | None = None,
    tile_weights: Path | None = None,
    device: str = "auto",
    observer: TrainingObserver | None = None,
) -> Trained:
    """Train an encoder on the tissue of slides; goes on where it stopped.

    opening        how slides are opened: pixel sizes, timeouts
    probe          labelled tiles (see `LabelledTiles.read`) and the pattern of their names; without
                   them the probe asks which slide a tile comes from
    tile_weights   table of `read_tile_weights`
    observer       see `Pretraining.run`

    Raises InvalidConfig where no slide can be used, or the folder holds another training.
    """
    weights = read_tile_weights(tile_weights) if tile_weights else None
    labelled = LabelledTiles.read(*probe) if probe else None
    training = Pretraining(config, folder, device)
    tiles = SlideTiles(paths, config, opening, weights)
    with contextlib.closing(tiles):
        asked = labelled or tiles.labelled_by_slide()
        file = training.run(tiles, probe_on(asked) if asked else None, observer)
    curve = folder / "curve.png"
    draw_training(folder / "log.csv", folder / "probe.csv", curve)
    return Trained(file, file.with_suffix(".json"), curve, list(tiles.failed.values()))


def probe_on(tiles: LabelledTiles) -> Probe:
    """Balanced accuracies of a linear probe and of nearest neighbours on labelled tiles."""

    def figures(encoder: Encoder) -> dict[str, float]:
        features = encoder.encode(tiles.pixels)
        return {
            "linear": evaluation.probe(features, tiles.labels, evaluation.linear, repeats=3).mean,
            "knn": evaluation.probe(features, tiles.labels, evaluation.knn, repeats=3).mean,
        }

    return figures


def _boxes(slide: Slide, tile: int, mpp: float) -> npt.NDArray[np.int32]:
    """Tiles of a slide that hold tissue; all of a plain image, which is a field of view."""
    if slide.reader == "image":
        return all_boxes(slide.size, slide.mpp, tile, tile, mpp)
    return TileGrid.over(slide, tile=tile, mpp=mpp, tissue=find_tissue(slide)).boxes


def read_tile_weights(
    path: Path,
) -> dict[str, tuple[Points, npt.NDArray[np.float64]]]:
    """Weights of tiles by slide name, from a CSV or Parquet table with columns slide, x, y, w, h
    (level-0 px, top-left corner) and weight. Raises InvalidConfig."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        table = parquet.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path)
        columns: dict[str, Any] = {
            name: table[name].to_numpy() for name in ("slide", "x", "y", "w", "h", "weight")
        }
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise InvalidConfig(
            f"{path}: no table of tile weights ({error}); it wants the columns "
            "slide, x, y, w, h, weight"
        ) from None
    weight = columns["weight"].astype(np.float64)
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise InvalidConfig(f"{path}: weights must be finite and not negative")
    centres = np.stack(
        [columns["x"] + columns["w"] / 2, columns["y"] + columns["h"] / 2], axis=1
    ).astype(np.float64)
    found = {}
    for slide in np.unique(columns["slide"].astype(str)):
        rows = (columns["slide"].astype(str) == slide) & (weight > 0)
        if rows.any():
            found[slide] = centres[rows], weight[rows]
    return found
