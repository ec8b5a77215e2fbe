"""Weights from files: safetensors, or torch files read without running any code in them."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coverslip.errors import MissingWeights

WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student")
PREFIXES = ("module.", "backbone.", "model.", "encoder.")


def read_weights(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors by name; wrappers (`state_dict`, `teacher`...) are opened.

    Raises MissingWeights for a file that is absent, is no checkpoint, or would run code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingWeights(f"{path}: no such file; --weights names a local checkpoint")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise MissingWeights(
            f"{path}: cannot be read as weights alone ({str(error).splitlines()[0]})\n"
            "  save its state_dict as .safetensors, or with torch.save(model.state_dict(), FILE)"
        ) from None
    while isinstance(content, Mapping):
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = (
        {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise MissingWeights(f"{path}: holds no tensors by name")
    return tensors


def without_prefix(state: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    """`state` with the one training prefix removed that makes its names fit best."""

    def fitting(candidate: dict[str, Any]) -> int:
        return len(wanted & candidate.keys())

    candidates = [state]
    for prefix in PREFIXES:
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        candidates.append(inner)
    return max(candidates, key=fitting)


def load_strictly(model: Any, state: dict[str, Any], path: Path) -> None:
    """Load all of the model's tensors; a classifier the checkpoint has beyond them is ignored.

    Raises MissingWeights naming the first missing, unexpected or ill-shaped tensor.
    """
    own = model.state_dict()
    state = without_prefix(state, set(own))
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(
        k
        for k in state.keys() - own.keys()
        if not k.startswith(("classifier", "head.", "fc.", "mask_token"))
    )
    wrong = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or unexpected or wrong:
        problems = [
            f"first missing: {missing[0]} ({len(missing)} in all)" if missing else "",
            f"first unexpected: {unexpected[0]} ({len(unexpected)} in all)" if unexpected else "",
            f"{wrong[0]} is {tuple(state[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
            if wrong
            else "",
        ]
        raise MissingWeights(
            f"{path}: not this network's weights; " + "; ".join(filter(None, problems))
        )
    model.load_state_dict({k: state[k] for k in own})


def file_sha256(path: Path) -> str:
    """sha256 of a weights file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
