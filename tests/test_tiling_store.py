"""The store: complete or visibly not, whatever kills the writer; the same bytes every time."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip import durable
from coverslip.errors import IncompleteStage, StoreBusy, StoreError, StoreVersion
from coverslip.tiling.lock import _Watch, is_free, lock
from coverslip.tiling.shards import RowArray, crc32c
from coverslip.tiling.store import SlideStore, StageWriter
from coverslip.worker_identity import own_marks

FACTS = {"name": "case-1", "size": [3000, 2000], "mpp": [0.25, 0.25], "fingerprint": "aa"}
TILES, BLOCK = 50, 8


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def rows(count: int, *row: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 255, (count, *row))
    return values.astype(dtype)


def write_in_blocks(stage: StageWriter, arrays: Mapping[str, np.ndarray], block: int) -> None:
    total = len(next(iter(arrays.values())))
    for number in range(stage.done_blocks, -(-total // block)):
        rows = slice(number * block, (number + 1) * block)
        stage.write_block(number, {name: values[rows] for name, values in arrays.items()})


def spilled(number: int) -> dict[str, np.ndarray]:
    """Block `number` of a stage of unknown total: `number % 3` outlines of growing length."""
    generator = np.random.default_rng(number)
    lengths = np.arange(number % 3) + 3
    return {
        "centroid": generator.random((len(lengths), 2)),
        "polygon_offset": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "polygon": generator.random((int(lengths.sum()), 2)).astype(np.float32),
    }


def write_everything(path: Path, pause: float = 0.0) -> None:
    """A store with a stage of every kind; whatever is there already is gone on with."""
    store = SlideStore.open_or_create(path, FACTS)
    if not store.is_current("tiles/g", {"tile": 16}):
        with store.stage("tiles/g", {"tile": 16}) as stage:
            stage.create_array("boxes", (TILES, 4), "int32", rows_per_block=1024)
            write_in_blocks(stage, {"boxes": rows(TILES, 4, dtype="int32")}, 1024)
            stage.finish({"grid": {"tile": 16}})
    if not store.is_current("pixels/g", {}, needs=["tiles/g"]):
        pixels = rows(TILES, 16, 16, 3, seed=1, dtype="uint8")
        with store.stage("pixels/g", {}, needs=["tiles/g"]) as stage:
            stage.create_array(
                "pixels", pixels.shape, "uint8", rows_per_block=BLOCK, chunk_rows=1, codec="jpeg"
            )
            stage.create_array("focus", (TILES,), "float32", rows_per_block=BLOCK)
            for number in range(stage.done_blocks, -(-TILES // BLOCK)):
                block = slice(number * BLOCK, (number + 1) * BLOCK)
                columns = {"pixels": pixels[block], "focus": rows(TILES, seed=2)[block]}
                stage.write_block(number, columns)
                time.sleep(pause)
            stage.finish({})
    if not store.is_current("nuclei/m", {}, needs=["tiles/g"]):
        with store.stage("nuclei/m", {}, needs=["tiles/g"]) as stage:
            for number in range(stage.done_blocks, 12):
                stage.append_block(number, spilled(number))
                time.sleep(pause)
            stage.finish({"classes": ["nucleus"]})


@pytest.fixture
def store(tmp_path: Path) -> SlideStore:
    return SlideStore.open_or_create(tmp_path / "case-1.zarr", FACTS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("undisturbed") / "case-1.zarr"
    write_everything(path)
    return tree(path)


HERE = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
DEATHS = range(0, 110, 5)
DIE_AT_EACH_FLUSH = """
import os, sys
from pathlib import Path
import test_tiling_store as t
import coverslip.tiling.jpeg_codec
real = os.fsync
for death in t.DEATHS:
    if not os.fork():  # dies without any clean-up
        left = iter(range(death))
        os.fsync = lambda handle: os._exit(9) if next(left, None) is None else real(handle)
        t.write_everything(Path(sys.argv[1]) / str(death) / "case-1.zarr")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores by the number of flushes after which their writer died."""
    folder = tmp_path_factory.mktemp("deaths")
    command = [sys.executable, "-c", HERE + DIE_AT_EACH_FLUSH, str(folder)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stdout.split().count("9") > 15
    return folder


class TestKilled:
    def test_twice_is_the_same_bytes(self, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
        write_everything(tmp_path / "again.zarr")
        assert tree(tmp_path / "again.zarr") == undisturbed

    def test_nothing_hidden_is_left(self, undisturbed: dict[str, bytes]) -> None:
        assert not [name for name in undisturbed if "/." in f"/{name}"]

    @pytest.mark.parametrize("seed", range(3))
    def test_kill_9_and_resume(
        self, tmp_path: Path, undisturbed: dict[str, bytes], seed: int
    ) -> None:
        path = tmp_path / "case-1.zarr"
        when = random.Random(seed)
        code = HERE + (
            "from pathlib import Path\nimport zarr, test_tiling_store as t\n"
            "print('ready', flush=True); t.write_everything(Path(sys.argv[1]), 0.01)"
        )
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
            )
            with process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(when.uniform(0.0, 0.5))
                process.send_signal(signal.SIGKILL)
            self.assert_nothing_lies(path, undisturbed)
        write_everything(path)
        assert tree(path) == undisturbed

    @pytest.mark.parametrize("death", DEATHS)
    def test_dying_at_any_flush(
        self, cut_short: Path, undisturbed: dict[str, bytes], death: int
    ) -> None:
        path = cut_short / str(death) / "case-1.zarr"
        self.assert_nothing_lies(path, undisturbed)
        write_everything(path)
        assert tree(path) == undisturbed

    def assert_nothing_lies(self, path: Path, undisturbed: dict[str, bytes]) -> None:
        """What says it is complete is complete."""
        if not (path / "zarr.json").exists():
            return
        store = SlideStore.open(path)
        for name in ("tiles/g", "pixels/g", "nuclei/m"):
            if store.state(name) == "complete":
                wanted = {k: v for k, v in undisturbed.items() if k.startswith(f"{name}/")}
                assert {f"{name}/{k}": v for k, v in tree(path / name).items()} == wanted
            else:
                with pytest.raises(IncompleteStage):
                    store.group(name)

    def test_a_resume_costs_at_most_one_block(self, store: SlideStore) -> None:
        values = rows(40, 3)
        stage = store.stage("features/a", {})
        stage.create_array("features", values.shape, "float32", rows_per_block=8)
        for number in range(3):
            stage.write_block(number, {"features": values[number * 8 : number * 8 + 8]})
        assert store.state("features/a") == "partial"
        resumed = SlideStore.open(store.path).stage("features/a", {})
        assert resumed.done_blocks == 3

    def test_a_crash_between_finishing_and_recording_costs_nothing(self, store: SlideStore) -> None:
        stage = store.stage("features/a", {})
        stage.create_array("features", (4, 2), "float32", rows_per_block=8)
        stage.write_block(0, {"features": rows(4, 2)})
        stage._on_complete = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[misc]
        with pytest.raises(KeyboardInterrupt):
            stage.finish({})
        again = SlideStore.open(store.path)
        assert again.state("features/a") == "absent"
        assert again.is_current("features/a", {})
        assert again.state("features/a") == "complete"
        assert not list(store.path.rglob(".*"))

    def test_half_a_removal_is_not_taken_for_a_result(self, store: SlideStore) -> None:
        with store.stage("features/a", {}) as stage:
            stage.finish({})
        store.stage("features/a", {"other": 1})
        assert not SlideStore.open(store.path).is_current("features/a", {})


class TestReading:
    @given(
        total=st.integers(0, 60),
        block=st.integers(1, 20),
        dtype=st.sampled_from(["uint8", "int32", "int64", "float32", "float64", "bool"]),
        row=st.sampled_from([(), (3,), (2, 5)]),
        data=st.data(),
    )
    @settings(max_examples=25, deadline=None)
    def test_rows_come_back_through_zarr(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        total: int,
        block: int,
        dtype: str,
        row: tuple[int, ...],
        data: st.DataObject,
    ) -> None:
        chunk = data.draw(st.sampled_from([d for d in range(1, block + 1) if block % d == 0]))
        store = SlideStore.open_or_create(tmp_path_factory.mktemp("s") / "a.zarr", FACTS)
        values = rows(total, *row, dtype=dtype)
        with store.stage("features/a", {}) as stage:
            stage.create_array(
                "x", values.shape, dtype, rows_per_block=block, chunk_rows=chunk, codec="lossless"
            )
            write_in_blocks(stage, {"x": values}, block)
            stage.finish({"of": "x"})
        group = store.group("features/a")
        assert group.attrs["of"] == "x"
        np.testing.assert_array_equal(group["x"][:], values)
        if total:
            np.testing.assert_array_equal(group["x"][total // 2], values[total // 2])

    @given(lengths=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=6))
    @settings(max_examples=20, deadline=None)
    def test_ragged_blocks_are_joined(
        self, tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]]
    ) -> None:
        store = SlideStore.open_or_create(tmp_path_factory.mktemp("s") / "a.zarr", FACTS)
        with store.stage("nuclei/a", {}) as stage:
            for number, block in enumerate(lengths):
                offset = np.concatenate([[0], np.cumsum(block)]).astype(np.int64)
                vertices = rows(int(offset[-1]), 2, seed=number)
                stage.append_block(number, {"p_offset": offset, "p": vertices})
            stage.finish({})
        group = store.group("nuclei/a")
        every = [length for block in lengths for length in block]
        np.testing.assert_array_equal(np.diff(group["p_offset"][:]), every)
        assert group["p_offset"][0] == 0
        wanted = [rows(sum(block), 2, seed=n) for n, block in enumerate(lengths)]
        np.testing.assert_array_equal(group["p"][:], np.concatenate(wanted))

    def test_merging_more_than_a_shard(
        self, store: SlideStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("coverslip.tiling.stage_writer.MERGED_SHARD", 8)
        monkeypatch.setattr("coverslip.tiling.stage_writer.MERGED_CHUNK", 4)
        values = rows(53, 2)
        with store.stage("nuclei/a", {}) as stage:
            for number, start in enumerate(range(0, 53, 5)):
                stage.append_block(number, {"centroid": values[start : start + 5]})
            stage.finish({})
        np.testing.assert_array_equal(store.group("nuclei/a")["centroid"][:], values)
        assert len(list((store.path / "nuclei/a/centroid").glob("c.*"))) == 7

    def test_wide_rows_have_smaller_chunks(
        self, store: SlideStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("coverslip.tiling.stage_writer.MERGED_SHARD", 8 * 16)
        monkeypatch.setattr("coverslip.tiling.stage_writer.MERGED_CHUNK", 16)
        values = rows(53, 8, 4)  # eight times as wide as there are rows for
        with store.stage("maps/a", {}) as stage:
            stage.append_block(0, {"cells": rows(3, 2)})
            stage.finish({}, {"chance": values})
        array = store.group("maps/a")["chance"]
        np.testing.assert_array_equal(array[:], values)
        assert (array.chunks, array.shards) == ((2, 8, 4), (16, 8, 4))

    def test_what_died_before_its_group_was_in_place_ends_as_well(
        self, store: SlideStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(self: Path, target: Path) -> None:
            raise KeyboardInterrupt

        kept = rows(3, 2, seed=1)
        with monkeypatch.context() as dying, store.stage("glands/a", {}) as stage:
            dying.setattr(Path, "rename", die)
            stage.append_block(0, {"centroid": rows(5, 2)})
            assert len(list(stage.spilled())) == 1
            with pytest.raises(KeyboardInterrupt):
                stage.finish({}, {"centroid": kept})
        with store.stage("glands/a", {}) as stage:
            assert list(stage.spilled()) == []  # merged already
            stage.finish({}, {"centroid": rows(0, 2)})
        np.testing.assert_array_equal(store.group("glands/a")["centroid"][:], kept)

    def test_jpeg_tiles_look_the_same(self, store: SlideStore) -> None:
        y, x = np.mgrid[:32, :32]
        tile = np.stack([x * 8, y * 8, (x + y) * 4], axis=-1).astype(np.uint8)
        pixels = np.stack([tile, tile[::-1], tile[:, ::-1]])
        with store.stage("pixels/g", {}) as stage:
            stage.create_array(
                "pixels", pixels.shape, "uint8", rows_per_block=8, chunk_rows=1, codec="jpeg"
            )
            stage.write_block(0, {"pixels": pixels})
            stage.finish({})
        read = store.group("pixels/g")["pixels"][:]
        assert np.abs(read.astype(int) - pixels).mean() < 2

    @pytest.mark.parametrize("codec", ["jpeg", "lossless"])
    def test_rows_encoded_as_they_come_are_the_same_bytes(self, tmp_path: Path, codec: Any) -> None:
        tiles, trees = rows(20, 16, 16, 3, dtype="uint8"), []
        for name, step in (("whole", 8), ("bit-by-bit", 3)):
            store = SlideStore.open_or_create(tmp_path / f"{name}.zarr", FACTS)
            with store.stage("pixels/g", {}) as stage:
                stage.create_array(
                    "pixels", tiles.shape, "uint8", rows_per_block=8, chunk_rows=1, codec=codec
                )
                if name == "whole":
                    write_in_blocks(stage, {"pixels": tiles}, 8)
                else:
                    parts = [
                        stage.encode("pixels", tiles[i : i + step]) for i in range(0, 20, step)
                    ]
                    write_in_blocks(stage, {"pixels": np.concatenate(parts)}, 8)
                stage.finish({})
            trees.append(tree(store.path))
        assert trees[0] == trees[1]

    def test_only_single_rows_can_be_encoded(self, store: SlideStore) -> None:
        stage = store.stage("features/a", {})
        stage.create_array("features", (20, 3), "float32", rows_per_block=8)
        with pytest.raises(ValueError, match="cannot be encoded one by one"):
            stage.encode("features", rows(4, 3))

    def test_the_whole_store_is_one_zarr_hierarchy(self, tmp_path: Path) -> None:
        write_everything(tmp_path / "a.zarr")
        root = zarr.open_group(tmp_path / "a.zarr", mode="r")
        assert sorted(root.group_keys()) == ["nuclei", "pixels", "tiles"]
        assert root["tiles/g/boxes"].shape == (TILES, 4)

    def test_the_checksum_is_castagnoli(self) -> None:
        assert crc32c(b"123456789") == 0xE3069283


class TestCurrency:
    def finish(self, store: SlideStore, name: str, parameters: dict[str, Any], *needs: str) -> None:
        with store.stage(name, parameters, needs=needs) as stage:
            stage.finish({})

    def test_other_parameters_end_what_stands_on_them_and_nothing_else(
        self, store: SlideStore
    ) -> None:
        self.finish(store, "tissue", {"mpp": 8})
        self.finish(store, "tiles/g", {}, "tissue")
        self.finish(store, "features/a@g", {}, "tiles/g")
        self.finish(store, "stain", {})
        store.stage("tissue", {"mpp": 4})
        assert store.stages() == ["stain"]
        assert not (store.path / "features/a@g").exists()
        assert SlideStore.open(store.path).stages() == ["stain"]

    def test_the_same_result_again_leaves_what_stands_on_it(self, store: SlideStore) -> None:
        self.finish(store, "tissue", {"mpp": 8})
        self.finish(store, "tiles/g", {}, "tissue")
        self.finish(store, "tissue", {"mpp": 8})
        assert store.is_current("tiles/g", {}, needs=["tissue"])

    def test_another_pixel_size_makes_everything_stale(self, store: SlideStore) -> None:
        self.finish(store, "tissue", {})
        again = SlideStore.open_or_create(store.path, {**FACTS, "mpp": [0.5, 0.5]})
        assert not again.is_current("tissue", {})

    def test_a_fact_that_decides_no_pixel_changes_nothing(self, store: SlideStore) -> None:
        self.finish(store, "tissue", {})
        again = SlideStore.open_or_create(store.path, {**FACTS, "vendor": "aperio"})
        assert again.is_current("tissue", {})
        assert SlideStore.open(store.path).slide["vendor"] == "aperio"

    def test_a_stage_needs_complete_ones(self, store: SlideStore) -> None:
        store.stage("tissue", {})
        assert not store.is_current("tiles/g", {}, needs=["tissue"])
        with pytest.raises(IncompleteStage, match="tissue"):
            store.stage("tiles/g", {}, needs=["tissue"])

    def test_the_record_tells_what_decided_it(self, store: SlideStore) -> None:
        self.finish(store, "tissue", {"mpp": 8})
        self.finish(store, "tiles/g", {"tile": 256}, "tissue")
        record = store.record("tiles/g")
        assert record.parameters == {"tile": 256}
        assert record.needs == {"tissue": store.record("tissue").hash}

    def test_another_layout_starts_over(self, store: SlideStore) -> None:
        stage = store.stage("features/a", {})
        stage.create_array("focus", (20,), "float32", rows_per_block=4)
        stage.create_array("features", (20, 3), "float32", rows_per_block=4)
        stage.write_block(0, {"features": rows(4, 3), "focus": rows(4)})
        stage = store.stage("features/a", {})
        stage.create_array("focus", (20,), "float32", rows_per_block=4)
        assert stage.done_blocks == 1
        stage.create_array("features", (20, 3), "float32", rows_per_block=5)
        assert stage.done_blocks == 0
        assert (stage.path / "focus" / "zarr.json").exists()

    @pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", ".a", "a/.b", "a//b", "a\\b"])
    def test_names_stay_inside(self, store: SlideStore, name: str) -> None:
        with pytest.raises(ValueError, match="no name for a stage"):
            store.stage(name, {})


class TestMisuse:
    def test_blocks_in_turn_and_of_their_shape(self, store: SlideStore) -> None:
        stage = store.stage("features/a", {})
        stage.create_array("features", (20, 3), "float32", rows_per_block=8)
        with pytest.raises(ValueError, match="block 0 is next, got 1"):
            stage.write_block(1, {"features": rows(8, 3)})
        with pytest.raises(ValueError, match=r"block 0 is \(8, 3\), got \(7, 3\)"):
            stage.write_block(0, {"features": rows(7, 3)})
        with pytest.raises(TypeError):
            stage.write_block(0, {"features": rows(8, 3).astype(complex)})

    def test_a_stage_with_missing_blocks_cannot_be_finished(self, store: SlideStore) -> None:
        stage = store.stage("features/a", {})
        stage.create_array("features", (20, 3), "float32", rows_per_block=8)
        stage.write_block(0, {"features": rows(8, 3)})
        with pytest.raises(ValueError, match="features has 3 blocks, 1 are written"):
            stage.finish({})

    def test_a_layout_that_means_nothing(self) -> None:
        with pytest.raises(ValueError, match="must divide"):
            RowArray((10, 3), "uint8", 8, 3)
        with pytest.raises(ValueError, match="one per chunk"):
            RowArray((10, 4, 4, 3), "uint8", 8, 2, "jpeg")
        with pytest.raises(ValueError, match="'png'"):
            RowArray((10, 4, 4, 3), "uint8", 8, 2, "png")  # type: ignore[arg-type]

    def test_an_unknown_schema_is_refused_by_name(self, store: SlideStore) -> None:
        path = store.path / "zarr.json"
        content = orjson.loads(path.read_bytes())
        content["attributes"]["coverslip"]["schema"] = 99
        path.write_bytes(orjson.dumps(content))
        with pytest.raises(StoreVersion, match="schema 99, this engine knows 1"):
            SlideStore.open(store.path)

    def test_another_file_under_the_name_is_refused(self, store: SlideStore) -> None:
        with pytest.raises(StoreError, match="the file has changed\n  remove the store"):
            SlideStore.open_or_create(store.path, {**FACTS, "fingerprint": "bb"})

    def test_what_is_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="no store"):
            SlideStore.open(tmp_path)
        (tmp_path / "zarr.json").write_text("{")
        with pytest.raises(StoreError, match="cannot be read"):
            SlideStore.open(tmp_path)
        zarr.create_group(tmp_path / "image.zarr")
        with pytest.raises(StoreError, match="no slide's store"):
            SlideStore.open_or_create(tmp_path / "image.zarr", FACTS)

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "old.zarr").mkdir()
        (tmp_path / "old.zarr" / ".zgroup").write_text("{}")
        with pytest.raises(StoreError, match="is there already, and is no store"):
            SlideStore.open_or_create(tmp_path / "old.zarr", FACTS)
        assert os.listdir(tmp_path / "old.zarr") == [".zgroup"]


class TestDisk:
    def test_a_full_disk_says_so_and_stays_resumable(
        self, store: SlideStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = rows(24, 3)
        stage = store.stage("features/a", {})
        stage.create_array("features", values.shape, "float32", rows_per_block=8)
        stage.write_block(0, {"features": values[:8]})

        def full(path: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(durable, "flush_to_disk", full)
            with pytest.raises(StoreError, match=r"c\.1\.0: .*No space left") as caught:
                stage.write_block(1, {"features": values[8:16]})
        assert "free space" in caught.value.hint
        assert not list(store.path.rglob(".writing-*"))
        stage = SlideStore.open(store.path).stage("features/a", {})
        assert stage.done_blocks == 1
        stage.create_array("features", values.shape, "float32", rows_per_block=8)
        write_in_blocks(stage, {"features": values}, 8)
        stage.finish({})
        again = SlideStore.open(store.path)
        np.testing.assert_array_equal(again.group("features/a")["features"][:], values)

    def test_a_read_only_disk_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read_only(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr("tempfile.mkstemp", read_only)
        with pytest.raises(StoreError, match=r"Read-only file system\n  make the folder writable"):
            SlideStore.open_or_create(tmp_path / "a.zarr", FACTS)


class TestLock:
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "case-1.zarr"

    def test_one_at_a_time_and_nothing_left(self, tmp_path: Path) -> None:
        with lock(self.path(tmp_path)):
            with (
                pytest.raises(StoreBusy, match=f"process {os.getpid()} on .* is working"),
                lock(self.path(tmp_path)),
            ):
                pass
            assert (tmp_path / "case-1.lock").exists()
        assert os.listdir(tmp_path) == []

    def test_a_dead_process_holds_nothing(self, tmp_path: Path) -> None:
        code = (
            "import os\nfrom pathlib import Path\nfrom coverslip.tiling.lock import lock\n"
            f"context = lock(Path({str(self.path(tmp_path))!r}))\n"
            "context.__enter__()\nos._exit(9)"
        )
        subprocess.run([sys.executable, "-c", code], check=False)
        assert (tmp_path / "case-1.lock").exists()
        with lock(self.path(tmp_path)):
            pass
        assert os.listdir(tmp_path) == []

    def elsewhere(self, tmp_path: Path) -> Path:
        """The lock of a process of another machine."""
        file = tmp_path / "case-1.lock"
        file.write_bytes(orjson.dumps({"host": "elsewhere", "place": "p", "pid": 1, "token": "t"}))
        return file

    def test_another_machine_is_watched_and_no_clock_compared(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("coverslip.tiling.lock._watch", _Watch())
        file, now = self.elsewhere(tmp_path), [1000.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        os.utime(file, (1, 1))  # years ago, by this machine's clock
        with (
            pytest.raises(StoreBusy, match=r"process 1 on elsewhere .*\n.*takes over after 120 s"),
            lock(self.path(tmp_path)),
        ):
            pass
        for second in range(0, 119, 7):  # it lives: it beats once in a while
            now[0] = 1000.0 + second
            assert not is_free(self.path(tmp_path))
        os.utime(file, (2, 2))
        for second in range(119, 210, 7):
            now[0] = 1000.0 + second
            assert not is_free(self.path(tmp_path))
        now[0] += 10_000  # everything stood still, the watcher too: that proves nothing
        assert not is_free(self.path(tmp_path))
        looks = 0
        while not is_free(self.path(tmp_path)):
            now[0] += 7
            looks += 1
        assert looks == 4  # 84 s, a heartbeat's 10 and 4 times 7
        assert os.listdir(tmp_path) == []

    def test_it_can_be_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("coverslip.tiling.lock._watch", _Watch())
        monkeypatch.setattr("coverslip.tiling.lock.SILENT_S", 0.2)
        self.elsewhere(tmp_path)
        with lock(self.path(tmp_path), wait_s=5):
            pass
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("failing", [False, True])
    def test_whoever_was_overtaken_says_so(self, tmp_path: Path, failing: bool) -> None:
        """Its own failure may have been the other's doing, so it counts for nothing."""
        other = {"host": "elsewhere", "place": "p", "pid": 1, "token": "theirs"}

        def overtaken() -> None:
            with lock(self.path(tmp_path)):
                (tmp_path / "case-1.lock").write_bytes(orjson.dumps(other))
                if failing:
                    raise StoreError(tmp_path, "a file has vanished")

        with pytest.raises(StoreBusy, match="taken over"):
            overtaken()
        assert orjson.loads((tmp_path / "case-1.lock").read_bytes()) == other
        os.unlink(tmp_path / "case-1.lock")

    def test_a_zombie_holds_nothing(self, tmp_path: Path) -> None:
        code = (
            "from pathlib import Path\nfrom coverslip.tiling.lock import lock\n"
            f"lock(Path({str(self.path(tmp_path))!r})).__enter__()\nimport os\nos._exit(9)"
        )
        process = subprocess.Popen([sys.executable, "-c", code])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_free(self.path(tmp_path))
        process.wait()

    def test_of_many_who_find_it_dead_one_wins_at_a_time(self, tmp_path: Path) -> None:
        marks = {**own_marks(), "pid": 2**22 + 1, "token": "t"}
        (tmp_path / "case-1.lock").write_bytes(orjson.dumps(marks))
        code = (
            "import os, sys, time\nfrom pathlib import Path\n"
            "from coverslip.errors import StoreBusy\nfrom coverslip.tiling.lock import lock\n"
            "sys.stdin.readline()\n"
            "for _ in range(40):\n"
            "    try:\n"
            f"        with lock(Path({str(self.path(tmp_path))!r})):\n"
            f"            os.close(os.open({str(tmp_path / 'inside')!r}, os.O_CREAT | os.O_EXCL))\n"
            f"            os.unlink({str(tmp_path / 'inside')!r})\n"
            "    except StoreBusy:\n"
            "        time.sleep(0.001)\n"
        )
        command = [sys.executable, "-c", code]
        processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(4)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=60)
        assert [process.returncode for process in processes] == [0, 0, 0, 0]
        assert os.listdir(tmp_path) == []


def test_a_store_can_be_moved(tmp_path: Path) -> None:
    write_everything(tmp_path / "a.zarr")
    shutil.move(tmp_path / "a.zarr", tmp_path / "b.zarr")
    store = SlideStore.open(tmp_path / "b.zarr")
    assert store.group("nuclei/m")["centroid"].shape == (12, 2)
    assert str(tmp_path).encode() not in b"".join(tree(store.path).values())
