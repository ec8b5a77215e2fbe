"""Texts to vectors that image embeddings are compared with, and what that makes of tiles.

text = load_text_encoder("conch", weights="weights")
classes = class_vectors(text, {"tumour": ["carcinoma", "tumour"], "stroma": ["stroma"]})
probabilities = zero_shot(features, classes, text.logit_scale)  # float32 [N, C]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.encoders.checkpoints.hub import checkpoint_from_hub, local_checkpoint, without_hub
from coverslip.encoders.encoder import Tiles
from coverslip.encoders.loading import _spec_of, load_encoder
from coverslip.encoders.registry import EncoderSpec, encoder_names, encoder_spec
from coverslip.errors import InvalidConfig, MissingWeights, UnknownName

if TYPE_CHECKING:
    import torch

    from coverslip.encoders.text_tokens import Tokeniser

Vectors = npt.NDArray[np.float32]
Classes = Mapping[str, Sequence[str]]
"""A class -> what it may be called in a text; the order is that of the results."""

TEMPLATES = (
    "{}.",
    "a photomicrograph showing {}.",
    "a histology image of {}.",
    "a pathology image with {}.",
    "a microscopic field of {}.",
    "a high-power view of {}.",
    "tissue section containing {}.",
    "hematoxylin and eosin stain of {}.",
    "H&E image: {}.",
    "this tile shows {}.",
    "{} is seen here.",
    "an example of {} under the microscope.",
)
"""Texts around a class's name; the class is what they have in common."""

BATCH = 64
"""Texts that pass through the tower together."""


