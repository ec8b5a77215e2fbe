"""Weights from files: safetensors, or torch files read without running any code in them."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from coverslip.errors import MissingWeights

WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student")
PREFIXES = ("module.", "backbone.", "model.", "encoder.")
INDEX = ".index.json"
"""End of the name of the file that says which of several files holds which tensor."""
UNNEEDED = ("classifier", "head.", "fc.", "mask_token")
"""What a checkpoint may have beyond the network: a classifier, the token of masked training."""
DERIVED = ("relative_position_index", "attn_mask", "position_ids")
"""Tensors that some libraries save though the architecture alone decides them."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_weights(path: Path, prefix: str = "") -> dict[str, Any]:
    """A checkpoint's tensors by name; wrappers (`state_dict`, `teacher`...) are opened.

    path     safetensors, a torch file, or the index of a checkpoint in several safetensors files
    prefix   only the tensors whose names begin so, without it; where none does, all of them

    Raises MissingWeights for a file that is absent, is no checkpoint, or would run code.
    """
    if not path.is_file():
        raise MissingWeights(f"{path}: no such file; --weights names a local checkpoint")
    if path.name.endswith(INDEX):
        return _of_several(path, prefix)
    if path.suffix == ".safetensors":
        return _safetensors(path, prefix)
    tensors = _torch_file(path)
    inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return inner or tensors


def _safetensors(path: Path, prefix: str) -> dict[str, Any]:
    """Reads no more of the file than is asked for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            inside = [name for name in names if name.startswith(prefix)] or names
            return {name.removeprefix(prefix): file.get_tensor(name) for name in inside}
    except (SafetensorError, OSError) as error:
        raise MissingWeights(f"{path}: cannot be read as safetensors ({error})") from None


def shards(index: Path, prefix: str = "") -> list[str]:
    """Names of the files that hold the tensors whose names begin so. Raises MissingWeights."""
    try:
        places: dict[str, str] = orjson.loads(index.read_bytes())["weight_map"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise MissingWeights(f"{index}: not the index of a checkpoint in several files") from None
    found = {file for name, file in places.items() if name.startswith(prefix)}
    return sorted(found or set(places.values()))


def _of_several(index: Path, prefix: str) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for name in shards(index, prefix):
        if not (index.parent / name).is_file():
            raise MissingWeights(f"{index}: names {name}, which is not beside it")
        tensors |= _safetensors(index.parent / name, prefix)
    return tensors


def _torch_file(path: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise MissingWeights(_not_weights_alone(path, str(error))) from None
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


def _not_weights_alone(path: Path, said: str) -> str:
    found = _GLOBAL.search(said)
    reason = f"it needs {found[1]}" if found else said.splitlines()[0]
    needed = f", and of {found[1].partition('.')[0]}" if found else ""
    return (
        f"{path}: cannot be read as weights alone ({reason})\n"
        "  a whole pickled model runs code as it is read: if you trust the file, convert it once, "
        f"with the version of torch that wrote it{needed}:\n"
        f"  python -c \"import torch; m = torch.load('{path.name}', map_location='cpu', "
        "weights_only=False); torch.save(m.state_dict(), 'weights.pth')\""
    )


def without_prefix(state: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    """`state` with the one training prefix removed that makes its names fit best."""

    def fitting(candidate: dict[str, Any]) -> int:
        return len(wanted & candidate.keys())

    candidates = [state]
    for prefix in PREFIXES:
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        candidates.append(inner)
    return max(candidates, key=fitting)


def beyond(state: Mapping[str, Any], wanted: set[str]) -> list[str]:
    """Names of `state` that are neither the network's nor what many a checkpoint has besides."""
    return sorted(
        name
        for name in state.keys() - wanted
        if not name.startswith(UNNEEDED) and not name.endswith(DERIVED)
    )


def load_strictly(model: Any, state: dict[str, Any], path: Path) -> None:
    """Load all of the model's tensors; what a checkpoint has beyond any encoder is ignored.

    Raises MissingWeights naming the first missing, unexpected or ill-shaped tensor.
    """
    own = model.state_dict()
    state = without_prefix(state, set(own))
    missing = sorted(own.keys() - state.keys())
    unexpected = beyond(state, set(own))
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


def with_updates(state: dict[str, Any], updates: dict[str, Any], path: Path) -> dict[str, Any]:
    """`state` with low-rank updates added (LoRA, Hu et al. 2021, arXiv:2106.09685).

    updates   `<layer>.lora_A` (r, inputs) and `<layer>.lora_B` (outputs, r); `<layer>.weight` of
              `state` grows by their product: alpha = r, as they were trained

    Raises MissingWeights, which names `path`, for a half without the other or a layer not there.
    """
    found = dict(state)
    for layer in sorted({name.rpartition(".")[0] for name in updates}):
        halves = updates.get(f"{layer}.lora_A"), updates.get(f"{layer}.lora_B")
        weight = state.get(f"{layer}.weight")
        if weight is None or halves[0] is None or halves[1] is None:
            raise MissingWeights(f"{path}: its update of {layer} has no counterpart in the encoder")
        change = halves[1].float() @ halves[0].float()
        if change.shape != weight.shape:
            raise MissingWeights(
                f"{path}: its update of {layer} is {tuple(change.shape)}, not {tuple(weight.shape)}"
            )
        found[f"{layer}.weight"] = weight + change.to(weight.dtype)
    return found


def state_sha256(network: Any) -> str:
    """sha256 over the tensors of weights that came from no single file."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a weights file; of an index, over those of the files it names that are there."""
    if path.name.endswith(INDEX):
        beside = [path.parent / name for name in shards(path)]
        parts = [file_sha256(part) for part in beside if part.is_file()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
