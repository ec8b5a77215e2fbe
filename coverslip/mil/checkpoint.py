"""What a training goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch

from coverslip.checkpoint import checkpoint_content
from coverslip.durable import whole_file
from coverslip.errors import InvalidConfig

HELD = {
    **dict.fromkeys(("epoch", "step", "since_best", "best_epoch"), int),
    **dict.fromkeys(("network", "optimiser", "scaler"), dict),
    "best": float,
    "identity": str,
}
"""What is in it."""


def write_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """One file, whole or not there.

    identity   JSON of all that must be the same for the training to go on
    state      tensors and plain values
    """
    with whole_file(path) as aside:
        torch.save({"identity": orjson.dumps(identity).decode(), **state}, aside)


def read_checkpoint(
    path: Path, identity: Mapping[str, Any], device: torch.device
) -> dict[str, Any] | None:
    """The state in it; None where there is no file.

    Raises MissingWeights where it is not such a checkpoint, InvalidConfig where it is of another
    training.
    """
    if not path.exists():
        return None
    state = checkpoint_content(path, device, HELD)
    try:
        old = orjson.loads(state.pop("identity"))
    except orjson.JSONDecodeError:
        raise InvalidConfig(
            f"{path}: holds no JSON of its training; remove it to start over"
        ) from None
    if changed := _difference(old, orjson.loads(orjson.dumps(identity))):
        raise InvalidConfig(
            f"{path}: this training began with {changed}\n"
            "  go on with those, or train in another folder"
        )
    return state


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first value that is not the same, and what it is now; empty where all are."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            at = f"{name}.{key}" if name else key
            if found := _difference(old.get(key), new.get(key), at):
                return found
        return ""
    return "" if old == new else f"{name} {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
