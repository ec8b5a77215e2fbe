"""Kernels are compiled beside other work, into a place that can be written."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from coverslip.kernels import _labels_numba, _resample_numba, _stain_numba
from coverslip.kernels.warm_up import warm_up


def test_warmed_kernels_are_compiled() -> None:
    thread = warm_up(["resample", "stain", "labels"])
    assert thread is not threading.main_thread()
    thread.join(240)
    assert not thread.is_alive()
    for module, called in (
        (_resample_numba, "_area_resample"),
        (_stain_numba, "_separate _concentration _by_tables _by_light"),
        (
            _labels_numba,
            "_components _distances _convolved _midpoints _peaks _flood _outlines _sums",
        ),
    ):
        assert [name for name in called.split() if not getattr(module, name).signatures] == []


READ_ONLY = """
import os, pathlib, sys, tempfile
real = os.access
os.access = lambda path, mode, **kw: mode != os.W_OK and real(path, mode, **kw)
import coverslip.kernels.compiled
import numba
print(numba.config.CACHE_DIR)
"""


def test_without_a_writable_home_the_cache_goes_to_the_temporary_files(tmp_path: Path) -> None:
    environment = {"TMPDIR": str(tmp_path), "PATH": "", "HOME": "/nowhere"}
    run = subprocess.run(
        [sys.executable, "-c", READ_ONLY], env=environment, capture_output=True, text=True
    )
    assert run.stdout.startswith(str(tmp_path)), run.stderr
