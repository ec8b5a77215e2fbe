"""A loaded slide encoder: a slide's tile embeddings in, one float32 vector out."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from coverslip.encoders.checkpoints.hub import checkpoint_from_hub, local_checkpoint, not_given
from coverslip.encoders.checkpoints.weights import file_sha256, state_sha256
from coverslip.encoders.slide_registry import SlideEncoderSpec, slide_encoder_spec
from coverslip.errors import MissingPackage, MissingWeights, RecipeMismatch

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.floating[Any]]
Corners = npt.NDArray[np.integer[Any]]

BUDGET = 2**25
"""Numbers that the largest intermediate may hold: 128 MB of float32."""


class SlideEmbedding(NamedTuple):
    """What a slide encoder makes of a slide.

    embedding   float32 [dim]
    attention   float32 [heads, N], each row summing to 1 over the tiles; no rows where the network
                has none to show
    """

    embedding: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32]


class SlideEncoder:
    """A network with its recipe, on a device.

    spec              the recipe; recipe its JSON-able form
    name, dim         as in stores; dim is 0 where a slide's embedding is as long as a tile's
    weights_sha256    of the checkpoint's file ("random-..." for random weights, "" for none)
    device            torch device

    float32 on the CPU; the recipe's dtype under autocast on a GPU. The result does not depend on
    the order of the tiles, but in the last bits.
    """

    def __init__(
        self, spec: SlideEncoderSpec, network: torch.nn.Module, weights_sha256: str, device: str
    ) -> None:
        import torch

        self.spec, self.weights_sha256 = spec, weights_sha256
        self.name, self.dim, self.recipe = spec.name, spec.dim, spec.recipe()
        self.device = torch.device(device)
        self._network = network.eval().requires_grad_(False).to(self.device)
        self._half: torch.dtype | None = None
        if self.device.type == "cuda" and spec.dtype != "float32":
            bfloat16 = spec.dtype == "bfloat16" and torch.cuda.is_bf16_supported()
            self._half = torch.bfloat16 if bfloat16 else torch.float16

    def encode(
        self,
        features: Floats,
        corners: Corners,
        tile_px0: float,
        *,
        tile_encoder: str = "",
        budget: int = BUDGET,
    ) -> npt.NDArray[np.float32]:
        """float32 [dim] of one slide; arguments as for `embed`."""
        return self.embed(
            features, corners, tile_px0, tile_encoder=tile_encoder, budget=budget
        ).embedding

    def embed(
        self,
        features: Floats,
        corners: Corners,
        tile_px0: float,
        *,
        tile_encoder: str = "",
        budget: int = BUDGET,
    ) -> SlideEmbedding:
        """The slide's embedding, and how much each tile had part in it.

        features       float [N, D], the tiles' embeddings
        corners        int [N, 2], level-0 px (x, y) of their top-left corners
        tile_px0       side of a tile in level-0 px
        tile_encoder   what made the features; checked against the recipe where given
        budget         numbers that the largest intermediate may hold: bounds memory, whatever N

        Raises ValueError without tiles; RecipeMismatch where the features are another encoder's.
        """
        import torch

        from coverslip.encoders.networks.bag import Bag

        self._check(features, corners, tile_px0, tile_encoder)
        bag = Bag(
            torch.from_numpy(np.require(features, None, ["C", "W"])),
            torch.from_numpy(np.require(corners, np.int64, ["C", "W"])),
            float(tile_px0),
            self.device,
            budget,
        )
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=self._half, enabled=self._half is not None),
        ):
            embedding, attention = self._network(bag)
        found = embedding.float().cpu().numpy()
        if not np.isfinite(found).all():
            raise ValueError(
                f"{self.name}: the slide's embedding is not finite; "
                "its tile embeddings hold NaN, infinity or huge numbers"
            )
        return SlideEmbedding(found, attention.float().cpu().numpy())

    def _check(
        self, features: Floats, corners: Corners, tile_px0: float, tile_encoder: str
    ) -> None:
        spec = self.spec
        if features.ndim != 2 or features.dtype.kind != "f":
            raise ValueError(
                f"features must be float [N, D], got {features.dtype} {features.shape}"
            )
        if corners.shape != (len(features), 2) or corners.dtype.kind not in "iu":
            raise ValueError(
                f"corners must be int [{len(features)}, 2], got {corners.dtype} {corners.shape}"
            )
        if not len(features):
            raise ValueError(f"{self.name}: no tiles to encode; the slide has no tissue")
        if not tile_px0 > 0:
            raise ValueError(f"tile_px0 must be above 0, got {tile_px0}")
        other = tile_encoder and spec.tile_encoder and tile_encoder != spec.tile_encoder
        if other or spec.input_dim not in (0, features.shape[1]):
            raise RecipeMismatch(
                f"slide encoder {self.name} stands on tile encoder {spec.tile_encoder} "
                f"({spec.input_dim} numbers a tile), these features are of "
                f"{tile_encoder or 'another'} ({features.shape[1]})\n"
                f"  embed the tiles first: --encoder {spec.tile_encoder}"
            )


def load_slide_encoder(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    trust_remote_code: bool = False,
) -> SlideEncoder:
    """A slide encoder by its registered name.

    weights             a local checkpoint (safetensors or torch), or a folder that holds
                        <name>.safetensors, or <repository>/<file> as the hub has it; "random" for
                        none at all (for tests)
    device              "auto" takes a GPU where there is one
    seed                of random weights
    trust_remote_code   run that code, for the few encoders whose network is nowhere else

    Raises UnknownName; MissingWeights where the weights are not here, and says what to put where,
    or where code of the hub would have to run and was not asked for.
    """
    import torch

    spec = slide_encoder_spec(name)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if spec.weights == "remote-code":
        network = _remote(spec, weights, trust_remote_code)
        return SlideEncoder(spec, network, state_sha256(network), device)
    if weights == "random":
        torch.manual_seed(seed)
        return SlideEncoder(spec, build(spec), f"random-{seed}", device)
    if spec.weights == "none":
        return SlideEncoder(spec, build(spec), "", device)
    path = checkpoint_from_hub(spec) if weights is None else local_checkpoint(spec, weights)
    return SlideEncoder(spec, _with_weights(spec, path), file_sha256(path), device)


def build(spec: SlideEncoderSpec, **further: Any) -> torch.nn.Module:
    """The network of a recipe, with random weights."""
    module, _, function = spec.architecture.partition(":")
    built: torch.nn.Module = getattr(import_module(module), function)(**spec.arguments, **further)
    return built


def _with_weights(spec: SlideEncoderSpec, path: Path) -> torch.nn.Module:
    from coverslip.encoders.checkpoints.weights import load_strictly, read_weights

    network, state = build(spec), read_weights(path)
    if spec.key_mapping and not set(network.state_dict()) <= state.keys():
        module, _, function = spec.key_mapping.partition(":")
        try:
            state = getattr(import_module(module), function)(state)
        except KeyError as error:
            raise MissingWeights(
                f"{path}: not {spec.name}'s weights; unknown tensor {error}"
            ) from None
    load_strictly(network, state, path)
    return network


def _remote(
    spec: SlideEncoderSpec, weights: str | Path | None, trust_remote_code: bool
) -> torch.nn.Module:
    from coverslip.encoders.checkpoints.remote_code import repository_in, require_trust

    require_trust(spec, trust_remote_code)
    if weights == "random":
        raise MissingWeights(f"slide encoder {spec.name}: the hub's code comes with its weights")
    source = spec.hub if weights is None else str(repository_in(Path(weights), spec))
    try:
        return build(spec, source=source, revision=spec.revision)
    except MissingPackage:
        raise
    except Exception as error:  # the hub client and strangers' code raise anything
        if weights is None:
            raise not_given(spec, error) from error
        raise MissingWeights(
            f"{source}: cannot be loaded by its own code ({type(error).__name__}: {error})"
        ) from error
