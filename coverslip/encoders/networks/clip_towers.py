"""Networks of image-text models, tower by tower: neither is built, nor its weights read, for the
other.

The image towers give the projected embedding; what it is compared with is the text tower's. Both
are as they come: not normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coverslip.encoders.checkpoints import clip_keys
from coverslip.encoders.networks.musk import musk_text as musk_text_network
from coverslip.encoders.registry import EncoderSpec
from coverslip.encoders.text_tokens import (
    Tokeniser,
    clip_tokeniser,
    conch_tokeniser,
    hub_tokeniser,
    sentencepiece_tokeniser,
    text_package,
    tokeniser_file,
    wordpiece_tokeniser,
)

Config = Mapping[str, Any]
"""As in open_clip's model files: `vision_cfg` or `text_cfg`."""

PUBMEDBERT = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TextTower:
    """What `load_text_encoder` needs of a model.

    network     int64 [n, length] ids -> [n, dim]; with its `logit_scale`, the logarithm as learned
    names       of a checkpoint's tensors -> the network's
    tokeniser   made when it is called; raises MissingWeights where its file is not here
    """

    network: nn.Module
    names: Callable[[clip_keys.State], clip_keys.State]
    tokeniser: Callable[[], Tokeniser]


class ImageTower(nn.Module):
    """One of open_clip's image towers; of a CoCa's outputs the embedding alone."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:  # (b, 3, px, px) -> (b, dim)
        return _embedding(self.tower(x))


class TextNetwork(nn.Module):
    """A text tower with the learned scale of its cosines with images."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:  # (n, length) -> (n, dim)
        return _embedding(self.text(ids))


