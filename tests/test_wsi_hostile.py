"""Broken and odd slides: every one opens right or is refused in words, within limits."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
from hostile_case import Case

from coverslip.cli import main
from coverslip.engine.run import slide_ids
from coverslip.errors import printable

MOST_SECONDS, MOST_MEGABYTES = 60, 700
TROUBLE = (
    "latin-\udce9.tif",
    "new\nline.tif",
    "n" * 251 + ".tif",
    "twin.tif",
    "twin.svs",
    "pipe.svs",
    "loop.svs",
    "absurd-data-files.mrxs",
    "nested.dcm",
    "zero-scale.ome.zarr",
    "philips-regular-expression.tif",
    "deflate-bomb.tif",
)
"""What once hung, crashed or ended a whole run, and what one name could overwrite."""


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, hostile.Observation]:
    """Name -> what came of it; two processes work through the corpus."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, hostile.__file__, "--seconds", str(MOST_SECONDS)]
    workers = [
        subprocess.Popen(
            [*command, str(folder / str(part)), "--part", str(part), "2"],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        for part in range(2)
    ]
    found = {}
    for worker in workers:
        content, _ = worker.communicate()
        assert worker.returncode == 0
        found |= {each["name"]: hostile.Observation(**each) for each in json.loads(content)}
    assert not list(folder.rglob("executed")), "a pickle was executed"
    return found


@pytest.mark.parametrize("case", hostile.CASES, ids=lambda case: ascii(case.name))
def test_each_is_what_it_must_be(case: Case, observed: dict[str, hostile.Observation]) -> None:
    found = observed[case.name]
    assert found.outcome == case.expected, found.message
    assert case.words in found.message
    if case.expected != "pixels":
        first = found.message.partition("\n")[0]
        assert printable(case.name) in first
    assert found.megabytes < MOST_MEGABYTES


def test_names_differ_and_there_are_enough() -> None:
    assert len({case.name for case in hostile.CASES}) == len(hostile.CASES) >= 60
    assert all(case.wrong for case in hostile.CASES)


def test_names_that_become_one_folder_are_told_apart() -> None:
    long = "n" * 200
    names = ["x:y.svs", "x*y.svs", f"{long}1.svs", f"{long}2.svs", "🔬" * 60 + ".svs", "plain.svs"]
    ids = [slide_id for _, slide_id in slide_ids([f"a/{name}" for name in names])]
    assert len(set(ids)) == len(ids)
    assert ids[-1] == "plain"
    assert max(len(os.fsencode(f".{slide_id}.zarr.unfinished")) for slide_id in ids) < 255


def test_a_run_loses_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    chosen = [case for case in hostile.CASES if case.name in TROUBLE]
    assert len(chosen) == len(TROUBLE)
    for case in chosen:
        case.make(slides / case.name)
    arguments = ["run", str(slides), "-o", str(tmp_path / "out"), "--encoder", "none"]
    assert main([*arguments, "--read-timeout", "20", "--device", "cpu"]) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    with open(tmp_path / "out/report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(chosen)
    assert len({row["slide"] for row in rows}) == len(chosen)
    failed = {row["file"] for row in rows if row["status"] == "failed"}
    assert failed == {case.name for case in chosen if case.expected != "pixels"}
    assert not any("fault of the engine" in row["reason"] for row in rows)
