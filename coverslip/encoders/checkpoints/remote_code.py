"""Networks that are known only as code in their repository on the hub.

Such code runs with all rights of whoever loads it. It is run only where that was asked for, and at
the commit that the recipe names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from coverslip.encoders.checkpoints.hub import Published, not_given
from coverslip.encoders.registry import EncoderSpec
from coverslip.errors import MissingPackage, MissingWeights


class RemoteNetwork(nn.Module):
    """A model of transformers', with the tokens named as a recipe's pooling asks for them.

    prefix_tokens   before the first patch: the class token and registers
    """

    def __init__(self, model: nn.Module, prefix_tokens: int) -> None:
        super().__init__()
        self.model, self.num_prefix_tokens = model, prefix_tokens

    def forward_features(self, x: Tensor) -> Tensor:  # (b, 3, H, W) -> (b, prefix + n, d)
        tokens: Tensor = self.model(pixel_values=x).last_hidden_state
        return tokens


def remote_network(spec: EncoderSpec, weights: str | Path | None, trusted: bool) -> RemoteNetwork:
    """The recipe's network and weights, by the code of its repository.

    weights   the repository in a folder, or a folder that holds it as `<repository>`; None asks
              the hub

    Raises MissingWeights where running that code was not asked for, or nothing gave it.
    """
    require_trust(spec, trusted)
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise MissingPackage(f"encoder {spec.name}", "transformers", "text") from error
    source, local = spec.hub, weights is not None
    where: dict[str, Any] = {} if local else {"revision": spec.revision or None}
    if weights is not None:
        source = str(repository_in(Path(weights), spec))
    try:
        model = AutoModel.from_pretrained(  # nosec B615
            source, trust_remote_code=True, local_files_only=local, **where
        )
    except Exception as error:  # the hub client and strangers' code raise anything
        if local:
            raise MissingWeights(
                f"{source}: cannot be loaded by its own code ({type(error).__name__}: {error})"
            ) from error
        raise not_given(spec, error) from error
    return RemoteNetwork(model, spec.arguments["prefix_tokens"])


def require_trust(spec: Published, trusted: bool) -> None:
    """Raises MissingWeights where code of the record's repository would run unasked."""
    if not trusted:
        raise MissingWeights(
            f"{spec.kind} {spec.name}: its network is code in {spec.hub} at revision "
            f"{spec.revision or 'main'}, which is not run unless asked\n"
            "  read that code; then: --trust-remote-code (Python: trust_remote_code=True)"
        )


def repository_in(folder: Path, spec: Published) -> Path:
    """The folder itself, or `<repository>` in it. Raises MissingWeights."""
    for candidate in (folder, folder / spec.hub):
        if (candidate / "config.json").is_file():
            return candidate
    raise MissingWeights(
        f"{folder}: holds no config.json of {spec.name}; looked in it and in {spec.hub}"
    )


def unknown_network(**_: Any) -> nn.Module:
    """In place of a network that only its repository's code builds. Raises MissingWeights."""
    raise MissingWeights("this network is built by the code in its repository, with its weights")
