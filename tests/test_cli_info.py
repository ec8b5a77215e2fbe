"""The command line's manners, and the two commands that need no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from coverslip import __version__, cli
from coverslip.cli import doctor, main
from coverslip.errors import InvalidConfig


def write_slide(path: Path, mpp: float | None = 0.25) -> Path:
    """A tiled two-level TIFF of 600 x 400 px."""
    pixels = np.full((400, 600, 3), 220, np.uint8)
    unit: dict[str, Any] = {}
    if mpp is not None:
        unit = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(128, 128), photometric="rgb", compression="zlib", **unit)
        file.write(pixels[::2, ::2], tile=(128, 128), photometric="rgb", subfiletype=1)
    return path


def facts(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------- manners


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from coverslip.cli import main; main(['--help'])\n"
        "heavy = {'torch', 'timm', 'numba', 'cupy', 'scipy', 'zarr', 'shapely', 'numpy'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("[]")
    assert "info" in run.stdout
    assert "doctor" in run.stdout


def test_one_command_loads_only_its_own_file() -> None:
    code = (
        "import sys; from coverslip.cli import main; main(['info', '--help']);"
        "print('coverslip.cli.doctor' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("False")


def test_python_m_coverslip_is_coverslip() -> None:
    command = [sys.executable, "-m", "coverslip", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == f"coverslip {__version__}\n"


@pytest.mark.parametrize(
    "line", [["nonsense"], ["info"], ["info", "--nonsense"], ["info", "x", "--assume-mpp", "abc"]]
)
def test_a_line_that_means_nothing_is_exit_code_2(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 2
    said = capsys.readouterr()
    assert "Usage" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidConfig("tile must be 8 to 8192 px"), "coverslip: tile must be 8 to 8192 px\n"),
        (
            PermissionError(13, "Permission denied", "a.csv"),
            "coverslip: a.csv: Permission denied\n",
        ),
        (
            ZeroDivisionError("by zero"),
            "coverslip: unexpected ZeroDivisionError: by zero\n  this is",
        ),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_trouble_is_a_line_and_a_traceback_only_on_request(
    error: Exception,
    said: str,
    debug: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing() -> Any:
        raise error

    monkeypatch.setattr(doctor, "_machine", failing)
    # what the user asked for means nothing: 2; something went wrong: 1
    expected = 2 if isinstance(error, InvalidConfig) else 1
    assert main(["doctor", *["--debug"] * debug]) == expected
    printed = capsys.readouterr().err
    assert said in printed
    assert ("Traceback" in printed) == debug


def test_a_command_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "count_tiles.py").write_text(
        "import typer\n"
        "from coverslip.cli import debugging\n"
        "def count_tiles(context: typer.Context, slide: str) -> None:\n"
        "    '''Count them.'''\n"
        "    print(slide, debugging(context))\n"
        "    raise typer.Exit(1)\n"
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    try:
        assert main(["count-tiles", "a.svs", "--debug"]) == 1
        assert capsys.readouterr().out == "a.svs True\n"
        assert main(["count-tiles", "--", "--debug"]) == 1
        assert capsys.readouterr().out == "--debug False\n"
        assert main(["--help"]) == 0
        shown = capsys.readouterr().out
        assert "Count them." in shown
        assert "terminal" not in shown  # a file without a function of its name is no command
    finally:
        sys.modules.pop("coverslip.cli.count_tiles", None)


# ---------------------------------------------------------------- info


def test_info_shows_a_slide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_slide(tmp_path / "case ü 1.tif")
    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    for word in ("case ü 1", "600 × 400", "0.25", "300 × 200", "128 × 128", "tiff"):
        assert word in shown


def test_info_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_slide(tmp_path / "a.tif")
    write_slide(tmp_path / "b.tif", mpp=0.5)
    assert main(["info", str(tmp_path), "--json"]) == 0
    one, other = facts(capsys)
    assert one["file"] == str(tmp_path / "a.tif")
    assert one["size"] == [600, 400]
    assert one["mpp"] == pytest.approx([0.25, 0.25])
    assert [level["size"] for level in one["levels"]] == [[600, 400], [300, 200]]
    assert one["bytes"] == (tmp_path / "a.tif").stat().st_size
    assert other["mpp"] == pytest.approx([0.5, 0.5])


def test_an_unknown_pixel_size_is_told_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_slide(tmp_path / "a.tif", mpp=None))
    assert main(["info", path]) == 0
    assert "--assume-mpp" in capsys.readouterr().out
    assert main(["info", path, "--json"]) == 0
    assert facts(capsys)[0]["mpp"] is None
    assert main(["info", path, "--json", "--assume-mpp", "0.4"]) == 0
    assert facts(capsys)[0]["mpp"] == [0.4, 0.4]
    table = tmp_path / "sizes.csv"
    table.write_text("slide,mpp\na.tif,0.3\n")
    assert main(["info", path, "--json", "--mpp-table", str(table)]) == 0
    assert facts(capsys)[0]["mpp"] == [0.3, 0.3]


def test_a_bad_slide_is_reported_and_the_others_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slide(tmp_path / "good.tif")
    (tmp_path / "empty.svs").write_bytes(b"")
    (tmp_path / "line\nbreak.svs").write_bytes(b"no slide at all")
    assert main(["info", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "good" in said.out
    assert "empty.svs" in said.err
    assert "line\\nbreak.svs" in said.err
    assert "Traceback" not in said.err
    assert main(["info", str(tmp_path), "--json"]) == 1
    said = capsys.readouterr()
    assert [("error" in each) for each in json.loads(said.out)] == [True, False, True]


@pytest.mark.parametrize(("name", "code"), [("not there.svs", 1), ("*.nothing", 2)])
def test_what_is_not_there_is_said(
    name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", name]) == code
    assert name in capsys.readouterr().err


@pytest.mark.real
def test_info_on_real_slides(capsys: pytest.CaptureFixture[str]) -> None:
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("COVERSLIP_TEST_DATA", beside)) / "slides"
    if not folder.is_dir():
        pytest.skip("the real slides are not beside the project")
    assert main(["info", str(folder), "--json"]) == 0
    found = facts(capsys)
    assert found
    for each in found:
        assert each["levels"][0]["size"] == each["size"]


# ---------------------------------------------------------------- doctor


def test_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = {each["what"]: each for each in facts(capsys)}
    assert found["coverslip"]["value"] == __version__
    assert found["codecs"]["state"] == "ok"
    assert "model hub" not in found


def test_doctor_says_how_to_get_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_gpu", lambda: iter(()))
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "no-such-package"))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "pip install no-such-package" in shown
    assert "missing: no-such-package" in shown


def test_doctor_asks_the_hub_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(doctor, "_gpu", lambda: iter(()))
    monkeypatch.setattr("urllib.request.urlopen", asked)
    assert main(["doctor", "--json"]) == 0
    assert "model hub" not in {each["what"] for each in facts(capsys)}
    assert main(["doctor", "--online", "--json"]) == 0
    (hub,) = [each for each in facts(capsys) if each["what"] == "model hub"]
    assert hub["state"] == "absent"
    assert "no route" in hub["value"]
