"""Checkpoints of CLAM's own training (github.com/mahmoodlab/CLAM) as models of this package."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coverslip.errors import MissingWeights
from coverslip.mil.clam import ClamMB, ClamSB

NOT_WEIGHTS = "instance_loss_fn.labels"
"""A constant of the smooth SVM loss, which is saved with the weights."""
KINDS = ("weight", "bias")


def clam_model(path: Path, **training: Any) -> ClamSB:
    """The model in a file `s_<fold>_checkpoint.pt`; a ClamMB where it has a branch a class.

    training   arguments of the model that weights do not tell: dropout, instances, instance_share,
               subtyping

    Widths, classes and gating are what the tensors say. Raises MissingWeights, which names the
    file: absent, no weights alone, a tensor missing, unknown or ill-shaped.
    """
    state = _state(path)
    gated = any(".attention_c." in name for name in state)
    many = any(name.startswith("classifiers.0.") for name in state)
    names = _names(state, gated, many)
    wanted = set(chain.from_iterable(names.values()))
    missing, unknown = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or unknown:
        problems = [
            f"first missing: {missing[0]} ({len(missing)} in all)" if missing else "",
            f"first unknown: {unknown[0]} ({len(unknown)} in all)" if unknown else "",
        ]
        raise _refused(path, "; ".join(filter(None, problems)))
    try:
        own = {name: torch.cat([state[part] for part in parts]) for name, parts in names.items()}
        hidden, dim = own["project.0.weight"].shape
        attention_dim, _ = own["attend.value.weight"].shape
        outputs, _ = own["classify.weight"].shape
    except (RuntimeError, ValueError) as error:
        raise _refused(path, f"its layers are no matrices ({error})") from None
    if 0 in (hidden, dim, attention_dim, outputs):
        raise _refused(path, "a layer is empty")
    built = ClamMB if many else ClamSB
    model = built(dim, outputs, hidden, attention_dim, gated, **training)
    for name, tensor in model.state_dict().items():
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(own[name].shape)}, not {tuple(tensor.shape)}"
            raise _refused(path, f"{names[name][0]} is {shapes}")
    model.load_state_dict(own)
    return model


def _state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise MissingWeights(f"{path}: no such file; name a checkpoint of CLAM's training")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _refused(path, f"cannot be read as weights alone ({reason})") from None
    if not isinstance(content, Mapping):
        raise _refused(path, f"holds a {type(content).__name__}, no tensors by name")
    state = {name: tensor for name, tensor in content.items() if name != NOT_WEIGHTS}
    for name, tensor in state.items():
        if not (
            isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point()
        ):
            raise _refused(path, f"{name!r} is no tensor of numbers by name")
    return state


def _names(state: Mapping[str, Tensor], gated: bool, many: bool) -> dict[str, list[str]]:
    """Our names -> CLAM's, whose rows are put one below the other.

    CLAM has its layers in sequences, where what follows a layer of dropout counts one further, and
    wrapped some in DataParallel, which calls them "module".
    """
    net = "attention_net."
    if any(name.startswith(f"{net}module.") for name in state):
        net += "module."
    at = f"{net}{3 if any(name.startswith(f'{net}3.') for name in state) else 2}."
    last = 3 if f"{at}module.3.weight" in state else 2
    layers = {"project.0": [f"{net}0"]}
    if gated:
        layers |= {"attend.value": [f"{at}attention_a.0"], "attend.gate": [f"{at}attention_b.0"]}
        layers |= {"attend.score": [f"{at}attention_c"]}
    else:
        layers |= {"attend.value": [f"{at}module.0"], "attend.score": [f"{at}module.{last}"]}
    if many:
        classes = _classes(state)
        layers["classify"] = [f"classifiers.{c}" for c in range(classes)]
    else:
        classes = state.get("classifiers.weight", torch.empty(0)).shape[:1].numel()
        layers["classify"] = ["classifiers"]
    layers |= {f"instance_classifiers.{c}": [f"instance_classifiers.{c}"] for c in range(classes)}
    return {
        f"{own}.{kind}": [f"{part}.{kind}" for part in theirs]
        for own, theirs in layers.items()
        for kind in KINDS
    }


def _classes(state: Mapping[str, Tensor]) -> int:
    """How many classifiers there are from number 0 without a gap."""
    count = 0
    while f"classifiers.{count}.weight" in state:
        count += 1
    return count


def _refused(path: Path, problem: str) -> MissingWeights:
    return MissingWeights(f"{path}: not CLAM's weights; {problem}")