class TextEncoder:
    """A text tower with its tokeniser, on a device. float32 everywhere.

    spec             the recipe of the image-text model
    name, dim        as of its image encoder
    weights_sha256   of the checkpoint's file ("random-0" for random weights)
    logit_scale      by which cosines are multiplied before the softmax, as learned
    device           torch device
    """

    def __init__(
        self,
        spec: EncoderSpec,
        network: torch.nn.Module,
        tokeniser: Tokeniser,
        weights_sha256: str,
        device: str,
    ) -> None:
        import torch

        self.spec, self.name, self.weights_sha256 = spec, spec.name, weights_sha256
        self.device = torch.device(device)
        self._network = network.eval().requires_grad_(False).to(self.device)
        self._tokeniser = tokeniser
        self.logit_scale = float(network.get_parameter("logit_scale").exp())
        self.dim = self.encode(["tissue"]).shape[1]
        if self.dim != spec.dim:
            raise MissingWeights(
                f"{self.name}: its text tower gives {self.dim} numbers, its images have {spec.dim}"
            )

    def encode(self, texts: Sequence[str]) -> Vectors:
        """n texts -> float32 [n, dim] unit vectors. A text beyond the tower's length is cut off."""
        import torch

        if isinstance(texts, str):
            raise TypeError("texts must be a list of texts, got one")
        found = [np.empty((0, self.spec.dim), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                ids = self._tokeniser(texts[start : start + BATCH]).to(self.device)
                found.append(self._network(ids).float().cpu().numpy())
        return unit(np.concatenate(found))


def load_text_encoder(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> TextEncoder:
    """The text tower of an image-text encoder, by the encoder's name.

    weights   as of `load_encoder`; files of a tokeniser lie beside the checkpoint
    device    "auto" takes a GPU where there is one
    seed      of random weights

    Raises UnknownName for one without a text tower; MissingWeights where the checkpoint or the
    tokeniser is not here, and says what to put where; MissingPackage.
    """
    import torch

    from coverslip.encoders.checkpoints.weights import file_sha256, load_strictly, read_weights

    spec = text_spec(name)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if weights == "random":
        torch.manual_seed(seed)
        tower = _tower(spec, None)
        return TextEncoder(spec, tower.network, tower.tokeniser(), f"random-{seed}", device)
    if weights is not None:
        path = local_checkpoint(spec, weights)
    elif spec.weights:
        path = checkpoint_from_hub(spec)
    else:
        raise without_hub(spec)
    tower = _tower(spec, None if weights is None else path.parent)
    tokeniser = tower.tokeniser()  # first: where its file is missing, nothing large was read
    try:
        state = tower.names(read_weights(path))
    except KeyError as error:
        raise MissingWeights(f"{path}: not {spec.name}'s weights; unknown tensor {error}") from None
    load_strictly(tower.network, state, path)
    return TextEncoder(spec, tower.network, tokeniser, file_sha256(path), device)


def text_spec(name: str) -> EncoderSpec:
    """The recipe of an encoder that has a text tower. Raises UnknownName."""
    spec = _spec_of(name)
    if not spec.text:
        known = [other for other in encoder_names() if encoder_spec(other).text]
        raise UnknownName("encoder with a text tower", name, known)
    return spec


def _tower(spec: EncoderSpec, folder: Path | None) -> Any:
    module, _, function = spec.text.partition(":")
    return getattr(import_module(module), function)(spec, folder)


def class_vectors(
    encoder: TextEncoder, classes: Classes, templates: Sequence[str] = TEMPLATES
) -> Vectors:
    """float32 [C, dim]: a unit vector a class, the mean of its names in all templates.

    classes     each with its names: {"tumour": ["tumour", "carcinoma"]}
    templates   each with one {} for the name

    Raises InvalidConfig for a class without a name, or a template without a place for it.
    """
    check_prompts(classes, templates)
    vectors = []
    for names in classes.values():
        texts = [template.replace("{}", name) for name in names for template in templates]
        vectors.append(encoder.encode(texts).mean(axis=0))
    return unit(np.stack(vectors))


def check_prompts(classes: Classes, templates: Sequence[str]) -> None:
    """Raises InvalidConfig where there is nothing to ask."""
    if len(classes) < 2:
        raise InvalidConfig(f"prompts need two classes at least, got {len(classes)}")
    for name, names in classes.items():
        if not name.strip() or not names or not all(each.strip() for each in names):
            raise InvalidConfig(f"class {name!r} needs a name that can be put into a text")
    if not templates:
        raise InvalidConfig("prompts need a template at least, such as 'a photomicrograph of {}.'")
    for template in templates:
        if template.count("{}") != 1:
            raise InvalidConfig(f"a template has one {{}} for the class's name, got {template!r}")


def similarity(images: npt.ArrayLike, classes: npt.ArrayLike) -> Vectors:
    """Cosines float32 [N, C] of images [N, D] and classes [C, D]; 0 for a vector of zeros."""
    cosines: Vectors = unit(images) @ unit(classes).T
    return cosines


def probabilities(cosines: npt.ArrayLike, logit_scale: float) -> Vectors:
    """Softmax over the classes of scaled cosines [N, C], float32; each row sums to 1."""
    logits = logit_scale * np.asarray(cosines, np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Vectors = powers / powers.sum(axis=1, keepdims=True)
    return found


def zero_shot(images: npt.ArrayLike, classes: npt.ArrayLike, logit_scale: float) -> Vectors:
    """How probable each class is for each image: float32 [N, C].

    images        [N, D] embeddings, of any length
    classes       [C, D], of `class_vectors`
    logit_scale   of the text encoder
    """
    return probabilities(similarity(images, classes), logit_scale)


def zero_shot_classifier(
    name: str,
    classes: Classes,
    *,
    templates: Sequence[str] = TEMPLATES,
    weights: str | Path | None = None,
    device: str = "auto",
) -> Callable[[Tiles], Vectors]:
    """A function from tiles, uint8 [B, H, W, 3], to probabilities, float32 [B, C].

    name   of an image-text encoder; the rest as of `load_text_encoder` and `class_vectors`
    """
    text = load_text_encoder(name, weights=weights, device=device)
    vectors = class_vectors(text, classes, templates)
    images = load_encoder(name, weights=weights, device=device)
    return lambda tiles: zero_shot(images.encode(tiles), vectors, text.logit_scale)


def unit(vectors: npt.ArrayLike) -> Vectors:
    """float32 [n, D] of length 1; a vector of zeros stays one."""
    values = np.asarray(vectors, np.float32)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    length[length == 0] = 1
    found: Vectors = values / length
    return found
