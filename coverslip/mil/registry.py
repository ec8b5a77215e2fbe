"""Multiple-instance models by name: this package's, and those of installed packages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from coverslip.errors import InvalidConfig, UnknownName

if TYPE_CHECKING:
    from coverslip.mil.slide_model import SlideModel

MODELS: dict[str, str] = {
    "linear": "coverslip.mil.pooling:LinearModel",
    "mean": "coverslip.mil.pooling:MeanPooling",
    "max": "coverslip.mil.pooling:MaxPooling",
    "abmil": "coverslip.mil.abmil:ABMIL",
    "gated-abmil": "coverslip.mil.abmil:GatedABMIL",
    "additive": "coverslip.mil.additive:AdditiveMIL",
    "clam-sb": "coverslip.mil.clam:ClamSB",
    "clam-mb": "coverslip.mil.clam:ClamMB",
    "dsmil": "coverslip.mil.dsmil:DSMIL",
    "transmil": "coverslip.mil.transmil:TransMIL",
}
"""name -> "module:Class" of this package's."""
GROUP = "coverslip.mil"
"""Of the entry points name -> "module:Class" by which installed packages add theirs."""


def slide_model_names() -> list[str]:
    """All names, sorted. Raises InvalidConfig where an installed package takes a name again."""
    return sorted(_known())


def slide_model(name: str, dim: int, outputs: int, **arguments: Any) -> SlideModel:
    """A model called `name`, with random weights.

    dim         length of a tile's embedding
    outputs     how many logits
    arguments   the model's own; what is not given is as published

    Raises UnknownName; InvalidConfig for arguments the model does not take, of a wrong type, or
    out of range; ValueError for dim or outputs below 1.
    """
    if dim < 1 or outputs < 1:
        raise ValueError(f"dim and outputs must be at least 1, got {dim} and {outputs}")
    built = _class(name)
    _check(name, model_arguments(name), arguments)
    try:
        return built(dim, outputs, **arguments)
    except ValueError as error:
        raise InvalidConfig(f"model {name}: {error}") from None


def model_arguments(name: str) -> dict[str, Any]:
    """The model's own arguments by name, each with its default. Raises UnknownName."""
    taken = list(inspect.signature(_class(name)).parameters.values())[2:]  # after dim, outputs
    return {p.name: p.default for p in taken}


def _check(name: str, known: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Names, types, and that what counts something is not made 0 where it is not by default."""
    for argument, value in arguments.items():
        if argument not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise InvalidConfig(f"model {name} takes no {argument!r}; it takes: {takes}")
        default = known[argument]
        wanted = type(default)
        kinds = {wanted, int} if wanted is float else {wanted}
        if default is not inspect.Parameter.empty and type(value) not in kinds:
            raise InvalidConfig(
                f"model {name}: {argument} must be {wanted.__name__}, got {value!r}"
            )
        if (wanted is int and value < min(default, 1)) or value != value:
            raise InvalidConfig(f"model {name}: {argument} cannot be {value}")


def _class(name: str) -> type[SlideModel]:
    from coverslip.mil.slide_model import SlideModel

    known = _known()
    if name not in known:
        raise UnknownName("multiple-instance model", name, known)
    module, _, attribute = known[name].partition(":")
    found = getattr(import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, SlideModel)):
        raise InvalidConfig(f"model {name}: {known[name]} is no SlideModel")
    return found


def _known() -> dict[str, str]:
    found = dict(MODELS)
    for point in entry_points(group=GROUP):
        if found.setdefault(point.name, point.value) != point.value:
            raise InvalidConfig(
                f"model {point.name} is {found[point.name]}, and {point.value} of an installed "
                "package would be called the same"
            )
    return found
