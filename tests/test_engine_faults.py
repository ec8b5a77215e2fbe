"""Faults in the middle of runs, and what verify sees and mends; the longer run of the same is
`benchmarks/faults.py`."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
from pathlib import Path

import orjson
import pytest
from faulty_runs import (
    DiskOperations,
    counted_operations,
    jumping_clock,
    killed_at,
    refused_from,
    results,
    run_in_fork,
)

from coverslip.cli import main
from coverslip.durable import remove_unfinished, unfinished_prefix
from coverslip.engine.verify import verdicts
from coverslip.tiling.lock import lock
from coverslip.tiling.store import SlideStore
from coverslip.tiling.verification import store_findings

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes that have run")
QUICK = (
    "--encoder", "none", "--tile", "256", "--export", "geojson,h5,parquet", "--pixels", "jpeg",
    "--image", "carried", "--json",
)  # fmt: skip


class Standard:
    """A slide, what an undisturbed run leaves of it, and how many changes to the disk it makes."""

    def __init__(self, slide: Path, folder: Path) -> None:
        self.slide, self.folder = slide, folder / "sound"
        assert main(["run", str(slide), "-o", str(folder / "warm"), *QUICK]) == 0
        self.operations = counted_operations(slide, self.folder, QUICK)
        self.results = results(self.folder)

    def resumed(self, output: Path) -> dict[str, bytes]:
        ended = run_in_fork(self.slide, output, options=QUICK)
        assert ended.code == 0, ended.said
        return results(output)


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory, jpeg_slide: Path) -> Standard:
    return Standard(jpeg_slide, tmp_path_factory.mktemp("faults"))


@pytest.fixture
def copied(standard: Standard, tmp_path: Path) -> Path:
    """A copy of what the undisturbed run left, to be damaged."""
    shutil.copytree(standard.folder, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("seed", range(3))
def test_killed_before_any_change_to_the_disk(
    standard: Standard, tmp_path: Path, seed: int
) -> None:
    at = random.Random(seed).randint(1, standard.operations)
    ended = run_in_fork(standard.slide, tmp_path / "out", prepared=killed_at(at), options=QUICK)
    assert ended.code == -signal.SIGKILL
    assert all(v.sound for v in verdicts(tmp_path / "out")) if at > 40 else True
    assert standard.resumed(tmp_path / "out") == standard.results


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")],
)
def test_refused_by_the_disk(standard: Standard, tmp_path: Path, number: int, says: str) -> None:
    at = random.Random(number).randint(1, standard.operations)
    refused = refused_from(at, number)
    ended = run_in_fork(standard.slide, tmp_path / "out", prepared=refused, options=QUICK)
    assert ended.code == 1
    assert says in ended.said
    assert "Traceback" not in ended.said
    assert standard.resumed(tmp_path / "out") == standard.results


def test_the_clock_decides_nothing(standard: Standard, tmp_path: Path) -> None:
    ended = run_in_fork(standard.slide, tmp_path / "out", prepared=jumping_clock(1), options=QUICK)
    assert ended.code == 0
    assert results(tmp_path / "out") == standard.results


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop(
    standard: Standard, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """At the 150th change to the disk, from within: a moment that is always inside the run."""

    def told(event: str, count: int) -> None:
        if count == 150:
            os.kill(os.getpid(), number)

    assert standard.operations > 200
    stopped = DiskOperations(told)
    ended = run_in_fork(standard.slide, tmp_path / "out", prepared=stopped, options=QUICK)
    assert ended.code == code
    assert f"stopped by {number.name}" in ended.said
    assert not ended.orphans
    assert not list((tmp_path / "out").glob("*.lock"))
    assert standard.resumed(tmp_path / "out") == standard.results


def test_what_killed_processes_left_is_removed(standard: Standard, copied: Path) -> None:
    """Names as a process of this host gives them that is gone, here and in an export's folder."""
    pid = os.fork()
    if not pid:
        for folder in (copied, copied / "geojson", copied / "report" / "jpeg"):
            (folder / f"{unfinished_prefix()}rest").write_bytes(b"half")
        os._exit(0)
    os.waitpid(pid, 0)
    assert list(copied.rglob(".writing-*"))
    assert standard.resumed(copied) == standard.results
    assert not list(copied.rglob(".writing-*"))


def test_an_export_s_half_written_file_is_told_from_those_of_living_processes(
    tmp_path: Path,
) -> None:
    """Killed with the first object written; the next run removes what it left, and a living
    process's file it leaves."""
    pid = os.fork()
    if not pid:
        from coverslip.export.geojson_writer import _Part

        _Part(tmp_path, ".geojson.gz")
        os._exit(0)
    os.waitpid(pid, 0)
    living = tmp_path / f"{unfinished_prefix()}mine"
    living.write_bytes(b"half")
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [living]


