"""Runs: what comes out, what bad input does, and that killing and resuming changes nothing."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image
from pyramids import address_pixels, write_pyramid

from coverslip.cli import main
from coverslip.engine.check import check_slide
from coverslip.engine.config import RunConfig
from coverslip.engine.journal import Journal, JournalTail, read_journals
from coverslip.engine.processors import available_processors
from coverslip.engine.run import Run, settings_as_toml, slide_ids
from coverslip.errors import InvalidConfig
from coverslip.heads.instances import Nuclei
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.reading import read_region
from coverslip.tiling.store import SlideStore
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Box

QUICK = RunConfig(encoder=(), quality=True)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of the stores and exports; not the journal and report, which hold times."""
    kept = [*folder.glob("*.zarr"), folder / "geojson", folder / "h5"]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for root in kept
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def report_rows(output: Path) -> dict[str, dict[str, str]]:
    """File name -> its row of the report."""
    with open(output / "report.csv", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_slide: Path) -> Path:
    """An undisturbed full run over the sample slide."""
    output = tmp_path_factory.mktemp("finished")
    config = RunConfig(nuclei="watershed", export=("geojson", "h5", "clam", "stamp", "parquet"))
    (result,) = Run.over([small_slide], output, config).execute(debug=True)
    assert result.status == "done"
    return output


def test_a_run_leaves_everything_it_promises(finished: Path, small_slide: Path) -> None:
    store = SlideStore.open(finished / "CMU-1-Small-Region.zarr")
    grid = TileGrid.from_store(store.group("tiles/256px_0.5mpp"))
    features = store.group("features/efficientnet-lite0@256px_0.5mpp")["features"][:]
    assert features.shape == (len(grid), 1280)
    assert np.isfinite(features).all()
    nuclei = Nuclei.from_columns(store.group("nuclei/watershed"))
    assert len(nuclei) > 2000
    assert store.slide["mpp"] == [0.499, 0.499]
    assert store.slide["mpp_source"] == "aperio.MPP"
    with h5py.File(
        finished / "h5/20x_256px_0px_overlap/features_efficientnet-lite0/CMU-1-Small-Region.h5"
    ) as file:
        assert np.array_equal(file["features"], features)
        assert np.array_equal(file["coords"], grid.boxes[:, :2])
    assert (finished / "report.html").stat().st_size > 3000
    (row,) = report_rows(finished).values()
    assert row["status"] == "done"
    assert int(row["nuclei"]) == len(nuclei)


def test_features_are_those_of_the_tiles(finished: Path, small_slide: Path) -> None:
    from coverslip.encoders.loading import load_encoder

    store = SlideStore.open(finished / "CMU-1-Small-Region.zarr")
    grid = TileGrid.from_store(store.group("tiles/256px_0.5mpp"))
    stored = store.group("features/efficientnet-lite0@256px_0.5mpp")["features"][:]
    with open_slide(small_slide) as slide:
        tiles = [read_region(slide, Box(*b), 0.5) for b in grid.boxes[:4].tolist()]
    found = load_encoder(device="cpu").encode(np.stack([t[:256, :256] for t in tiles]))
    np.testing.assert_allclose(found, stored[:4], atol=2e-3)


def test_again_is_unchanged(finished: Path, small_slide: Path) -> None:
    before = tree(finished)
    config = RunConfig(nuclei="watershed", export=("geojson", "h5", "clam", "stamp", "parquet"))
    (result,) = Run.over([small_slide], finished, config).execute(debug=True)
    assert result.status == "unchanged"
    assert tree(finished) == before


def test_the_store_names_no_place_and_no_person(finished: Path) -> None:
    for name, content in tree(finished).items():
        if name.endswith("zarr.json"):
            for word in (str(finished), os.uname().nodename, "CPAPERIOCS", "b414003d"):
                assert word.encode() not in content, f"{word} in {name}"