class BertText(nn.Module):
    """BERT's first token after the last layer, projected: BiomedCLIP."""

    def __init__(self, dim: int, **config: int) -> None:
        super().__init__()
        self.transformer = bert(False, **config)
        width = self.transformer.config.hidden_size
        self.proj = nn.Sequential(
            nn.Linear(width, (width + dim) // 2, bias=False),
            nn.GELU(),
            nn.Linear((width + dim) // 2, dim, bias=False),
        )

    def forward(self, ids: Tensor) -> Tensor:
        out = self.transformer(input_ids=ids, attention_mask=(ids != 0).long())
        embedding: Tensor = self.proj(out.last_hidden_state[:, 0])
        return embedding


class KeepText(TextNetwork):
    """BERT's own pooled output."""

    def forward(self, ids: Tensor) -> Tensor:
        out = self.text(input_ids=ids, attention_mask=(ids != 0).long())
        embedding: Tensor = out.pooler_output
        return embedding


class ConchImage(nn.Module):
    """A vision transformer whose tokens one learned query attends to."""

    def __init__(self, dim: int, side: int, **arguments: Any) -> None:
        super().__init__()
        self.trunk = _vit("vit_base_patch16_224", img_size=side, **arguments)
        width: int = self.trunk.num_features
        pooler = text_package("open_clip.transformer", "encoder conch").AttentionalPooler
        self.attn_pool_contrast = pooler(dim, width, n_head=8, n_queries=1)
        self.ln_contrast = nn.LayerNorm(dim)
        self.proj_contrast = nn.Parameter(width**-0.5 * torch.randn(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.attn_pool_contrast(self.trunk.forward_features(x))[:, 0]  # (b, dim)
        return self.ln_contrast(pooled) @ self.proj_contrast  # type: ignore[no-any-return]


class KeepImage(nn.Module):
    """A vision transformer's class token through two layers."""

    def __init__(self, dim: int, **arguments: Any) -> None:
        super().__init__()
        self.visual = _vit("vit_large_patch16_224", init_values=1e-5, **arguments)
        self.visual_head = nn.Sequential(
            nn.Linear(self.visual.num_features, dim), nn.GELU(), nn.Linear(dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.visual_head(self.visual(x))
        return embedding


def _vit(name: str, **arguments: Any) -> Any:
    import timm

    return timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments)


def bert(pooled: bool, **config: int) -> Any:
    """Transformers' `BertModel`, BERT-base but for `config`, untrained."""
    transformers = text_package("transformers", "a BERT text tower")
    return transformers.BertModel(transformers.BertConfig(**config), add_pooling_layer=pooled)


def open_clip_image(
    embed_dim: int,
    vision_cfg: Config,
    quick_gelu: bool = False,
    text_cfg: Config | None = None,
) -> ImageTower:
    """Of the values in an open_clip model file; those of the text tower are not looked at."""
    towers = text_package("open_clip.model", "an open_clip encoder")
    return ImageTower(towers._build_vision_tower(embed_dim, dict(vision_cfg), quick_gelu))


def open_clip_text(spec: EncoderSpec, folder: Path | None) -> TextTower:
    """Open_clip's own text transformer, or, where the model file names one of the hub's, that.

    A model of the hub is built from the config.json in the folder; its weights are in the
    checkpoint, as open_clip trained them.
    """
    config: Config = spec.arguments["text_cfg"]
    dim = spec.arguments["embed_dim"]
    if hub_model := config.get("hf_model_name"):
        own = tokeniser_file(spec, folder, "config.json", hub_model).parent
        text = text_package("open_clip.hf_model", "an open_clip encoder").HFTextEncoder(
            str(own), dim, None, config.get("hf_pooler_type", "mean_pooler"),
            config.get("hf_proj_type", "mlp"), pretrained=False,
        )  # fmt: skip
    else:
        towers = text_package("open_clip.model", "an open_clip encoder")
        quick_gelu = spec.arguments.get("quick_gelu", False)
        text = towers._build_text_tower(dim, dict(config), quick_gelu)
    return TextTower(
        TextNetwork(text), clip_keys.text, lambda: _open_clip_tokeniser(spec, config, folder)
    )


def _open_clip_tokeniser(spec: EncoderSpec, config: Config, folder: Path | None) -> Tokeniser:
    length, options = config.get("context_length", 77), config.get("tokenizer_kwargs", {})
    if not (hub_model := config.get("hf_tokenizer_name")):
        return clip_tokeniser(length, **options)
    own = tokeniser_file(spec, folder, "tokenizer.json", hub_model).parent
    return hub_tokeniser(own, length, **options)


def biomedclip_text(spec: EncoderSpec, folder: Path | None) -> TextTower:
    """PubMedBERT with a projection."""
    text = BertText(spec.dim, **PUBMEDBERT)
    return TextTower(TextNetwork(text), clip_keys.text, lambda: _wordpieces(spec, folder))


def keep_text(spec: EncoderSpec, folder: Path | None) -> TextTower:
    """PubMedBERT, pooled by itself."""
    network = KeepText(bert(True, **PUBMEDBERT))
    return TextTower(network, clip_keys.keep_text, lambda: _wordpieces(spec, folder))


def _wordpieces(spec: EncoderSpec, folder: Path | None) -> Tokeniser:
    return wordpiece_tokeniser(tokeniser_file(spec, folder, "vocab.txt", spec.hub), 256)


def conch_text(spec: EncoderSpec, folder: Path | None) -> TextTower:
    """A causal transformer with a summary token at the end."""
    text = text_package("open_clip.transformer", "encoder conch").TextTransformer(
        context_length=127, vocab_size=32007, width=768, heads=12, layers=12, embed_cls=True,
        output_dim=spec.dim,
    )  # fmt: skip
    file = "conch_byte_level_bpe_uncased.json"
    published = "github.com/mahmoodlab/CONCH, in conch/open_clip_custom/tokenizers"
    return TextTower(
        TextNetwork(text),
        clip_keys.text,
        lambda: conch_tokeniser(tokeniser_file(spec, folder, file, published)),
    )


def musk_text(spec: EncoderSpec, folder: Path | None) -> TextTower:
    """The text expert of MUSK."""
    published = "github.com/lilab-stanford/MUSK, in musk/models"
    return TextTower(
        musk_text_network(),
        clip_keys.musk_text,
        lambda: sentencepiece_tokeniser(tokeniser_file(spec, folder, "tokenizer.spm", published)),
    )


def _embedding(out: Any) -> Tensor:
    """Of what a tower gives: itself, or the first of (embedding, tokens)."""
    embedding: Tensor = out[0] if isinstance(out, tuple) else out
    return embedding
