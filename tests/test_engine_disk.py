"""Output folders that refuse: read-only, and full at whatever moment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = (sys.executable, "-m", "coverslip", "run")
QUICK = ("--encoder", "none", "--nuclei", "watershed", "--export", "geojson,h5", "--pixels", "jpeg")


def finished(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_a_read_only_output_folder(tmp_path: Path, small_slide: Path) -> None:
    """Also for root, from whom the right to write anywhere is taken first."""
    output = tmp_path / "out"
    output.mkdir(mode=0o555)
    refused: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root is refused nothing without setpriv")
        refused = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    run = finished(*refused, *RUN, str(small_slide), "-o", str(output))
    assert run.returncode == 1
    said = " ".join(run.stderr.split())
    assert f"{output}: cannot be written: Permission denied" in said
    assert "choose another folder with -o" in said
    assert "Traceback" not in run.stderr + run.stdout
    assert not list(output.iterdir())


def test_a_store_folder_that_became_read_only(tmp_path: Path, small_slide: Path) -> None:
    """One slide's own folder refuses: that slide is a row, the other is done."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root is refused nothing without setpriv")
    refused = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    other = tmp_path / "other.svs"
    shutil.copy(small_slide, other)
    output = tmp_path / "out"
    (output / "other.zarr").mkdir(parents=True)
    (output / "other.zarr").chmod(0o555)
    prefix = refused if os.geteuid() == 0 else ()
    run = finished(*prefix, *RUN, str(small_slide), str(other), "-o", str(output), *QUICK)
    assert run.returncode == 1
    rows = (output / "report.csv").read_text()
    assert "Permission denied" in rows
    assert rows.count("done") == 1
    assert "Traceback" not in run.stderr + run.stdout


FILL_AND_GO_ON = """
import hashlib, subprocess, sys
from pathlib import Path
slide, disk, kilobytes, *options = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", disk], check=True)
run = [sys.executable, "-m", "coverslip", "run", slide, "-o", disk + "/out", *options]
full = subprocess.run(run, capture_output=True, text=True, check=False)
print("full", full.returncode)
print(" ".join((full.stderr + full.stdout).split()))
subprocess.run(["mount", "-o", "remount,size=500m", "none", disk], check=True)
checked = subprocess.run(run, capture_output=True, text=True, check=False)
print("roomy", checked.returncode)
for path in sorted(Path(disk, "out").rglob("*")):
    place = path.relative_to(Path(disk, "out")).as_posix()
    if path.is_file() and place.split("/")[0].split(".")[-1] in ("zarr", "geojson", "h5"):
        print("file", place, hashlib.sha256(path.read_bytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small_slide: Path) -> list[str]:
    if finished("unshare", "-m", "true").returncode:
        pytest.skip("mounting a small disk needs root")
    return full_then_roomy(tmp_path_factory.mktemp("disk"), small_slide, 500_000)[3:]


def full_then_roomy(disk: Path, slide: Path, kilobytes: int) -> list[str]:
    """What a run on a disk of that size says, and what a second run with room leaves."""
    command = (sys.executable, "-c", FILL_AND_GO_ON, str(slide), str(disk), str(kilobytes))
    child = finished("unshare", "-m", *command, *QUICK)
    assert child.returncode == 0, child.stderr
    return child.stdout.splitlines()


@pytest.mark.parametrize("kilobytes", [40, 400, 1200, 2500])
def test_a_disk_that_fills_up(
    kilobytes: int, tmp_path: Path, small_slide: Path, undisturbed: list[str]
) -> None:
    """The run says so and exits with 1; with room, the next one ends as if nothing had been."""
    code, said, again, *files = full_then_roomy(tmp_path, small_slide, kilobytes)
    assert code == "full 1"
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert again == "roomy 0"
    assert files == undisturbed
    assert len(files) > 10
