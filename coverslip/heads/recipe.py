"""A trained head in one file: safetensors, its record in the header."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.durable import whole_file
from coverslip.errors import InvalidConfig, UnknownName

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES = {
    "cerberus": "coverslip.heads.cerberus:Cerberus",
    "hovernet": "coverslip.heads.hovernet:HoverNet",
    "nuclick": "coverslip.heads.nuclick:NuClick",
    "distance-map": "coverslip.heads.distance_map:DistanceMap",
    "stardist": "coverslip.heads.stardist:StarDist",
    "tissue-map": "coverslip.heads.tissue_map:TissueMap",
    "token-decoder": "coverslip.heads.token_decoder:TokenDecoder",
}
"""Networks by name: "package.module:function", called with a recipe's arguments."""

SETTINGS: Mapping[str, dict[str, Any]] = {
    "nuclick": {"threshold": 0.5, "patch_px": 128, "least_um2": 2.0},
    "distance-map": {
        "probability": 0.5,
        "open_px": 1.0,
        "smooth_px": 2.0,
        "distance_share": 0.2,
        "apart_px": 4.0,
        "least_px": 36,
    },
    "stardist": {"probability": 0.5, "overlap": 0.4},
}
"""What a new head of an architecture makes of its maps, until something better is found."""

TUNED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "distance-map": {
        "probability": (0.4, 0.5, 0.6),
        "distance_share": (0.1, 0.2, 0.3),
        "apart_px": (3.0, 4.0, 5.0),
    },
    "hovernet": {"probability": (0.4, 0.5, 0.6)},
    "stardist": {"probability": (0.3, 0.4, 0.5, 0.6, 0.7), "overlap": (0.3, 0.4, 0.5)},
    "token-decoder": {"probability": (0.4, 0.5, 0.6)},
}
"""Which of the settings are chosen after a training, from what."""

PANNUKE = ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
"""The classes of nuclei that most published models tell apart (Gamper et al. 2020)."""

KEY = "coverslip"


@dataclass(frozen=True, slots=True)
class HeadRecipe:
    """Everything that decides what a head makes of a window, and where it comes from.

    name            how users and stores call it
    task            "nuclei", "tissue", "tiles", "clicks"
    architecture    a name in `ARCHITECTURES`, or "package.module:function"; of tile classifiers,
                    which are arrays: "linear" or "mlp"
    arguments       of that function
    mpp             µm per px it wants
    classes         in the order of class ids
    normalisation   "percentile": each channel from its 1st to its 99.8th percentile over the slide
                    becomes 0 to 1; "stain": the same, and two channels more: haematoxylin, from
                    what is usual outside nuclei to what is usual inside, and how far it is above
                    the threshold of its surroundings; "imagenet": mean and spread of ImageNet
    settings        of what is made of the network's maps: thresholds and the like
    licence, data   of the weights; what they were trained on
    expected        what is normal on the data it was trained on; see `heads.depth`
    training        the settings it was trained with
    """

    name: str
    task: Literal["nuclei", "tissue", "tiles", "clicks"]
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    mpp: float = 0.5
    classes: tuple[str, ...] = ("Nucleus",)
    normalisation: Literal["percentile", "stain", "imagenet"] = "percentile"
    settings: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    data: str = ""
    expected: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def network(self) -> Any:
        """A new, untrained network. Raises UnknownName, and InvalidConfig where the architecture
        is no class of networks: a file from a stranger must not have any function called."""
        place = ARCHITECTURES.get(self.architecture, self.architecture)
        if ":" not in place:
            raise UnknownName("head's architecture", self.architecture, ARCHITECTURES)
        return network_class(place)(**self.arguments)

    def deciding(self) -> dict[str, Any]:
        """What decides the result, for a stage's hash; the weights have their own."""
        return {
            "architecture": self.architecture,
            "arguments": self.arguments,
            "mpp": self.mpp,
            "classes": list(self.classes),
            "normalisation": self.normalisation,
            "settings": self.settings,
        }


def network_class(place: str) -> type[nn.Module]:
    """The class of networks at "package.module:Class". Raises InvalidConfig for anything else."""
    from torch import nn

    module, _, name = place.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidConfig(f"architecture {place!r} cannot be had: {error}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InvalidConfig(f"architecture {place!r} is no network, and is not called")
    return found


def save_head(path: Path, recipe: HeadRecipe, network: nn.Module, dtype: Any = None) -> None:
    """One file, whole or not there. dtype: of floating weights, as torch names it; None keeps."""
    from safetensors.torch import save_file

    weights = {
        name: value.detach().cpu().to(dtype if value.is_floating_point() else None).contiguous()
        for name, value in network.state_dict().items()
    }
    with whole_file(path) as aside:
        save_file(weights, str(aside), {KEY: orjson.dumps(recipe).decode()})


def head_content(recipe: HeadRecipe, weights: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The file of a head whose weights are arrays; the same head gives the same bytes."""
    from safetensors.numpy import save

    plain = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    content: bytes = save(plain, {KEY: orjson.dumps(recipe).decode()})
    return content


def read_weights(path: Path) -> dict[str, npt.NDArray[Any]]:
    """A head's weights as arrays; `read_recipe`, asked first, says whether it is a head's file."""
    from safetensors.numpy import load_file

    found: dict[str, npt.NDArray[Any]] = load_file(str(path))
    return found


def read_recipe(path: Path) -> HeadRecipe:
    """The record in a head's file, without its weights. Raises InvalidConfig."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy") as file:
            found: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InvalidConfig(f"{path}: not a head's file ({error})") from None
    try:
        content = orjson.loads(found[KEY])
        content["classes"] = tuple(content["classes"])
        return HeadRecipe(**content)
    except (KeyError, TypeError, orjson.JSONDecodeError):
        raise InvalidConfig(
            f"{path}: no record of a head in it\n"
            "  heads are trained by `coverslip train`, which writes such files"
        ) from None


def load_head(path: Path, device: str = "auto") -> tuple[HeadRecipe, Any, str]:
    """(recipe, network ready to be used, sha256 of the file). Raises InvalidConfig.

    device   torch's name; "auto" takes a GPU where there is one
    """
    import torch
    from safetensors.torch import load

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"

    recipe = read_recipe(path)
    network = recipe.network()
    content = path.read_bytes()
    weights = {k: v.float() if v.is_floating_point() else v for k, v in load(content).items()}
    wanted = network.state_dict()
    if wrong := sorted(
        {k for k in weights.keys() ^ wanted.keys()}
        | {k for k in weights.keys() & wanted.keys() if weights[k].shape != wanted[k].shape}
    ):
        raise InvalidConfig(f"{path}: {wrong[0]} does not fit a {recipe.architecture}")
    network.load_state_dict(weights)
    digest = hashlib.sha256(content).hexdigest()
    network = network.to(device, memory_format=torch.channels_last)
    return recipe, network.eval().requires_grad_(False), digest