@pytest.mark.slow
def test_killed_three_times_the_result_is_the_same(
    finished: Path, tmp_path: Path, small_slide: Path
) -> None:
    command = [
        sys.executable, "-m", "coverslip", "run", str(small_slide), "-o", str(tmp_path / "out"),
        "--nuclei", "watershed", "--export", "geojson,h5,clam,stamp,parquet",
    ]  # fmt: skip
    draw = random.Random(11)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (tmp_path / "out/CMU-1-Small-Region.zarr/tissue").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(draw.uniform(0.1, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert tree(tmp_path / "out") == tree(finished)


@pytest.fixture
def folder_of_trouble(tmp_path: Path, small_slide: Path, spoiled: Path) -> Path:
    """One sound slide among many that are not."""
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "good slide µ.svs").write_bytes(small_slide.read_bytes())
    (folder / "spoiled.svs").write_bytes(spoiled.read_bytes())
    (folder / "empty.svs").write_bytes(b"")
    (folder / "random.svs").write_bytes(random.Random(0).randbytes(5000))
    (folder / "cut.svs").write_bytes(small_slide.read_bytes()[:900_000])
    (folder / "new\nline.svs").write_bytes(b"II*\0")
    Image.fromarray(address_pixels(64, 64)).save(folder / "picture.svs", "PNG")
    write_pyramid(folder / "no-mpp.tif", address_pixels(300, 300), mpp=None)
    tifffile.imwrite(folder / "deep.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb")
    for name, mpp in (("zero", "0"), ("negative", "-1"), ("nan", "nan"), ("vast", "1e6")):
        content = small_slide.read_bytes()
        padded = f"MPP = {mpp}".encode().ljust(len(b"MPP = 0.4990"))
        (folder / f"{name}-mpp.svs").write_bytes(content.replace(b"MPP = 0.4990", padded))
    return folder


def test_one_bad_slide_is_a_row(
    folder_of_trouble: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["run", str(folder_of_trouble), "-o", str(out), "--encoder", "none"]
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    rows = report_rows(out)
    assert len(rows) == 13
    assert rows["good slide µ.svs"]["status"] == "done"
    reasons = {name: row["reason"] for name, row in rows.items() if row["status"] == "failed"}
    assert len(reasons) == 12
    for name, words in {
        "spoiled.svs": "column 4, row 6",
        "empty.svs": "empty",
        "no-mpp.tif": "--assume-mpp",
        "picture.svs": "--assume-mpp",
        "deep.tif": "16-bit",
        "zero-mpp.svs": "pixel size of 0",
        "negative-mpp.svs": "pixel size of -1",
        "nan-mpp.svs": "pixel size of nan",
        "vast-mpp.svs": "pixel size of 1e+06",
    }.items():
        assert words in reasons[name], name
    for name, reason in reasons.items():
        assert name.replace("\n", "\\n") in reason
    for store in out.glob("*.zarr"):
        held = SlideStore.open(store).stages("quality/")
        assert bool(held) == (store.name == "good slide µ.zarr")


def test_a_bad_tile_can_be_blanked_and_is_recorded(spoiled: Path, tmp_path: Path) -> None:
    config = RunConfig(encoder=(), on_bad_tile="blank")
    (result,) = Run.over([spoiled], tmp_path / "out", config).execute(debug=True)
    assert result.status == "done"
    assert result.bad_tiles == 1
    damaged = SlideStore.open(tmp_path / "out/spoiled.zarr").group("quality/256px_0.5mpp")[
        "damaged"
    ]
    assert 1 <= damaged[:].sum() <= 4
    events = [e for e in read_journals(tmp_path / "out") if e["event"] == "bad tile"]
    assert "column 4, row 6" in events[0]["problem"]


def test_no_tissue_is_a_status_with_a_picture(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "glass.tif", np.full((900, 900, 3), 243, np.uint8), mpp=0.5)
    (result,) = Run.over([tmp_path / "glass.tif"], tmp_path / "out", QUICK).execute(debug=True)
    assert result.status == "no tissue"
    assert (tmp_path / "out" / result.overview).exists()
    arguments = ["run", str(tmp_path / "glass.tif"), "-o", str(tmp_path / "out2")]
    wanted = ["--encoder", "none", "--nuclei", "watershed", "--export", "geojson,h5,parquet"]
    assert main([*arguments, *wanted]) == 0


def test_slides_of_one_stem_do_not_meet(tmp_path: Path, small_slide: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "case.svs").write_bytes(small_slide.read_bytes())
    run = Run.over([tmp_path], tmp_path / "out", QUICK, recursive=True)
    names = [name for _, name in run.slides]
    assert len(set(names)) == 2
    assert all(name.startswith("case-") for name in names)
    assert slide_ids([p for p, _ in run.slides]) == run.slides


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys").exists(), reason="root can write")
def test_an_output_that_cannot_be_written(tmp_path: Path, small_slide: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["run", str(small_slide), "-o", str(tmp_path / "file" / "out")]) == 1


def test_a_region_limits_what_is_processed(tmp_path: Path, small_slide: Path) -> None:
    region = tmp_path / "region.geojson"
    region.write_text(
        '{"type":"Feature","geometry":{"type":"Polygon","coordinates":'
        "[[[500,500],[1500,500],[1500,1500],[500,1500],[500,500]]]}}"
    )
    config = RunConfig(encoder=(), region=str(region))
    (result,) = Run.over([small_slide], tmp_path / "out", config).execute(debug=True)
    store = SlideStore.open(tmp_path / "out/CMU-1-Small-Region.zarr")
    boxes = store.group("tiles/256px_0.5mpp")["boxes"][:]
    assert 0 < len(boxes) < 40
    assert boxes[:, 0].min() >= 500 - 257
    assert (boxes[:, 0] < 1500).all()
    assert result.tissue_mm2 < 0.26


def test_settings_survive_a_file(tmp_path: Path) -> None:
    config = RunConfig(mpp=0.25, encoder=("a", "b"), export=("h5",), assume_mpp=0.5)
    (tmp_path / "c.toml").write_text(settings_as_toml(config))
    assert RunConfig.from_toml(tmp_path / "c.toml") == config
    assert RunConfig.from_toml(tmp_path / "c.toml", mpp=1.0).mpp == 1.0
    for text, words in (
        ("mmp = 1", "no setting named 'mmp'"),
        ("mpp = true", "must be a number"),
        ("mpp = -1", "above 0"),
        ("tile = 'big'", "must be int"),
        ("encoder = 5", "a name or a list of names"),
        ("export = [['h5']]", "a name or a list of names"),
        ("x = [", "c.toml"),
    ):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(InvalidConfig, match=words):
            RunConfig.from_toml(tmp_path / "c.toml")


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "x", "-o", "y", "--mpp", "-1"], ["run", "x", "-o", "y", "--export", "docx"]],
)
def test_bad_usage_is_two(arguments: list[str]) -> None:
    assert main(arguments) == 2