def test_a_claim_left_by_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    pid = os.fork()
    if not pid:  # dies while it removes its lock

        def dies(path: Path, missing_ok: bool = False) -> None:
            os._exit(0)

        with lock(store):
            Path.unlink = dies  # type: ignore[method-assign]
    os.waitpid(pid, 0)
    assert [path.name for path in tmp_path.glob(".a.lock.*.removing")]
    with lock(store):
        assert (tmp_path / "a.lock").exists()


class TestVerify:
    def test_a_finished_run_is_sound(
        self, standard: Standard, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["verify", str(standard.folder), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["findings"] == found["redo"] == []

    def test_every_flipped_byte_is_seen(self, standard: Standard, copied: Path) -> None:
        draw = random.Random(3)
        for name in draw.choices(sorted(standard.results), k=40):
            content = bytearray(standard.results[name])
            place = draw.randrange(len(content))
            content[place] ^= draw.randrange(1, 256)
            (copied / name).write_bytes(content)
            (verdict,) = verdicts(copied, decode=False)
            assert not verdict.sound, f"byte {place} of {name}"
            (copied / name).write_bytes(standard.results[name])
        assert all(verdict.sound for verdict in verdicts(copied))

    @pytest.mark.parametrize(
        "name",
        [
            "jpeg.zarr/zarr.json",
            "jpeg.zarr/tissue/mask/c.0.0",
            "jpeg.zarr/image/0/zarr.json",
            "jpeg.zarr/tiles/zarr.json",
            "geojson/jpeg.tissue.geojson.gz",
        ],
    )
    def test_repaired_and_run_again_all_is_as_it_was(
        self, standard: Standard, copied: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = bytearray((copied / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copied / name).write_bytes(content)
        assert main(["verify", str(copied)]) == 1
        assert "coverslip run ... -o" in capsys.readouterr().out
        assert main(["verify", str(copied), "--repair"]) == 0
        assert standard.resumed(copied) == standard.results

    def test_missing_and_foreign_files(self, copied: Path) -> None:
        store = copied / "jpeg.zarr"
        mask = next(iter((store / "tissue/mask").glob("c*")))
        mask.unlink()
        (store / "image/0/c").mkdir(exist_ok=True)
        (store / "image/0/c/stray").write_bytes(b"x")
        (store / "notes.txt").write_bytes(b"x")
        problems = {f.file: (f.problem, f.damage) for f in store_findings(store)}
        assert problems[f"tissue/mask/{mask.name}"][1]
        assert problems["image/0/c/stray"] == ("is no file of this stage", True)
        assert not problems["notes.txt"][1]

    def test_columns_that_disagree(self, tmp_path: Path) -> None:
        """Sound bytes of wrong content: what no checksum sees."""
        import numpy as np

        store = SlideStore.create(tmp_path / "a.zarr", {"fingerprint": "f"})
        with store.stage("nuclei/x", {}) as stage:
            columns = {
                "centroid": np.zeros((2, 2)),
                "polygon_offset": np.array([0, 3, 2]),
                "polygon": np.zeros((2, 2), np.float32),
            }
            stage.append_block(0, columns)
            stage.finish({})
        (finding,) = store_findings(tmp_path / "a.zarr")
        assert finding.problem.startswith("polygon_offset does not rise")

    def test_stores_without_sums_are_decoded_and_say_so(self, copied: Path) -> None:
        """As an earlier version wrote them."""
        store = copied / "jpeg.zarr"
        root = orjson.loads((store / "zarr.json").read_bytes())
        own = root["attributes"]["coverslip"]
        del own["sum"]
        for record in own["stages"].values():
            del record["sum"]
        (store / "zarr.json").write_bytes(orjson.dumps(root))
        found = store_findings(store, decode=False)
        assert not any(finding.damage for finding in found)
        assert sum("without checksums" in finding.problem for finding in found) == len(
            own["stages"]
        )
        (chunk,) = (store / "tissue/mask").glob("c*")
        chunk.write_bytes(chunk.read_bytes()[:-5])
        assert any(f.damage and f.stage == "tissue" for f in store_findings(store, decode=False))

    def test_a_store_in_use_is_left_alone(self, copied: Path) -> None:
        (copied / "jpeg.zarr/zarr.json").write_bytes(b"{")
        with lock(copied / "jpeg.zarr"):
            (verdict,) = verdicts(copied, repair=True)
        assert verdict.busy
        assert (copied / "jpeg.zarr/zarr.json").read_bytes() == b"{"
