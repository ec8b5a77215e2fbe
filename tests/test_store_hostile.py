"""Stores from strangers: what their records name is looked at before it is followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import orjson
import pytest

from coverslip.errors import StoreError
from coverslip.export.hdf5_features import FeatureFile
from coverslip.tiling.store import SlideStore

RECORD = {"hash": "a", "parameters": {}, "needs": {"tissue": "b"}, "software": "x"}


@pytest.mark.parametrize(
    "stages",
    [
        {"../victim": RECORD},
        {"tiles/../../victim": RECORD},
        {"/victim": RECORD},
        {"tissue": {**RECORD, "needs": None} | {"hash": "a"}, "": RECORD},
        {"tissue": {key: value for key, value in RECORD.items() if key != "parameters"}},
        {"tissue": "complete"},
        {"tissue": None},
        ["tissue"],
        7,
    ],
)
def test_a_stage_that_is_none_is_refused(tmp_path: Path, stages: Any) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    store = SlideStore.create(tmp_path / "x.zarr", {"name": "x"})
    content = orjson.loads((store.path / "zarr.json").read_bytes())
    content["attributes"]["coverslip"]["stages"] = stages
    (store.path / "zarr.json").write_bytes(orjson.dumps(content))
    with pytest.raises(StoreError, match=r"zarr\.json cannot be read"):
        SlideStore.open(store.path)
    assert victim.is_dir()


def test_names_in_hdf5_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group(b"\xff\xfe")
        file.create_group("plain")
    with pytest.raises(StoreError, match="wanted are the datasets"):
        FeatureFile.open(tmp_path / "x.h5")


def test_a_type_in_place_of_features_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = np.dtype("f4")
        file["coords"] = np.dtype("i8")
    with pytest.raises(StoreError, match="wanted are the datasets"):
        FeatureFile.open(tmp_path / "x.h5")
