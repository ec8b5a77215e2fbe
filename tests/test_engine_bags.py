"""Bags of embeddings from our stores and other programs' folders, read alike; patients' bags."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.engine.bag_files import FileBags, HDF5Bags, facts_difference
from coverslip.engine.bags import PatientBags, StoredBags, open_bags
from coverslip.errors import InvalidConfig, RecipeMismatch, StoreError
from coverslip.export.hdf5 import (
    TileTable,
    write_clam_features,
    write_clam_tensor,
    write_stamp,
    write_trident_features,
)
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.store import SlideStore

DIM = 4
COUNTS = {"a": 700, "b": 3, "c": 40}


def features(slide: str, count: int | None = None) -> np.ndarray:
    count = COUNTS[slide] if count is None else count
    return np.random.default_rng(ord(slide[0])).standard_normal((count, DIM)).astype(np.float32)


def tiles(slide: str, count: int | None = None) -> TileTable:
    count = COUNTS[slide] if count is None else count
    boxes = np.full((count, 4), 512, np.int32)
    boxes[:, :2] = np.arange(count)[:, None] * [512, 256]
    return TileTable(slide, boxes, 256, 0, 0.5, (0.25, 0.25), (90_000, 70_000))


def store(
    folder: Path,
    slide: str,
    *,
    encoder: str = "e",
    weights: str = "ff",
    stain: Any = None,
    mpp: float = 0.5,
    count: int | None = None,
    codec: Any = "raw",
) -> SlideStore:
    """A slide's store as a run leaves it."""
    table = tiles(slide, count)
    total = len(table.boxes)
    grid = TileGrid(
        (90_000, 70_000), (0.25, 0.25), 256, 256, mpp, 0.25, table.boxes, np.ones(total, np.float32)
    )
    made = SlideStore.open_or_create(folder / f"{slide}.zarr", {"fingerprint": slide})
    tiled = f"tiles/{grid.name}"
    if not made.is_current(tiled, {"grid": grid.parameters()}):
        with made.stage(tiled, {"grid": grid.parameters()}) as stage:
            grid.write(stage)
    if total:
        recipe = {"recipe": {"name": encoder}, "weights_sha256": weights, "stain": stain}
        with made.stage(f"features/{encoder}@{grid.name}", recipe, needs=[tiled]) as stage:
            stage.create_array("features", (total, DIM), "float32", rows_per_block=512, codec=codec)
            for number, start in enumerate(range(0, total, 512)):
                block = features(slide, total)[start : start + 512]
                stage.write_block(number, {"features": block})
            stage.finish({"dim": DIM})
    return made


def stores(folder: Path) -> Path:
    for slide in COUNTS:
        store(folder, slide, codec="zstd" if slide == "c" else "raw")  # c is an older store
    return folder


def trident(folder: Path) -> Path:
    for slide in COUNTS:
        path = folder / "20x_256px_0px_overlap" / "features_e" / f"{slide}.h5"
        write_trident_features(path, tiles(slide), features(slide), "e")
    return folder


def single_rows(folder: Path) -> Path:
    """As TRIDENT itself writes: chunks of one row."""
    folder.mkdir()
    for slide in COUNTS:
        with h5py.File(folder / f"{slide}.h5", "w") as file:
            file.create_dataset("features", data=features(slide), chunks=(1, DIM))
            file["coords"] = tiles(slide).corners
    return folder


def clam(folder: Path) -> Path:
    for slide in COUNTS:
        write_clam_features(folder / "h5_files" / f"{slide}.h5", tiles(slide), features(slide))
        write_clam_tensor(folder / "pt_files" / f"{slide}.pt", features(slide))
    return folder


def clam_tensors(folder: Path) -> Path:
    return clam(folder) / "pt_files"


def stamp(folder: Path) -> Path:
    for slide in COUNTS:
        path = folder / "e" / f"folder of {slide}" / f"{slide}.h5"
        write_stamp(path, tiles(slide), features(slide), "e", "12ab34cd")
    return folder


