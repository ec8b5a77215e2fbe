"""One row a slide: tissue, tiles, nuclear morphometry and spatial statistics, each once measured.

<output>/measurements/<slide>.<model>.json   name -> number, null where it is undefined

Columns, in this order; `<class>` as `morphometry.class_names` writes it, `<measure>` as the store
calls it (area_um2, perimeter_um, major_axis_um, minor_axis_um, circularity, solidity,
hematoxylin_mean, probability, agreement):

tissue_mm2, tiles
nuclei, nuclei_per_mm2, nuclei_<class>, nuclei_<class>_share, nuclei_<class>_per_mm2
nucleus_<measure>_mean, _sd, _p05, _p25, _p50, _p75, _p95; nucleus_<class>_<measure>_mean, _sd
glands..., gland_..., lumina..., lumen_...   the same, where the model finds them
nearest_nucleus_um_mean, _median             to the nearest other nucleus
nearest_<b>_from_<a>_um_mean, _median        from nuclei of class a to the nearest other of class b
clark_evans                                  see `spatial.clark_evans`
ripley_k_<r>um, ripley_l_<r>um               µm², µm; see `spatial.ripley_k`
ripley_l_<class>_<r>um                       of the nuclei of a class
tumour_mm2                                   squares of 50 µm that hold a neoplastic nucleus
til_per_tumour_mm2                           inflammatory nuclei in them
tumour_infiltrating_fraction                 share of these squares that hold an inflammatory one
til_share_in_tumour, til_share_within_<d>um  of all inflammatory nuclei; see `spatial.Infiltration`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.cohort.morphometry import NOUNS, class_names, morphometry
from coverslip.cohort.spatial import (
    PointPattern,
    clark_evans,
    infiltration,
    nearest_distances,
    ripley_k,
)
from coverslip.durable import replace_file
from coverslip.engine.export_stores import finished_files
from coverslip.errors import InvalidConfig, StoreError
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue

VERSION = 1
"""Of what the columns mean: another one, and slides are measured anew."""
Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class MeasurementSettings:
    """What spatial statistics are asked for.

    radii_um        of Ripley's K and L
    square_um       side of the squares that make up the tumour
    near_um         an inflammatory nucleus so near a neoplastic one counts as infiltrating
    neoplastic      class that is the tumour; inflammatory that of its lymphocytes. Where the model
                    has neither, the slide has no columns of infiltration
    """

    radii_um: tuple[float, ...] = (25.0, 50.0, 100.0)
    square_um: float = 50.0
    near_um: float = 30.0
    neoplastic: str = "Neoplastic"
    inflammatory: str = "Inflammatory"

    def __post_init__(self) -> None:
        lengths = (*self.radii_um, self.square_um, self.near_um)
        if not all(0 < length < float("inf") for length in lengths):
            raise InvalidConfig(f"radii and distances in µm must be above 0, got {lengths}")


def measured_once(
    output: Path, slide: str, model: str, grid: str, settings: MeasurementSettings
) -> Row:
    """A slide's row, measured where it is not on disk, or its store has changed since.

    model   whose nuclei; "" for none; grid whose tiles are counted; "" for none

    Raises StoreError; IncompleteStage where the slide lacks the nuclei or the tiles; StoreBusy.
    """

    def write(store: SlideStore) -> list[Path]:
        path = output / "measurements" / f"{slide}.{model or 'tissue'}.json"
        content = slide_measurements(store, model, grid, settings)
        replace_file(path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
        return [path]

    def needs(store: SlideStore) -> list[str]:
        others = [f"{kind}/{model}" for kind in NOUNS if kind != "nuclei"]
        return [*_required(model, grid), *(s for s in others if s in store.stages())]

    parameters = {"version": VERSION, "model": model, "grid": grid, "settings": asdict(settings)}
    record = f"export/measurements.{model or 'tissue'}"
    (path,) = finished_files(output, slide, record, parameters, needs, write)
    try:
        content = orjson.loads(path.read_bytes())
        return {str(n): v if type(v) is int else _number(v) for n, v in content.items()}
    except (OSError, orjson.JSONDecodeError, AttributeError, TypeError) as error:
        raise StoreError(
            path, f"cannot be read ({error!r})", "remove it: it is written anew"
        ) from None


def _number(value: object) -> float:
    """Raises TypeError."""
    if value is not None and type(value) is not float:
        raise TypeError(f"{value!r} is no number")
    return float("nan") if value is None else value


def _required(model: str, grid: str) -> list[str]:
    return ["tissue", *([f"tiles/{grid}"] if grid else []), *([f"nuclei/{model}"] if model else [])]


def slide_measurements(
    store: SlideStore, model: str, grid: str, settings: MeasurementSettings
) -> Row:
    """The columns of this module for one slide, from its store.

    Memory grows with the nuclei, by about 200 bytes each. Raises StoreError for a store that knows
    no pixel size, or whose classes cannot be told apart; IncompleteStage.
    """
    if not store.slide.get("mpp"):
        raise StoreError(store.path, "its slide's pixel size is unknown: nothing can be measured")
    mpp = (float(store.slide["mpp"][0]), float(store.slide["mpp"][1]))
    tissue = Tissue.from_store(store.group("tissue"))
    area = tissue.area_um2(mpp)
    found: Row = {"tissue_mm2": area / 1e6}
    if grid:
        found["tiles"] = int(store.group(f"tiles/{grid}")["boxes"].shape[0])
    if not model:
        return found
    try:
        for kind in NOUNS:
            if (stage := f"{kind}/{model}") in store.stages():
                group = store.group(stage)
                columns = dict(group.arrays())
                found |= morphometry(columns, kind, list(group.attrs["classes"]), area)
        group = store.group(f"nuclei/{model}")
        size = (int(store.slide["size"][0]), int(store.slide["size"][1]))
        pattern = PointPattern.of(np.asarray(group["centroid"][:]), tissue, size, mpp)
        class_id = np.asarray(group["class_id"][:])
        found |= spatial_statistics(pattern, class_id, list(group.attrs["classes"]), settings)
    except (KeyError, ValueError) as error:
        raise StoreError(store.path, f"its nuclei/{model} cannot be measured ({error})") from None
    return found


def spatial_statistics(
    pattern: PointPattern,
    class_id: npt.NDArray[np.integer[Any]],
    classes: list[str],
    settings: MeasurementSettings,
) -> Row:
    """How a slide's nuclei, of classes numbered by `class_id` [n], lie: see the module's columns.
    Statistics of nothing are nan."""
    everyone = np.ones(len(pattern), bool)
    found = _neighbours({"nucleus": everyone}, pattern)
    found["clark_evans"] = clark_evans(pattern)
    of_classes: Mapping[str, npt.NDArray[np.bool_]] = {}
    if len(classes) > 1:
        of_classes = {name: class_id == i for i, name in enumerate(class_names(classes))}
        found |= _neighbours(of_classes, pattern)
    for radius, k in zip(settings.radii_um, ripley_k(pattern, settings.radii_um), strict=True):
        found[f"ripley_k_{radius:g}um"] = float(k)
        found[f"ripley_l_{radius:g}um"] = float(np.sqrt(k / np.pi))
    for name, members in of_classes.items():
        values = ripley_k(pattern.where(members), settings.radii_um)
        for radius, k in zip(settings.radii_um, values, strict=True):
            found[f"ripley_l_{name}_{radius:g}um"] = float(np.sqrt(k / np.pi))
    if {settings.neoplastic, settings.inflammatory} <= set(classes):
        neoplastic = pattern.points[class_id == classes.index(settings.neoplastic)]
        inflammatory = pattern.points[class_id == classes.index(settings.inflammatory)]
        found |= _infiltration(neoplastic, inflammatory, settings)
    return found


def _neighbours(groups: Mapping[str, npt.NDArray[np.bool_]], pattern: PointPattern) -> Row:
    """Mean and median distance from each group to the nearest of each."""
    found: Row = {}
    for to, members in groups.items():
        tree = pattern.where(members).tree
        for source, starts in groups.items():
            distances = nearest_distances(pattern.points[starts], tree, same=source == to)
            distances = distances[np.isfinite(distances)]  # inf: there is no other
            name = f"nearest_{to}" + (f"_from_{source}" if len(groups) > 1 else "")
            nan = float("nan")
            found[f"{name}_um_mean"] = float(distances.mean()) if len(distances) else nan
            found[f"{name}_um_median"] = float(np.median(distances)) if len(distances) else nan
    return found


def _infiltration(
    neoplastic: npt.NDArray[np.float64],
    inflammatory: npt.NDArray[np.float64],
    settings: MeasurementSettings,
) -> Row:
    found = infiltration(
        neoplastic, inflammatory, square_um=settings.square_um, near_um=settings.near_um
    )
    area = found.tumour_um2 / 1e6
    return {
        "tumour_mm2": area,
        "til_per_tumour_mm2": found.in_tumour / area if area else float("nan"),
        "tumour_infiltrating_fraction": found.fraction,
        "til_share_in_tumour": found.share_in_tumour,
        f"til_share_within_{settings.near_um:g}um": found.share_near,
    }
