"""Rows of embeddings read straight from files: what zarr reads, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.errors import StoreError
from coverslip.tiling.shards import RowArray
from coverslip.tiling.store import SlideStore
from coverslip.tiling.stored_rows import RawRows, stored_rows

FACTS = {"fingerprint": "1-aa"}
STAGE = "features/e@g"


def values(rows: int, width: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, width)).astype(dtype)


def write(path: Path, array: np.ndarray, block: int, codec: Any = "raw") -> Path:
    """A store with one stage; the array's folder."""
    store = SlideStore.create(path, FACTS)
    with store.stage(STAGE, {}) as stage:
        stage.create_array(
            "features", array.shape, array.dtype.name, rows_per_block=block, codec=codec
        )
        for number, start in enumerate(range(0, len(array), block)):
            stage.write_block(number, {"features": array[start : start + block]})
        stage.finish({})
    return path / STAGE / "features"


@given(
    count=st.integers(1, 60),
    width=st.integers(1, 5),
    block=st.integers(1, 16),
    dtype=st.sampled_from(["float16", "float32"]),
    codec=st.sampled_from(["raw", "zstd"]),
    data=st.data(),
)
@settings(max_examples=10, deadline=None)
def test_rows_are_those_that_zarr_reads(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    width: int,
    block: int,
    dtype: str,
    codec: str,
    data: st.DataObject,
) -> None:
    array = values(count, width, dtype)
    folder = write(tmp_path_factory.mktemp("s") / "a.zarr", array, block, codec)
    by_zarr = zarr.open_array(folder, mode="r")
    np.testing.assert_array_equal(by_zarr[:], array)
    np.testing.assert_array_equal(by_zarr[count // 2], array[count // 2])
    found = stored_rows(folder)
    assert found.shape == (count, width)
    picked = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=80)), np.int64)
    for _ in range(2):  # the second time its blocks are known to be sound
        rows = found.read(picked)
        assert rows.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(rows, array[picked])
    np.testing.assert_array_equal(found.read(), array)
    np.testing.assert_array_equal(stored_rows(folder).read(), array)


def test_a_few_rows_of_many(tmp_path: Path) -> None:
    array = values(3000, 4)
    rows = stored_rows(write(tmp_path / "a.zarr", array, 512))
    few = np.array([2999, 5, 1400])
    np.testing.assert_array_equal(rows.read(few), array[few])
    np.testing.assert_array_equal(rows.read(few), array[few])
    with pytest.raises(IndexError, match=r"rows -1\.\.2 of 3000"):
        rows.read(np.array([-1, 2]))
    with pytest.raises(IndexError, match=r"rows 3000\.\.3000 of 3000"):
        rows.read(np.array([3000]))


def test_what_is_read_may_be_written_to(tmp_path: Path) -> None:
    rows = stored_rows(write(tmp_path / "a.zarr", values(20, 3), 8))
    for _ in range(2):
        for read in (rows.read(), rows.read(np.arange(5))):
            read += 1
    np.testing.assert_array_equal(rows.read(), values(20, 3))


