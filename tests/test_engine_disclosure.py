"""What runs leave says nothing of the patient and nothing of where things lie, unless asked."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as parquet
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from planted import PLANTED, SECRETS, write_planted

from coverslip.cli import main
from coverslip.engine.config import RunConfig
from coverslip.engine.disclosure import disclosed, kept_properties, name_remark, without_folders
from coverslip.engine.journal import journals
from coverslip.engine.run import Run
from coverslip.tiling.store import SlideStore

FOLDER = "Jane Quillfeather 1956"


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, small_slide: Path) -> Path:
    """A folder called after a patient: a slide that tells everything, one that cannot be read,
    a region."""
    folder = tmp_path_factory.mktemp("patients") / FOLDER
    folder.mkdir()
    image = np.ascontiguousarray(tifffile.imread(small_slide, key=0)[600:1368, 400:1168])
    write_planted(folder / "one.svs", image, comment=b"tile of Quillfeather-Jane")
    (folder / "two.svs").write_bytes((folder / "one.svs").read_bytes()[:5000])
    ring = [[0, 0], [768, 0], [768, 768], [0, 768], [0, 0]]
    (folder / "region.geojson").write_text(
        json.dumps({"type": "Polygon", "coordinates": [ring]}), encoding="utf-8"
    )
    return folder


def everything(output: Path) -> dict[str, bytes]:
    """File -> its bytes, with what is compressed inside it read out as well."""
    found = {}
    for path in sorted(p for p in output.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content += gzip.decompress(content)
        if path.suffix == ".parquet":
            content += str(parquet.read_table(path).to_pydict()).encode()
            content += str(parquet.read_schema(path).metadata).encode()
        found[path.relative_to(output).as_posix()] = content
    return found


def test_a_run_over_planted_slides_tells_nothing(patient: Path, tmp_path: Path) -> None:
    config = RunConfig(
        nuclei="watershed",
        image="carried",
        pixels="jpeg",
        min_tissue=0,
        region=str(patient / "region.geojson"),
        export=("geojson", "h5", "clam", "stamp", "parquet"),
    )
    run = Run.over([patient / "one.svs", patient / "two.svs"], tmp_path / "out", config)
    good, bad = run.execute()
    assert (good.status, bad.status) == ("done", "failed")
    assert str(patient) in bad.reason  # the terminal says where
    files = everything(tmp_path / "out")
    kinds = {Path(name).suffix for name in files}
    assert {".json", ".jsonl", ".csv", ".html", ".jpg", ".gz", ".h5", ".parquet"} <= kinds
    words = {*SECRETS, FOLDER, "Quillfeather", "CMU-1", str(patient), str(tmp_path)}
    told = [
        (name, word)
        for name, content in files.items()
        for word in words
        if word.encode() in content or word.encode("utf-16-le") in content
    ]
    assert told == []
    tiles = [n for n, content in files.items() if "/image/" in n and b"\xff\xd8\xff" in content]
    assert tiles  # the comments in carried tiles were there to be lost
    store = SlideStore.open(tmp_path / "out/one.zarr")
    assert "identifiers" not in store.slide


def test_what_is_asked_for_is_kept(patient: Path, tmp_path: Path) -> None:
    line = ["run", str(patient), "-o", str(tmp_path / "out"), "--encoder", "none", "--json"]
    assert main([*line, "--keep-identifiers", "aperio.Date,aperio.Scan*,paths"]) == 1
    assert SlideStore.open(tmp_path / "out/one.zarr").slide["identifiers"] == {
        "aperio.Date": PLANTED["Date"],
        "aperio.ScanScope ID": PLANTED["ScanScope ID"],
    }
    out = tmp_path / "out"
    for file in (*journals(out), out / "report.csv", out / "report.html"):
        assert FOLDER in file.read_text()
    assert main(line) == 1  # the next run, which does not ask, takes them out
    assert "identifiers" not in SlideStore.open(tmp_path / "out/one.zarr").slide


def test_names_that_identify_are_said_once(
    patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "S21-12345.svs").write_bytes((patient / "two.svs").read_bytes())
    line = ["run", str(tmp_path), "-o", str(tmp_path / "out"), "--encoder", "none"]
    assert main(line) == 1
    said = capsys.readouterr().err
    assert said.count("names that look as if they identified patients: 1 of 1") == 1
    assert "coverslip deidentify FOLDER OUT --names CSV" in said
    assert name_remark(["/a/S21-12345/slide.svs"]) == ""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/data/Jane Doe/a.svs: is empty", "a.svs: is empty"),
        ('region = "/data/Doe/r.geojson"', 'region = "r.geojson"'),
        ('File "/usr/lib/x/run.py", line 3', 'File "run.py", line 3'),
        ("s3://bucket/Doe/a.svs?X-Amz-Signature=1: gone", "a.svs: gone"),
        ("see https://huggingface.co/a/b", "see https://huggingface.co/a/b"),
        ("tissue/tiles, 3 mm²/s and/or <br/>", "tissue/tiles, 3 mm²/s and/or <br/>"),
        ("at /one", "at /one"),
    ],
)
def test_folders_go_and_words_stay(text: str, left: str) -> None:
    assert without_folders(text) == left
    assert disclosed({"a": [text, 1, None]}, ()) == {"a": [left, 1, None]}
    assert disclosed({"a": (text,)}, ("paths",)) == {"a": (text,)}


@given(st.lists(st.text("abc dé.-", min_size=1), min_size=2, max_size=6))
def test_no_folder_of_a_path_stays(parts: list[str]) -> None:
    text = orjson.dumps(disclosed({"file": "/" + "/".join(parts)}, ())).decode()
    assert "/" not in text
    assert orjson.loads(text) == {"file": parts[-1]}


def test_properties_are_kept_by_name() -> None:
    held = {"aperio.Date": "d", "aperio.User": "u", "tiff.Make": "m"}
    assert kept_properties(held, ()) == kept_properties(held, ("paths",)) == {}
    assert kept_properties(held, ("tiff.Make", "aperio.D*")) == {
        "aperio.Date": "d",
        "tiff.Make": "m",
    }