def test_processors_are_those_granted(tmp_path: Path) -> None:
    affinity = len(os.sched_getaffinity(0))
    assert available_processors({"SLURM_CPUS_PER_TASK": "1"}, tmp_path) == 1
    assert available_processors({}, tmp_path) == affinity
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert available_processors({}, tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_processors({}, tmp_path) == affinity


def test_a_cut_journal_line_is_skipped(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write("one", number=1)
    with open(journal.path, "ab") as file:
        file.write(b'{"event": "cut')
    with Journal(tmp_path) as journal:
        journal.write("two")
    assert [event["event"] for event in read_journals(tmp_path)] == ["one", "two"]


def test_a_tail_tells_what_was_added(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write("before")
        tail = JournalTail(tmp_path, from_now=True)
        assert list(tail.news()) == []
        journal.write("one")
        other = journal.path.with_name("another-machine.jsonl")
        other.write_bytes(b'{"event": "two"}\n{"event": "begun, not en')
        assert {event["event"] for event in tail.news()} == {"one", "two"}
        with open(other, "ab") as file:
            file.write(b'ded"}\n')
        assert [event["event"] for event in tail.news()] == ["begun, not ended"]
        assert not tail.begun_anew()
        other.write_bytes(b"")
        assert tail.begun_anew()


def test_the_preflight_finds_what_a_run_would(spoiled: Path, small_slide: Path) -> None:
    assert check_slide(small_slide, RunConfig()).sound
    found = check_slide(spoiled, RunConfig(), samples=130)
    assert found.unreadable == 1
    assert "column 4, row 6" in found.problems[0]
    assert main(["check", str(small_slide)]) == 0
    assert main(["check", str(spoiled), "--samples", "130"]) == 1


def test_the_plan_counts_what_the_run_makes(
    small_slide: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["run", str(small_slide), "-o", str(tmp_path), "--encoder", "none", "--dry-run"]
    assert main(arguments) == 0
    assert "56 tiles" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_exports_from_stores_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(finished)
    assert main(["export", str(finished), "-f", "geojson,h5"]) == 0
    assert tree(finished) == before
