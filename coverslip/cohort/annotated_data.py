"""AnnData of a cohort's slides or of a slide's tiles, by the keys that scanpy and squidpy know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.cohort.packages import package
from coverslip.durable import whole_file
from coverslip.engine.exports import StoredSlide

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from coverslip.engine.bag_files import FileBags

ROWS_AT_ONCE = 4096


def slides_as_anndata(
    measurements: pd.DataFrame, facts: pd.DataFrame, embeddings: Mapping[str, npt.NDArray[Any]]
) -> AnnData:
    """One observation a slide.

    measurements   numbers, indexed by slide: X float64, nan where undefined; var their names
    facts          what else is known of each, with the same index: obs
    embeddings     name -> [slides, D]: obsm["X_<name>"]

    Texts become categories and dates texts, as HDF5 wants them. Raises MissingPackage.
    """
    import pandas as pd

    return package("anndata", "AnnData").AnnData(
        X=measurements.to_numpy(np.float64),
        obs=_storable(facts),
        var=pd.DataFrame(index=measurements.columns.astype(str)),
        obsm={f"X_{name}": vectors for name, vectors in embeddings.items()},
    )


def tiles_as_anndata(stored: StoredSlide, grid: str) -> AnnData:
    """One observation a tile of one slide: X its columns (tissue fraction and, where measured,
    quality), obsm["spatial"] its centre (x, y) in level-0 px, obsm["X_<encoder>"] of each encoder.

    obs names the slide and the tile's number in the grid; uns["spatial"][slide]["scalefactors"]
    holds its side and µm per px. Raises MissingPackage, IncompleteStage.
    """
    import pandas as pd

    table = stored.tile_table(grid)
    columns = stored.tile_columns(grid)
    boxes = np.asarray(table.boxes, np.float64)
    number = np.arange(len(boxes))
    mpp = table.slide_mpp
    return package("anndata", "AnnData").AnnData(
        X=np.stack([np.asarray(c, np.float32) for c in columns.values()], axis=1),
        obs=pd.DataFrame(
            {"slide": pd.Categorical([stored.slide_id] * len(boxes)), "tile_id": number},
            index=[f"{stored.slide_id}:{i}" for i in number],
        ),
        var=pd.DataFrame(index=list(columns)),
        obsm={
            "spatial": boxes[:, :2] + boxes[:, 2:] / 2,
            **{f"X_{name}": array[:] for name, array in stored.features(grid).items()},
        },
        uns={
            "spatial": {
                stored.slide_id: {
                    "scalefactors": {
                        "spot_diameter_fullres": float(table.tile * table.mpp / mpp[0]),
                        "mpp_x": float(mpp[0]),
                        "mpp_y": float(mpp[1]),
                    }
                }
            }
        },
    )


def mean_embedding(bags: FileBags, index: int) -> npt.NDArray[np.float64]:
    """float64 [D] over a bag's tiles, read in parts; nan for no tiles. Raises StoreError."""
    count, total = bags.count(index), np.zeros(bags.dim)
    for start in range(0, count, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, count))
        total += bags.read(index, rows).sum(axis=0, dtype=np.float64)
    return total / count if count else np.full(bags.dim, np.nan)


def write_anndata(path: Path, content: AnnData) -> None:
    """A .h5ad file, whole or absent. Raises StoreError where the disk refuses."""
    with whole_file(path) as aside:
        content.write_h5ad(aside)


def _storable(facts: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    found = facts.copy()
    found.index = found.index.astype(str)
    for name in found.columns:
        if pd.api.types.is_datetime64_any_dtype(found[name]):
            found[name] = found[name].dt.strftime("%Y-%m-%dT%H:%M:%S")
        if found[name].dtype == object:
            texts = [
                None if value is None or value != value else str(value) for value in found[name]
            ]
            found[name] = pd.Categorical(texts)
    return found
