"""The laws of the house: which way imports point, what importing costs, what the wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import coverslip

PACKAGE = Path(coverslip.__file__).parent
REPOSITORY = PACKAGE.parent
FLOORS = {
    "errors": -2,
    "worker_identity": -2,
    "durable": -1,
    "checkpoint": -1,
    "settings": -1,
    "curve": 0,
    "wsi": 0,
    "kernels": 0,
    "tiling": 1,
    "encoders": 1,
    "heads": 1,
    "mil": 1,
    "export": 1,
    "engine": 2,
    "cohort": 3,
    "viewer": 3,
    "cli": 4,
}


def imported_rooms(module: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "coverslip":
                names = [f"coverslip.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {n.split(".")[1] for n in names if n.startswith("coverslip.")}
    return rooms


@pytest.mark.parametrize(
    "module",
    [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_imports_point_down(module: Path) -> None:
    room = module.relative_to(PACKAGE).parts[0]
    for other in imported_rooms(module) - {room, "__version__"}:
        assert FLOORS[other] < FLOORS[room], f"{room} may not import {other}"


def test_the_errors_stand_alone() -> None:
    assert imported_rooms(PACKAGE / "errors.py") == set()


def test_every_public_name_exists() -> None:
    for name in coverslip.__all__:
        assert getattr(coverslip, name) is not None


def test_importing_is_free() -> None:
    code = (
        "import sys, coverslip, coverslip.cli, coverslip.encoders.registry, coverslip.tiling.grid;"
        "print(sorted({'torch', 'timm', 'cupy', 'numba'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_help_loads_nothing_heavy_and_answers() -> None:
    code = (
        "import sys\nfrom coverslip.cli import main\n"
        "status = main(['--help'])\n"
        "print(status, sorted({'torch', 'timm', 'cupy', 'numba'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "0 []"


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(p.relative_to(REPOSITORY))
        for p in PACKAGE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert wanted <= held