Maker = Callable[[Path], Path]
MAKERS: list[Maker] = [stores, trident, single_rows, clam, clam_tensors, stamp]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def bags(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FileBags:
    return open_bags(request.param(tmp_path_factory.mktemp("bags") / "out"))


class TestEveryFolder:
    def test_names_and_counts(self, bags: FileBags) -> None:
        assert bags.names == tuple(COUNTS)
        assert bags.dim == DIM
        assert [bags.count(i) for i in range(len(bags))] == list(COUNTS.values())
        assert bags.missing == {}
        assert json.loads(json.dumps(bags.facts)) == bags.facts
        assert facts_difference(bags.facts, bags.facts) == ""

    @pytest.mark.parametrize("index", range(3))
    def test_rows_in_the_order_asked_for(self, bags: FileBags, index: int) -> None:
        wanted = features(bags.names[index])
        whole = bags.read(index)
        close = {"rtol": 2e-3, "atol": 2e-3} if whole.dtype == np.float16 else {"rtol": 0}
        np.testing.assert_allclose(whole, wanted, **close)
        rng = np.random.default_rng(0)
        for size in (0, 1, 2, len(wanted)):
            rows = rng.integers(0, len(wanted), size)
            np.testing.assert_array_equal(bags.read(index, rows), whole[rows])
        with pytest.raises(IndexError):
            bags.read(index, np.array([len(wanted)]))

    def test_corners_where_they_are_known(self, bags: FileBags) -> None:
        for index, slide in enumerate(bags.names):
            found = bags.corners(index)
            if found is not None:
                assert found.dtype == np.int64
                np.testing.assert_array_equal(found, tiles(slide).corners)
        known = isinstance(bags, StoredBags) or (
            isinstance(bags, HDF5Bags) and bags.folder.name != "e"
        )
        assert known == (bags.corners(0) is not None)

    def test_threads_share_it(self, bags: FileBags) -> None:
        rows = [np.random.default_rng(i).integers(0, 40, 20) for i in range(12)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda r: bags.read(2, r), rows))
        for chosen, read in zip(rows, found, strict=True):
            np.testing.assert_array_equal(read, bags.read(2)[chosen])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> PatientBags:
    """Patient q with slides a and c, patient p with b."""
    bags = open_bags(clam(tmp_path_factory.mktemp("bags")))
    return PatientBags(bags, {"a": "q", "b": "p", "c": "q", "elsewhere": "r"})


class TestPatients:
    def test_a_bag_is_all_tiles_of_all_slides(self, both: PatientBags) -> None:
        assert (both.names, both.slides) == (("q", "p"), ((0, 2), (1,)))
        assert [both.count(i) for i in range(len(both))] == [740, 3]
        assert both.rows(0) == [(0, range(700)), (2, range(700, 740))]
        whole = np.concatenate([features("a"), features("c")])
        np.testing.assert_array_equal(both.read(0), whole)

    @given(rows=st.lists(st.integers(0, 739), max_size=30))
    @settings(max_examples=30, deadline=None)
    def test_rows_from_any_slide(self, both: PatientBags, rows: list[int]) -> None:
        whole = np.concatenate([features("a"), features("c")])
        np.testing.assert_array_equal(both.read(0, np.array(rows, np.int64)), whole[rows])

    def test_no_such_row(self, both: PatientBags) -> None:
        with pytest.raises(IndexError, match=r"rows 5\.\.740 of 740"):
            both.read(0, np.array([5, 740]))

    def test_slides_that_nobody_has(self, both: PatientBags) -> None:
        assert PatientBags(both.bags, {"c": "p"}).names == ("p",)


