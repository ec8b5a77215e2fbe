"""Slide encoders whose network only the code in their hub repository builds.

That code runs on the user's machine; `load_slide_encoder` comes here only where it was told to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coverslip.encoders.networks.bag import Bag, Pooled
from coverslip.errors import MissingPackage


def from_hub(kind: str, source: str, revision: str) -> Any:
    """What a repository's own code builds, with its weights.

    kind       "AutoModel" or "AutoProcessor"
    source     repository on the hub, or a local folder with the same files
    revision   commit of the repository; "" takes the newest
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingPackage(f"the network of {source}", "transformers", "text") from error
    of_commit = {"revision": revision} if revision and not Path(source).is_dir() else {}
    auto = getattr(transformers, kind)
    return auto.from_pretrained(source, trust_remote_code=True, **of_commit)


def _unshown(embedding: Tensor, bag: Bag) -> Pooled:
    return Pooled(embedding.flatten().float(), torch.empty(0, len(bag), device=bag.device))


class Care(nn.Module):
    """CARE (2026, arXiv:2602.21637): regions of the tiles' grid that adapt to the tissue."""

    def __init__(self, source: str, revision: str) -> None:
        super().__init__()
        self.network = from_hub("AutoModel", source, revision).float()

    def forward(self, bag: Bag) -> Pooled:
        features = bag.features.to(bag.device, torch.float32)[None]  # (1, n, d)
        count = torch.tensor([len(bag)], device=bag.device)
        found = self.network(features, count, bag.cells()[None].to(bag.device))
        return _unshown(found.wsi_embedding, bag)


class Prism2(nn.Module):
    """PRISM2 (2025, arXiv:2506.13063): its base embedding, 2560 numbers.

    Without the language model that answers questions: the base embedding does not need it.
    """

    def __init__(self, source: str, revision: str) -> None:
        super().__init__()
        self.network = from_hub("AutoModel", source, revision).float()
        self.network.text_decoder = None
        self.process = from_hub("AutoProcessor", source, revision)

    def forward(self, bag: Bag) -> Pooled:
        batch = self.process(tile_embeddings=[bag.features.float()]).to(bag.device)
        return _unshown(self.network.get_base_embedding(**batch), bag)
