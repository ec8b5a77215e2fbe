"""CUDA sources; what each kernel means is said in the module of its name one room up."""

from __future__ import annotations

from importlib.resources import files


def cuda_source(name: str) -> str:
    """The text of `<name>.cu`."""
    return files(__name__).joinpath(f"{name}.cu").read_text(encoding="utf-8")