class TestStores:
    def test_what_made_them(self, tmp_path: Path) -> None:
        facts = open_bags(stores(tmp_path)).facts
        assert [facts[k] for k in ("encoder", "dim", "mpp", "tile_px")] == ["e", 4, 0.5, 256]
        assert facts["weights_sha256"] == "ff"
        assert len(facts["recipe_sha256"]) == 64

    def test_slides_without_features_are_listed(self, tmp_path: Path) -> None:
        stores(tmp_path)
        store(tmp_path, "d", count=0)
        SlideStore.create(tmp_path / "e.zarr", {"fingerprint": "e"})
        (tmp_path / "f.zarr").mkdir()
        bags = open_bags(tmp_path)
        assert bags.names == ("a", "b", "c")
        assert bags.missing == {
            "d": "it has no tiles: no tissue was found",
            "e": "it has no complete features/e@256px_0.5mpp",
            "f": "is no store: it has no zarr.json",
        }

    def test_several_encoders_and_grids(self, tmp_path: Path) -> None:
        for encoder, mpp in (("e", 0.5), ("f", 0.5), ("f", 1.0)):
            store(tmp_path, "b", encoder=encoder, mpp=mpp)
        every = "e@256px_0.5mpp, f@256px_0.5mpp, f@256px_1mpp"
        with pytest.raises(InvalidConfig, match=f"holds features of {every}; name one"):
            open_bags(tmp_path)
        with pytest.raises(InvalidConfig, match=r"f@256px_0\.5mpp, f@256px_1mpp; name one"):
            open_bags(tmp_path, encoder="f")
        with pytest.raises(InvalidConfig, match=f"no features of g; there are {every}"):
            open_bags(tmp_path, encoder="g")
        assert open_bags(tmp_path, encoder="e").facts["encoder"] == "e"
        assert open_bags(tmp_path, encoder="f", grid="256px_1mpp").facts["mpp"] == 1.0

    @pytest.mark.parametrize(
        ("other", "why"),
        [
            ({"weights": "aa"}, "weights aa, not ff"),
            ({"stain": {"target": {"x": 1}}}, "stain [0-9a-f]{12}, not none"),
        ],
    )
    def test_features_that_were_not_made_alike(
        self, tmp_path: Path, other: dict[str, Any], why: str
    ) -> None:
        stores(tmp_path)
        store(tmp_path, "d", count=2, **other)
        with pytest.raises(RecipeMismatch, match=f"d has {why} as a has; 1 of 4 slides differ"):
            open_bags(tmp_path)

    def test_a_damaged_slide_is_named_when_it_is_read(self, tmp_path: Path) -> None:
        bags = open_bags(stores(tmp_path))
        path = tmp_path / "b.zarr/features/e@256px_0.5mpp/features/c.0.0"
        path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(StoreError, match=r"b\.zarr/.*/c\.0\.0: .* damaged"):
            bags.read(1)
        np.testing.assert_array_equal(bags.read(0), features("a"))

    def test_tiles_that_are_not_those_of_the_features(self, tmp_path: Path) -> None:
        bags = open_bags(stores(tmp_path))
        grid = tmp_path / "b.zarr/tiles/256px_0.5mpp"
        other = tmp_path / "c.zarr/tiles/256px_0.5mpp"
        for file in ("boxes/zarr.json", "boxes/c.0.0"):
            (grid / file).write_bytes((other / file).read_bytes())
        with pytest.raises(StoreError, match="holds 40 tiles but 3 embeddings"):
            bags.corners(1)