class TestRaw:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write(tmp_path / "a.zarr", values(20, 3), 8)

    def test_one_file_of_blocks_with_checksums(self, folder: Path) -> None:
        assert sorted(p.name for p in folder.iterdir()) == ["c.0.0", "zarr.json"]
        content = (folder / "c.0.0").read_bytes()
        assert len(content) == 3 * (8 * 3 * 4 + 4) + 3 * 16 + 4
        assert content[: 8 * 3 * 4] == values(20, 3)[:8].tobytes()

    @pytest.mark.parametrize("place", [0, 100, 150, 205])
    def test_damage_is_found_whole_or_in_part(self, folder: Path, place: int) -> None:
        content = bytearray((folder / "c.0.0").read_bytes())
        content[place] ^= 1
        (folder / "c.0.0").write_bytes(content)
        block = place // 100
        for rows in (None, np.array([8 * block + 1])):
            with pytest.raises(StoreError, match=rf"c\.0\.0: does not fit.* block {block}"):
                stored_rows(folder).read(rows)
        other = 8 * ((block + 1) % 3)
        np.testing.assert_array_equal(
            stored_rows(folder).read(np.array([other])), values(20, 3)[[other]]
        )
        with pytest.raises(ValueError, match="checksum"):  # zarr sees it too
            zarr.open_array(folder, mode="r")[:]

    def test_a_file_cut_short(self, folder: Path) -> None:
        whole = (folder / "c.0.0").read_bytes()
        (folder / "c.0.0").write_bytes(whole[:-1])
        with pytest.raises(StoreError, match="holds 351 bytes, not 352"):
            stored_rows(folder).read()

    def test_another_index(self, folder: Path) -> None:
        content = bytearray((folder / "c.0.0").read_bytes())
        content[305] ^= 1
        (folder / "c.0.0").write_bytes(content)
        with pytest.raises(StoreError, match="another index"):
            stored_rows(folder).read(np.array([0]))

    def test_a_file_that_is_gone(self, folder: Path) -> None:
        rows = stored_rows(folder)
        rows.read()
        (folder / "c.0.0").unlink()
        with pytest.raises(StoreError, match=r"c\.0\.0: cannot be read: No such file"):
            rows.read()

    def test_killed_within_a_block_it_goes_on(self, tmp_path: Path, folder: Path) -> None:
        store = SlideStore.create(tmp_path / "b.zarr", FACTS)

        def begin() -> Any:
            stage = store.stage(STAGE, {})
            stage.create_array("features", (20, 3), "float32", rows_per_block=8, codec="raw")
            return stage

        stage = begin()
        stage.write_block(0, {"features": values(20, 3)[:8]})
        with open(stage.path / "features" / "c.0.0", "ab") as file:
            file.write(b"half a block, and then the lights went out")
        stage = begin()
        assert stage.done_blocks == 1
        for number in (1, 2):
            stage.write_block(number, {"features": values(20, 3)[8 * number : 8 * number + 8]})
        stage.finish({})
        found = tmp_path / "b.zarr" / STAGE / "features"
        assert (found / "c.0.0").read_bytes() == (folder / "c.0.0").read_bytes()

    def test_what_was_written_and_is_gone_is_noticed(self, tmp_path: Path) -> None:
        stage = SlideStore.create(tmp_path / "b.zarr", FACTS).stage(STAGE, {})
        stage.create_array("features", (20, 3), "float32", rows_per_block=8, codec="raw")
        stage.write_block(0, {"features": values(20, 3)[:8]})
        (stage.path / "features" / "c.0.0").write_bytes(b"")
        with pytest.raises(StoreError, match="shorter than the 1 blocks"):
            stage.write_block(1, {"features": values(20, 3)[8:16]})

    def test_raw_blocks_are_whole(self) -> None:
        with pytest.raises(ValueError, match="one chunk each"):
            RowArray((20, 3), "float32", 8, 4, "raw")


@pytest.mark.parametrize("damage", [b"", b"no zstd at all", None])
def test_broken_zstd(tmp_path: Path, damage: bytes | None) -> None:
    folder = write(tmp_path / "a.zarr", values(20, 3), 8, "zstd")
    if damage is None:
        (folder / "c.1.0").unlink()
    else:
        (folder / "c.1.0").write_bytes(damage)
    with pytest.raises(StoreError, match=r"c\.1\.0: cannot be"):
        stored_rows(folder).read()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_type", "float64"),
        ("shape", [20]),
        ("shape", [20, 4]),
        ("shape", [50, 3]),
        ("shape", [0, 3]),
        ("shape", "no"),
        ("codecs", []),
        ("codecs", [{"name": "bytes", "configuration": {"endian": "big"}}]),
        ("chunk_key_encoding", {"name": "v2"}),
        ("chunk_grid", None),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    folder = write(tmp_path / "a.zarr", values(20, 3), 8)
    assert isinstance(stored_rows(folder), RawRows)
    content = orjson.loads((folder / "zarr.json").read_bytes())
    (folder / "zarr.json").write_bytes(orjson.dumps({**content, key: value}))
    with pytest.raises(StoreError, match="features: is "):
        stored_rows(folder)


def test_absurd_blocks_are_refused(tmp_path: Path) -> None:
    array = RowArray((2**30, 1024), "float32", 2**20, 2**20, "raw")
    (tmp_path / "zarr.json").write_bytes(orjson.dumps(array.metadata()))
    with pytest.raises(StoreError, match="claims blocks"):
        stored_rows(tmp_path)
