"""HDF5 files as TRIDENT, CLAM and STAMP write and read them, name by name and type by type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from coverslip.errors import StoreError
from coverslip.export.hdf5 import (
    TileTable,
    trident_folder,
    write_clam_coords,
    write_clam_features,
    write_clam_tensor,
    write_stamp,
    write_trident_coords,
    write_trident_features,
)
from coverslip.export.hdf5_features import read_features_h5

MPP = (0.2527, 0.2501)


def table(count: int = 5) -> TileTable:
    side = round(256 * 0.5 / MPP[0])
    corner = np.arange(count)[:, None] * [side, 2 * side]
    boxes = np.concatenate([corner, np.full((count, 2), side)], axis=1).astype(np.int32)
    return TileTable("case-1", boxes, 256, 0, 0.5, MPP, (90_000, 70_000))


def features(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).random((count, 8)).astype(np.float32)


def plain(attributes: Any) -> dict[str, Any]:
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in attributes.items()}


TRIDENT_ATTRIBUTES = {
    "patch_size": 256,
    "patch_size_level0": 507,
    "level0_magnification": 39.5726,
    "target_magnification": 20,
    "overlap": 0,
    "name": "case-1",
    "savetodir": "None",
    "level0_width": 90_000,
    "level0_height": 70_000,
}


class TestTrident:
    def test_coords(self, tmp_path: Path) -> None:
        write_trident_coords(tmp_path / "patches" / "a_patches.h5", table())
        with h5py.File(tmp_path / "patches" / "a_patches.h5") as file:
            assert list(file) == ["coords"]
            assert not file.attrs
            assert file["coords"].dtype == np.int64
            np.testing.assert_array_equal(file["coords"], table().boxes[:, :2])
            assert plain(file["coords"].attrs) == TRIDENT_ATTRIBUTES

    def test_a_patcher_that_trusts_the_magnifications_reads_the_same_squares(
        self, tmp_path: Path
    ) -> None:
        write_trident_coords(tmp_path / "a.h5", table())
        with h5py.File(tmp_path / "a.h5") as file:
            marks = plain(file["coords"].attrs)
        source, target = 10 / marks["level0_magnification"], 10 / marks["target_magnification"]
        assert round(marks["patch_size"] * target / source) == table().side

    def test_features(self, tmp_path: Path) -> None:
        write_trident_features(tmp_path / "a.h5", table(), features(), "uni_v1")
        with h5py.File(tmp_path / "a.h5") as file:
            assert sorted(file) == ["coords", "features"]
            assert file["features"].dtype == np.float32
            assert file["features"].maxshape == (None, 8)
            assert plain(file["coords"].attrs) == TRIDENT_ATTRIBUTES
            assert dict(file["features"].attrs) == {
                "name": "case-1",
                "savetodir": "None",
                "encoder": "uni_v1",
            }

    @pytest.mark.parametrize("count", [0, 1, 1023, 1025])
    def test_out_and_in(self, tmp_path: Path, count: int) -> None:
        write_trident_features(tmp_path / "a.h5", table(count), features(count), "uni_v1")
        read = read_features_h5(tmp_path / "a.h5")
        assert read.layout == "trident"
        assert read.coords.dtype == np.float64
        np.testing.assert_array_equal(read.coords, table(count).boxes[:, :2])
        np.testing.assert_array_equal(read.features, features(count))
        assert read.attributes["encoder"] == "uni_v1"
        assert read.attributes["patch_size_level0"] == 507

    def test_the_folder_of_a_job(self) -> None:
        assert trident_folder(table()) == "20x_256px_0px_overlap"

    def test_half_precision_is_written_whole(self, tmp_path: Path) -> None:
        write_trident_features(tmp_path / "a.h5", table(), features().astype(np.float16), "e")
        with h5py.File(tmp_path / "a.h5") as file:
            assert file["features"].dtype == np.float32


class TestClam:
    def test_coords(self, tmp_path: Path) -> None:
        write_clam_coords(tmp_path / "a.h5", table())
        with h5py.File(tmp_path / "a.h5") as file:
            assert file["coords"].dtype == np.int32
            assert plain(file["coords"].attrs) == {
                "patch_size": 507,
                "patch_level": 0,
                "downsample": [1.0, 1.0],
                "downsampled_level_dim": [90_000, 70_000],
                "level_dim": [90_000, 70_000],
                "name": "case-1",
                "save_path": "None",
            }

    def test_features(self, tmp_path: Path) -> None:
        write_clam_features(tmp_path / "a.h5", table(), features())
        with h5py.File(tmp_path / "a.h5") as file:
            assert {name: file[name].dtype for name in file} == {
                "features": np.float32,
                "coords": np.int32,
            }
            assert not file["features"].attrs
            assert not file["coords"].attrs
        read = read_features_h5(tmp_path / "a.h5")
        assert read.layout == "clam"
        np.testing.assert_array_equal(read.coords, table().boxes[:, :2])
        np.testing.assert_array_equal(read.features, features())

    def test_tensor(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        write_clam_tensor(tmp_path / "a.pt", features())
        read = torch.load(tmp_path / "a.pt", weights_only=True)
        assert read.dtype == torch.float32
        np.testing.assert_array_equal(read.numpy(), features())


class TestStamp:
    def test_names_types_and_attributes(self, tmp_path: Path) -> None:
        write_stamp(tmp_path / "a.h5", table(), features(), "uni", "12ab34cd")
        with h5py.File(tmp_path / "a.h5") as file:
            assert {name: file[name].dtype for name in file} == {
                "coords": np.float32,
                "feats": np.float16,
            }
            marks = plain(file.attrs)
            assert marks.pop("software").startswith("coverslip ")
            assert marks == {
                "stamp_version": "2.1.0",
                "extractor": "uni",
                "unit": "um",
                "tile_size_um": 128.0,
                "tile_size_px": 256,
                "code_hash": "12ab34cd",
                "feat_type": "tile",
            }
            np.testing.assert_allclose(file["coords"][1], [507 * MPP[0], 1014 * MPP[1]], rtol=1e-6)

    def test_its_reader_can_parse_the_version(self, tmp_path: Path) -> None:
        """STAMP refuses what `packaging` does not parse or finds newer than itself."""
        version = pytest.importorskip("packaging.version").Version
        write_stamp(tmp_path / "a.h5", table(), features(), "uni", "12ab34cd")
        with h5py.File(tmp_path / "a.h5") as file:
            assert version(file.attrs["stamp_version"]) <= version("2.1.0")

    def test_out_and_in(self, tmp_path: Path) -> None:
        write_stamp(tmp_path / "a.h5", table(), features(), "uni", "12ab34cd")
        read = read_features_h5(tmp_path / "a.h5", slide_mpp=MPP)
        assert read.layout == "stamp"
        np.testing.assert_allclose(read.coords, table().boxes[:, :2], atol=1e-3)
        np.testing.assert_allclose(read.features, features(), atol=1e-3)

    def test_without_a_pixel_size_it_is_refused(self, tmp_path: Path) -> None:
        write_stamp(tmp_path / "a.h5", table(), features(), "uni", "12ab34cd")
        with pytest.raises(StoreError, match=r"a\.h5: is STAMP's.*\n  pass slide_mpp"):
            read_features_h5(tmp_path / "a.h5")

    def test_the_historic_unit(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["coords"] = np.array([[0, 0], [224, 0], [0, 224]])
            file["feats"] = np.zeros((3, 4), np.float16)
        read = read_features_h5(tmp_path / "a.h5", slide_mpp=(0.5, 0.5))
        np.testing.assert_allclose(read.coords, [[0, 0], [512, 0], [0, 512]])

    def test_an_unknown_unit_is_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["coords"] = np.array([[0, 0], [300, 0], [0, 300]])
            file["feats"] = np.zeros((3, 4), np.float16)
        with pytest.raises(StoreError, match="in which unit"):
            read_features_h5(tmp_path / "a.h5", slide_mpp=(0.5, 0.5))


class TestReading:
    def write(self, path: Path, **datasets: Any) -> Path:
        with h5py.File(path, "w") as file:
            for name, values in datasets.items():
                file[name] = values
        return path

    def test_a_batch_axis_is_dropped(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.h5", features=np.ones((1, 3, 4)), coords=np.ones((1, 3, 2)))
        assert read_features_h5(path).features.shape == (3, 4)
        assert read_features_h5(path).coords.shape == (3, 2)

    def test_unequal_lengths_are_refused(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.h5", features=np.ones((3, 4)), coords=np.ones((2, 2)))
        with pytest.raises(StoreError, match="2 coordinates but 3 features"):
            read_features_h5(path)

    def test_a_slide_vector_is_refused(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.h5", features=np.ones(4), coords=np.ones((2, 2)))
        with pytest.raises(StoreError, match=r"features \(4,\)"):
            read_features_h5(path)

    def test_groups_are_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["features/uni"] = np.ones((2, 4))
            file["coords"] = np.ones((2, 5))
        with pytest.raises(StoreError, match="holds coords, features; wanted are the datasets"):
            read_features_h5(tmp_path / "a.h5")

    def test_no_hdf5_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.h5").write_bytes(b"not HDF5")
        with pytest.raises(StoreError, match="cannot be read as HDF5"):
            read_features_h5(tmp_path / "a.h5")

    def test_half_a_file_is_refused(self, tmp_path: Path) -> None:
        write_trident_features(tmp_path / "a.h5", table(2000), features(2000), "e")
        whole = (tmp_path / "a.h5").read_bytes()
        (tmp_path / "a.h5").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(StoreError, match="cannot be read as HDF5"):
            read_features_h5(tmp_path / "a.h5")


class TestAtomic:
    def test_an_error_leaves_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        write_trident_features(path, table(), features(), "e")
        before = path.read_bytes()

        class Breaks:
            shape, dtype = (5, 8), np.dtype(np.float32)

            def __getitem__(self, rows: slice) -> np.ndarray:
                raise RuntimeError("the store went away")

        with pytest.raises(RuntimeError, match="went away"):
            write_trident_features(path, table(), Breaks(), "e")
        assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
        assert path.read_bytes() == before

    @pytest.mark.parametrize("count", [2_000, 20_000])
    @pytest.mark.parametrize("kind", ["hdf5", "torch"])
    def test_a_disk_that_is_full_is_an_error_like_any_other(
        self, tmp_path: Path, count: int, kind: str
    ) -> None:
        """HDF5 by itself would end the process, torch would name no cause."""
        path, values = tmp_path / "a.h5", features(count)
        resource = pytest.importorskip("resource")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(StoreError, match=r"a\.h5: cannot be written: File too large"):
                (
                    write_trident_features(path, table(count), values, "e")
                    if kind == "hdf5"
                    else write_clam_tensor(path, values)
                )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(tmp_path.iterdir()) == []

    def test_the_same_content_is_the_same_bytes(self, tmp_path: Path) -> None:
        write_stamp(tmp_path / "a.h5", table(), features(), "e", "1")
        write_stamp(tmp_path / "b.h5", table(), features(), "e", "1")
        assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()

    def test_chunks_are_large(self, tmp_path: Path) -> None:
        write_clam_features(tmp_path / "a.h5", table(3000), features(3000))
        with h5py.File(tmp_path / "a.h5") as file:
            assert file["features"].chunks == (1024, 8)
