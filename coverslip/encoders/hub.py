"""Weights from the model hub, with the user's own token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coverslip.encoders.registry import EncoderSpec
from coverslip.errors import MissingWeights

FILES = ("model.safetensors", "pytorch_model.bin")
"""As the hub's repositories name their checkpoints."""


def checkpoint_from_hub(spec: EncoderSpec) -> Path:
    """The checkpoint of a recipe with a hub repository, from the hub's cache where it is there.

    Raises MissingWeights where the hub does not give it, and says what to put where.
    """
    from huggingface_hub import hf_hub_download

    reasons = []
    for file in FILES:
        try:
            return Path(hf_hub_download(spec.hub, file))
        except Exception as error:  # the hub client raises a zoo of network errors
            reasons.append(error)
    raise not_given(spec, reasons[0])


def fetch_weights(spec: EncoderSpec, folder: Path) -> Path:
    """Put the recipe's checkpoint into `folder` as `<name>.safetensors`; the file's path."""
    from safetensors.torch import save_file

    from coverslip.durable import whole_file
    from coverslip.encoders.weights import read_weights

    if not spec.weights:
        raise without_hub(spec)
    if spec.weights == "package" or not spec.hub:
        raise MissingWeights(f"{spec.name}: its weights come with a package; nothing to fetch")
    state: dict[str, Any] = read_weights(checkpoint_from_hub(spec))
    path = folder / f"{spec.name}.safetensors"
    with whole_file(path) as aside:
        save_file({k: v.contiguous() for k, v in state.items()}, aside)
    return path


def without_hub(spec: EncoderSpec) -> MissingWeights:
    """For weights that no hub gives under a name that is known here."""
    where = f" (published at {spec.hub})" if spec.hub else ""
    return MissingWeights(
        f"encoder {spec.name}: its weights{where} have to be downloaded by hand\n"
        f"  then pass them: --weights FILE, or a folder that holds {spec.name}.pth"
    )


def not_given(spec: EncoderSpec, reason: Exception) -> MissingWeights:
    """What to do where the hub gave nothing."""
    said = str(reason).strip().splitlines()
    asked = (
        f"  ask for access on the page of {spec.hub}, then: export HF_TOKEN=...\n"
        if spec.gated
        else ""
    )
    source = f"model.safetensors of {spec.hub}" if spec.hub else f"timm's {spec.architecture!r}"
    return MissingWeights(
        f"encoder {spec.name}: no weights here, and the hub did not give them "
        f"({said[0] if said else type(reason).__name__})\n"
        f"{asked}"
        f"  or download {source} elsewhere and pass it: --weights FILE, or a folder that holds "
        f"{spec.name}.safetensors"
    )