class TestOtherFolders:
    def test_facts_of_trident(self, tmp_path: Path) -> None:
        facts = open_bags(trident(tmp_path)).facts
        assert (facts["encoder"], facts["mpp"], facts["tile_px"]) == ("e", 0.5, 256)
        assert facts["recipe_sha256"] == ""

    def test_facts_of_stamp(self, tmp_path: Path) -> None:
        facts = open_bags(stamp(tmp_path)).facts
        assert (facts["encoder"], facts["code_hash"], facts["mpp"]) == ("e", "12ab34cd", 0.5)

    def test_several_of_trident(self, tmp_path: Path) -> None:
        folder = trident(tmp_path)
        write_trident_features(
            folder / "20x_256px_0px_overlap/features_f/a.h5", tiles("a"), features("a"), "f"
        )
        job = "20x_256px_0px_overlap"
        with pytest.raises(InvalidConfig, match=f"features of e@{job}, f@{job}; name one"):
            open_bags(folder)
        assert open_bags(folder, encoder="f").names == ("a",)
        assert open_bags(folder / job, encoder="e", grid=job).names == ("a", "b", "c")
        with pytest.raises(InvalidConfig, match=f"no features of g; there are e@{job}"):
            open_bags(folder, encoder="g")
        with pytest.raises(InvalidConfig, match="no features of f, but e"):
            open_bags(folder / job / "features_e", encoder="f")

    def test_slides_without_tiles_are_listed(self, tmp_path: Path) -> None:
        write_clam_tensor(tmp_path / "a.pt", features("a"))
        write_clam_tensor(tmp_path / "z.pt", features("a", 0))
        bags = open_bags(tmp_path)
        assert (bags.names, bags.missing) == (("a",), {"z": "it has no tiles"})
        hdf5 = tmp_path / "h5"
        write_clam_features(hdf5 / "a.h5", tiles("a"), features("a"))
        write_clam_features(hdf5 / "z.h5", tiles("z", 0), features("z", 0))
        assert open_bags(hdf5).missing == {"z": "it has no tiles"}

    def test_features_that_were_not_made_alike(self, tmp_path: Path) -> None:
        write_trident_features(tmp_path / "a.h5", tiles("a"), features("a"), "e")
        write_trident_features(tmp_path / "b.h5", tiles("b"), features("b")[:, :3], "e")
        with pytest.raises(RecipeMismatch, match=r"b\.h5 has dim 3, not 4 as a\.h5 has"):
            open_bags(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            torch.zeros(3),
            torch.zeros(2, 3, dtype=torch.int64),
            {"features": torch.zeros(2, 3)},
            Path("anything that is no tensor"),
        ],
    )
    def test_a_pt_file_of_something_else(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(StoreError, match=r"a\.pt: (holds|cannot be read as a tensor)"):
            open_bags(tmp_path)

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_broken_files_are_named(self, tmp_path: Path, share: float) -> None:
        for kind in ("h5_files", "pt_files"):
            folder = clam(tmp_path) / kind
            (path,) = folder.glob("b.*")
            content = path.read_bytes()
            path.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(StoreError, match=r"b\.(h5|pt): cannot be read"):
                open_bags(folder)

    def test_older_and_half_precision_tensors(self, tmp_path: Path) -> None:
        torch.save(
            torch.from_numpy(features("b")), tmp_path / "a.pt",
            _use_new_zipfile_serialization=False,
        )  # fmt: skip
        torch.save(torch.from_numpy(features("b")).bfloat16(), tmp_path / "b.pt")
        torch.save(torch.from_numpy(features("b")).half(), tmp_path / "c.pt")
        bags = open_bags(tmp_path)
        np.testing.assert_array_equal(bags.read(0), features("b"))
        assert [bags.read(i).dtype for i in range(3)] == [np.float32, np.float32, np.float16]
        np.testing.assert_allclose(bags.read(1, np.array([2, 0])), features("b")[[2, 0]], rtol=1e-2)

    def test_coordinates_that_are_none(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["features"], file["coords"] = np.ones((2, 3)), np.full((2, 2), np.nan)
        bags = open_bags(tmp_path)
        assert bags.read(0).dtype == np.float32
        with pytest.raises(StoreError, match="not finite"):
            bags.corners(0)

    def test_one_name_twice(self, tmp_path: Path) -> None:
        folder = stamp(tmp_path)
        write_stamp(folder / "e" / "again" / "a.h5", tiles("a"), features("a"), "e", "1")
        with pytest.raises(InvalidConfig, match="several files of a; a slide's name"):
            open_bags(folder)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match="holds no features"):
            open_bags(tmp_path)
        with pytest.raises(InvalidConfig, match="is no folder"):
            open_bags(tmp_path / "x")
        (tmp_path / "h5_files").mkdir()
        with pytest.raises(InvalidConfig, match=r"h5_files: holds no \.h5"):
            open_bags(tmp_path)


KNOWN = {"encoder": "e", "dim": 4, "recipe_sha256": "aa", "mpp": 0.5, "tile_px": 256, "stain": ""}


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"encoder": "f"}, "encoder f, not e"),
        ({"dim": 5}, "dim 5, not 4"),
        ({"recipe_sha256": "b" * 64}, "recipe bbbbbbbbbbbb, not aa"),
        ({"recipe_sha256": ""}, ""),
        ({"stain": "cc"}, "stain cc, not none"),
        ({"mpp": 0.505}, ""),
        ({"mpp": 1.0}, "mpp 1, not 0.5"),
        ({"mpp": None, "tile_px": None}, ""),
        ({"tile_px": 224}, "tile_px 224, not 256"),
    ],
)
def test_what_differs(other: dict[str, Any], why: str) -> None:
    assert facts_difference(KNOWN, {**KNOWN, **other}) == why
