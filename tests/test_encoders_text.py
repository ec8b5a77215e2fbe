"""Image-text models: towers, names of tensors and texts, against the libraries they come from."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from coverslip.encoders.checkpoints import clip_keys
from coverslip.encoders.encoder import pooled
from coverslip.encoders.loading import _network, load_encoder
from coverslip.encoders.networks.musk import musk_image, musk_text
from coverslip.encoders.recipes.image_text import TOWERS, clip_encoders, open_clip_spec
from coverslip.encoders.registry import EncoderSpec, encoder_names, encoder_spec, register
from coverslip.encoders.text import (
    TEMPLATES,
    TextEncoder,
    class_vectors,
    load_text_encoder,
    probabilities,
    similarity,
    unit,
    zero_shot,
    zero_shot_classifier,
)
from coverslip.encoders.text_tokens import clip_tokeniser, conch_tokeniser, wordpiece_tokeniser
from coverslip.errors import InvalidConfig, MissingPackage, MissingWeights, UnknownName

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

RECIPES = {spec.name: spec for spec in clip_encoders()}
DOCUMENTED = {  # millions in both towers, as the papers and model cards give them
    "plip": 151.3, "quiltnet-b-32": 151.3, "biomedclip": 196, "conch": 200, "keep": 414,
    "musk": 675,
}  # fmt: skip
COCA_DECODER = 638.45  # millions in all of open_clip's coca_ViT-L-14, which OmiCLIP is
TEXTS = ["a photomicrograph showing tumour.", "stroma", "necrosis, hæmorrhage & débris " * 30]

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}
TINY_COCA: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {**TINY["vision_cfg"], "attentional_pool": True, "output_tokens": True},
    "text_cfg": {**TINY["text_cfg"], "context_length": 20, "embed_cls": True,
                 "output_tokens": True},
    "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4,
                       "layers": 1},
    "custom_text": True,
}  # fmt: skip
SMALL_BERT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 64}  # fmt: skip


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["clip", "coca"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(its name, open_clip's own model, the checkpoint that open_clip's trainer would leave)."""
    folder = tmp_path_factory.mktemp("open_clip")
    name = f"coverslip-tiny-{request.param}"
    config = TINY if request.param == "clip" else TINY_COCA
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    theirs = open_clip.create_model(name).eval()
    path = folder / "epoch_1.pt"
    state = {f"module.{k}": v for k, v in theirs.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, path)
    return f"open_clip:{name}", theirs, path


def prepared(spec: EncoderSpec, tiles: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std


def text_network(spec: EncoderSpec) -> Any:
    module, _, function = spec.text.partition(":")
    return getattr(import_module(module), function)(spec, None).network


def count(network: torch.nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


def test_recipes_need_no_torch() -> None:
    code = (
        "import sys\nfrom coverslip.encoders.registry import encoder_names, encoder_spec\n"
        "assert encoder_spec('conch').dim == 512 and 'plip' in encoder_names()\n"
        "print({'torch', 'timm', 'open_clip', 'transformers'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
    assert set(RECIPES) <= set(encoder_names())
    assert len({spec.recipe_hash() for spec in RECIPES.values()}) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_towers_are_the_published_ones(name: str) -> None:
    """Built without memory for their weights: documented size and dim."""
    spec = RECIPES[name]
    with torch.device("meta"), torch.inference_mode():
        image, text = _network(spec).eval(), text_network(spec)
        pixels = torch.zeros(1, 3, spec.input_px, spec.input_px)
        assert pooled(image, pixels, spec.pooling).shape == (1, spec.dim)
    assert count(image) == pytest.approx(spec.parameters, abs=0.006)
    if name in DOCUMENTED:
        assert count(image) + count(text) == pytest.approx(DOCUMENTED[name], rel=0.012)
    assert spec.licence
    assert encoder_spec(name) == spec


def on_meta(build: Callable[[], torch.nn.Module]) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return dict(build().state_dict())


def inside(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def shapes(**named: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {
        name.replace("__", "."): torch.empty(shape, device="meta") for name, shape in named.items()
    }


def transformers_clip() -> dict[str, torch.Tensor]:
    state = on_meta(lambda: transformers.CLIPModel(transformers.CLIPConfig()))
    return state | shapes(
        vision_model__embeddings__position_ids=(1, 50), text_model__embeddings__position_ids=(1, 77)
    )


def open_clip_checkpoint(name: str, kind: str) -> dict[str, torch.Tensor]:
    config = open_clip.get_model_config(name)
    config.pop("custom_text", None)
    return on_meta(lambda: getattr(open_clip, kind)(**config))


def vit(name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    import timm

    return on_meta(lambda: timm.create_model(name, num_classes=0, **arguments))


def bert(pooled: bool) -> dict[str, torch.Tensor]:
    config = transformers.BertConfig()
    state = on_meta(lambda: transformers.BertModel(config, add_pooling_layer=pooled))
    return state | shapes(embeddings__position_ids=(1, 512))


def biomedclip_checkpoint() -> dict[str, torch.Tensor]:
    return {
        **inside("visual.trunk.", vit("vit_base_patch16_224")),
        **inside("text.transformer.", bert(False)),
        **shapes(visual__head__proj__weight=(512, 768), text__proj__0__weight=(640, 768),
                 text__proj__2__weight=(512, 640), logit_scale=()),
    }  # fmt: skip


def conch_pooler(dim: int, queries: int) -> dict[str, torch.Tensor]:
    return shapes(
        query=(queries, dim), attn__q_proj_weight=(dim, dim), attn__k_proj_weight=(dim, 768),
        attn__v_proj_weight=(dim, 768), attn__in_proj_bias=(3 * dim,),
        attn__out_proj__weight=(dim, dim), attn__out_proj__bias=(dim,), ln_q__weight=(dim,),
        ln_q__bias=(dim,), ln_k__weight=(768,), ln_k__bias=(768,),
    )  # fmt: skip


def conch_checkpoint() -> dict[str, torch.Tensor]:
    block = shapes(
        ln_1__weight=(768,), ln_1__bias=(768,), attn__in_proj_weight=(2304, 768),
        attn__in_proj_bias=(2304,), attn__out_proj__weight=(768, 768), attn__out_proj__bias=(768,),
        ln_2__weight=(768,), ln_2__bias=(768,), mlp__c_fc__weight=(3072, 768),
        mlp__c_fc__bias=(3072,), mlp__c_proj__weight=(768, 3072), mlp__c_proj__bias=(768,),
    )  # fmt: skip
    text = shapes(
        text_projection=(768, 512), cls_emb=(768,), token_embedding__weight=(32007, 768),
        positional_embedding=(128, 768), ln_final__weight=(768,), ln_final__bias=(768,),
    )  # fmt: skip
    for i in range(12):
        text |= inside(f"transformer.resblocks.{i}.", block)
    return {
        **inside("visual.trunk.", vit("vit_base_patch16_224", img_size=448)),
        **inside("visual.attn_pool_contrast.", conch_pooler(512, 1)),
        **inside("visual.attn_pool_caption.", conch_pooler(768, 256)),
        **inside("text.", text),
        **inside("text_decoder.", inside("resblocks.0.", block)),
        **shapes(visual__ln_contrast__weight=(512,), visual__ln_contrast__bias=(512,),
                 visual__proj_contrast=(512, 512), visual__ln_caption__weight=(768,),
                 visual__ln_caption__bias=(768,), logit_scale=()),
    }  # fmt: skip


def keep_checkpoint() -> dict[str, torch.Tensor]:
    visual = {
        name.replace("ls1.gamma", "ls1.weight").replace("ls2.gamma", "ls2.weight"): tensor
        for name, tensor in vit("vit_large_patch16_224", init_values=1e-5).items()
    }
    return {
        **inside("visual.", visual),
        **inside("text.", bert(True)),
        **shapes(visual_head__0__weight=(768, 1024), visual_head__0__bias=(768,),
                 visual_head__2__weight=(768, 768), visual_head__2__bias=(768,), logit_scale=()),
    }  # fmt: skip


def musk_checkpoint() -> dict[str, torch.Tensor]:
    def both(name: str, *shape: int) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{expert}.{kind}": torch.empty(size, device="meta")
            for expert in "AB"
            for kind, size in (("weight", shape), ("bias", shape[:1]))
        }

    state = {}
    for i in range(24):
        layer = f"beit3.encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= both(f"{layer}self_attn.{part}", 1024, 1024)
        for part in ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm"):
            state |= both(layer + part, 1024)
        for expert in "AB":
            state |= inside(
                f"{layer}ffn.{expert}.",
                shapes(fc1__weight=(4096, 1024), fc1__bias=(4096,), fc2__weight=(1024, 4096),
                       fc2__bias=(1024,), ffn_layernorm__weight=(4096,),
                       ffn_layernorm__bias=(4096,)),
            )  # fmt: skip
    return {
        **state,
        **both("beit3.encoder.layer_norm", 1024),
        **inside("beit3.", shapes(
            text_embed__weight=(64010, 1024), vision_embed__mask_token=(1, 1, 1024),
            vision_embed__cls_token=(1, 1, 1024), vision_embed__proj__weight=(1024, 3, 16, 16),
            vision_embed__proj__bias=(1024,), encoder__embed_positions__A__weight=(579, 1024),
            encoder__embed_positions__B__weight=(1024, 1024),
        )),
        **shapes(vision_head__weight=(1024, 1024), language_head__weight=(1024, 1024),
                 logit_scale=()),
    }  # fmt: skip


CHECKPOINTS: list[tuple[str, Callable[[], dict[str, torch.Tensor]]]] = [
    ("plip", transformers_clip),
    ("quiltnet-b-32", lambda: open_clip_checkpoint("ViT-B-32", "CLIP")),
    ("quiltnet-b-32", transformers_clip),
    ("biomedclip", biomedclip_checkpoint),
    ("omiclip", lambda: open_clip_checkpoint("coca_ViT-L-14", "CoCa")),
    ("conch", conch_checkpoint),
    ("keep", keep_checkpoint),
    ("musk", musk_checkpoint),
]


@pytest.mark.parametrize(("name", "checkpoint"), CHECKPOINTS)
def test_every_tensor_of_the_published_names_finds_its_place(
    name: str, checkpoint: Callable[[], dict[str, torch.Tensor]]
) -> None:
    spec, state = RECIPES[name], checkpoint()
    with torch.device("meta"):
        image, text = _network(spec), text_network(spec)
    names = getattr(clip_keys, spec.key_mapping.partition(":")[2])
    module, _, function = spec.text.partition(":")
    with torch.device("meta"):
        text_names = getattr(import_module(module), function)(spec, None).names
    for network, mapping in ((image, names), (text, text_names)):
        wanted = {k: v.shape for k, v in network.state_dict().items()}
        assert {k: v.shape for k, v in mapping(state).items()} == wanted
        with pytest.raises(KeyError, match="surprise"):
            mapping({**state, "surprise.weight": torch.zeros(1)})


def test_omiclip_is_open_clips_own() -> None:
    config = open_clip.get_model_config("coca_ViT-L-14")
    spec = RECIPES["omiclip"]
    assert all(spec.arguments[key] == config[key] for key in spec.arguments)
    whole = open_clip_checkpoint("coca_ViT-L-14", "CoCa")
    assert sum(v.numel() for v in whole.values()) / 1e6 == pytest.approx(COCA_DECODER, abs=0.01)


def test_transformers_checkpoints_give_the_same_embeddings(
    tiles: np.ndarray, tmp_path: Path
) -> None:
    """PLIP's case, number by number, against the library that wrote such a checkpoint."""
    common = {"hidden_act": "quick_gelu", "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            projection_dim=24,
            vision_config={**common, "hidden_size": 48, "intermediate_size": 192,
                           "image_size": 32, "patch_size": 8},
            text_config={**common, "hidden_size": 32, "intermediate_size": 128},
        )
    ).eval()  # fmt: skip
    vision = {**TINY["vision_cfg"]}
    spec = register(
        EncoderSpec(
            "small-plip", f"{TOWERS}:open_clip_image",
            {**TINY, "vision_cfg": vision, "quick_gelu": True}, 24, 32,
            key_mapping="coverslip.encoders.checkpoints.clip_keys:image",
            text=f"{TOWERS}:open_clip_text",
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)  # under the names that checkpoints on the hub have
    weights = tmp_path / "model.safetensors"
    images = load_encoder("small-plip", weights=weights, device="cpu")
    text = load_text_encoder("small-plip", weights=weights, device="cpu")
    with torch.inference_mode():
        expected = theirs.get_image_features(pixel_values=prepared(spec, tiles))
        ids = clip_tokeniser(77)(TEXTS)
        described = theirs.get_text_features(input_ids=ids)
    expected, described = (getattr(out, "pooler_output", out) for out in (expected, described))
    np.testing.assert_allclose(images.encode(tiles), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(text.encode(TEXTS), unit(described.numpy()), atol=1e-5)
    assert text.logit_scale == pytest.approx(theirs.logit_scale.exp().item(), rel=1e-6)
    assert text.weights_sha256 == images.weights_sha256


def test_open_clip_models_give_the_same_embeddings(model: Any, tiles: np.ndarray) -> None:
    name, theirs, path = model
    images = load_encoder(name, weights=path, device="cpu")
    text = load_text_encoder(name, weights=path, device="cpu")
    with torch.inference_mode():
        pixels = theirs.encode_image(prepared(images.spec, tiles), normalize=False)
        ids = open_clip.get_tokenizer(name.removeprefix("open_clip:"))(TEXTS)
        described = theirs.encode_text(ids, normalize=True)
    np.testing.assert_allclose(images.encode(tiles), pixels.numpy(), atol=1e-5)
    np.testing.assert_allclose(text.encode(TEXTS), described.numpy(), atol=1e-5)
    assert images.dim == text.dim == 24


def test_zero_shot_is_open_clips_own_formula(model: Any, tiles: np.ndarray) -> None:
    name, theirs, path = model
    tokenizer = open_clip.get_tokenizer(name.removeprefix("open_clip:"))
    classes = {"tumour": ["tumour"], "stroma": ["stroma"], "fat": ["fat"]}
    templates = TEMPLATES[:3]
    images = load_encoder(name, weights=path, device="cpu")
    with torch.inference_mode():
        weights = open_clip.build_zero_shot_classifier(theirs, tokenizer, list(classes), templates)
        pixels = theirs.encode_image(prepared(images.spec, tiles), normalize=True)
        expected = (theirs.logit_scale.exp() * pixels @ weights).softmax(dim=-1).numpy()
    classify = zero_shot_classifier(name, classes, templates=templates, weights=path, device="cpu")
    found = classify(tiles)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    text = load_text_encoder(name, weights=path, device="cpu")
    vectors = class_vectors(text, classes, templates)
    np.testing.assert_allclose(vectors, weights.T.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        zero_shot(images.encode(tiles), vectors, text.logit_scale), found, atol=1e-6
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    path = tmp_path_factory.mktemp("text") / "coverslip-tiny-text.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return load_text_encoder("open_clip:coverslip-tiny-text", weights="random", device="cpu")


def test_the_laws_of_templates(text: TextEncoder) -> None:
    classes = {"tumour": ["carcinoma", "tumour"], "stroma": ["stroma"]}
    forward = class_vectors(text, classes, TEMPLATES)
    np.testing.assert_allclose(class_vectors(text, classes, TEMPLATES[::-1]), forward, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(forward, axis=1), 1, atol=1e-6)
    (plain,) = text.encode(["an image of stroma."])
    one = class_vectors(text, classes, ["an image of {}."])
    np.testing.assert_allclose(one[1], plain, atol=1e-6)
    both = text.encode(["an image of carcinoma.", "an image of tumour."]).mean(axis=0)
    np.testing.assert_allclose(one[0], both / np.linalg.norm(both), atol=1e-6)
    odd = {"{}": ["{}"], "{0} %s": ["{0} %s"]}  # names are text, not formats
    assert class_vectors(text, odd, ["a {}"]).shape == (2, 24)


def test_prompts_that_mean_nothing_are_refused(text: TextEncoder) -> None:
    two = {"a": ["a"], "b": ["b"]}
    for classes, templates, said in (
        ({"a": ["a"]}, TEMPLATES, "two classes"),
        ({"a": ["a"], "b": []}, TEMPLATES, "'b'"),
        ({"a": ["a"], "b": [" "]}, TEMPLATES, "'b'"),
        (two, [], "template"),
        (two, ["a photo"], "a photo"),
        (two, ["{} and {}"], "one {}"),
    ):
        with pytest.raises(InvalidConfig, match=said):
            class_vectors(text, classes, templates)
    with pytest.raises(TypeError, match="list of texts"):
        text.encode("tumour")


def test_encoding_does_not_depend_on_company(text: TextEncoder) -> None:
    together = text.encode(TEXTS * 30)  # more than a batch
    np.testing.assert_allclose(together[:3], text.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(together[-3:], together[:3], atol=1e-6)
    assert text.encode([]).shape == (0, 24)


def test_probabilities_are_a_stable_softmax() -> None:
    cosines = np.array([[1.0, -1.0, 0.0], [0.2, 0.2, 0.2]], np.float32)
    found = probabilities(cosines, 1000.0)
    np.testing.assert_allclose(found, [[1, 0, 0], [1 / 3] * 3], atol=1e-6)
    vectors = np.eye(3, 5)
    images = np.array([[3.0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_allclose(similarity(images, 7 * vectors), [[1, 0, 0], [0, 0, 0]], atol=1e-6)
    assert zero_shot(np.empty((0, 5)), vectors, 10.0).shape == (0, 3)
    (row,) = zero_shot(images[:1], vectors, math.log(4))
    np.testing.assert_allclose(row, [4 / 6, 1 / 6, 1 / 6], atol=1e-6)


def test_published_weights_of_open_clip_bring_their_preparation() -> None:
    siglip = open_clip_spec("open_clip:ViT-B-16-SigLIP.webli")
    assert siglip.name == "open_clip_ViT-B-16-SigLIP.webli"
    assert (siglip.mean, siglip.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (siglip.dim, siglip.input_px, siglip.hub) == (768, 224, "timm/ViT-B-16-SigLIP")
    openai = open_clip_spec("open_clip:ViT-B-32.openai")
    assert openai.arguments["quick_gelu"] is True
    plain = open_clip_spec("open_clip:ViT-B-32")
    assert (plain.dim, plain.weights, plain.arguments["quick_gelu"]) == (512, "", False)
    assert plain.mean == RECIPES["plip"].mean
    with pytest.raises(UnknownName, match="open_clip:ViT-B-32"):
        load_encoder("open_clip:ViT-B-33", device="cpu")
    with pytest.raises(UnknownName, match=r"ViT-B-32\.openai"):
        open_clip_spec("open_clip:ViT-B-32.opanai")


def test_without_a_text_tower_the_known_ones_are_named() -> None:
    with pytest.raises(UnknownName, match="conch"):
        load_text_encoder("uni", device="cpu")


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("open_clip", "open_clip.model", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=r"open_clip_torch\n  pip install 'coverslip\[text\]'"):
        load_encoder("plip", weights="random", device="cpu")
    with pytest.raises(MissingPackage, match=r"transformers\n"):
        load_text_encoder("keep", weights="random", device="cpu")
    with pytest.raises(MissingPackage, match=r"coverslip\[text\]"):
        load_encoder("open_clip:ViT-B-32", weights="random", device="cpu")


def test_another_models_weights_are_refused(model: Any, tmp_path: Path) -> None:
    name, theirs, _ = model
    state = {k: v.contiguous() for k, v in theirs.state_dict().items()}
    save_file({**state, "surprise.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MissingWeights, match=r"other\.safetensors.*surprise"):
        load_text_encoder(name, weights=tmp_path / "other.safetensors", device="cpu")
    with pytest.raises(MissingWeights, match="downloaded by hand"):
        load_text_encoder(name, device="cpu")


def vocabulary(folder: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "tumour", "##s", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder / "vocab.txt"


def test_word_pieces(tmp_path: Path) -> None:
    tokens = wordpiece_tokeniser(vocabulary(tmp_path), 6)
    found = tokens(["A photo of TUMOURS.", "tumour", "stroma"])
    assert found.tolist() == [[2, 5, 6, 7, 8, 3], [2, 8, 3, 0, 0, 0], [2, 1, 3, 0, 0, 0]]


def test_conchs_byte_pairs(tmp_path: Path) -> None:
    """A file of CONCH's kind with three merges: padded to 127, cut off at 127."""
    vocab = {"<pad>": 0, "<start_of_text>": 1, "<end_of_text>": 2, "Ġ": 3, "a": 4, "b": 5, "Ġa": 6}
    ends = {
        token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
        for token in ("<start_of_text>", "<end_of_text>")
    }
    special = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, token in enumerate(("<pad>", "<start_of_text>", "<end_of_text>"))
    ]  # fmt: skip
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                          "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<start_of_text>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "<end_of_text>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": ends,
        },
        "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "vocab": vocab, "merges": ["Ġ a"]},
    }  # fmt: skip
    (tmp_path / "bpe.json").write_text(json.dumps(content))
    found = conch_tokeniser(tmp_path / "bpe.json")(["AB a", "a " * 300])
    assert found.shape == (2, 127)
    assert found[0].tolist() == [1, 6, 5, 6, 2] + [0] * 122
    assert found[1].tolist() == [1] + [6] * 125 + [2]


def test_pieces_are_numbered_as_xlm_roberta_does(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    from coverslip.encoders.text_tokens import sentencepiece_tokeniser

    texts = ["a photomicrograph of tumour and stroma", "necrosis of the tumour", "normal mucosa"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20), model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=29, hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "tokenizer.model"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode("tumour")
    found = sentencepiece_tokeniser(path)(["tumour", "stroma 肿"])
    assert found[0, : len(pieces) + 2].tolist() == [0, *(piece + 1 for piece in pieces), 2]
    assert set(found[0, len(pieces) + 2 :].tolist()) <= {1}
    assert 3 in found[1]
    assert sentencepiece_tokeniser(path)(["tumour " * 200]).shape == (1, 100)


@pytest.mark.parametrize(
    ("name", "file"),
    [("keep", "vocab.txt"), ("biomedclip", "vocab.txt"), ("musk", "tokenizer.spm"),
     ("conch", "conch_byte_level_bpe_uncased.json")],
)  # fmt: skip
def test_a_missing_tokeniser_says_which_file_goes_where(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(spec: EncoderSpec, folder: Path | None) -> Any:
        with torch.device("meta"):
            return real(spec, folder)

    module, _, function = RECIPES[name].text.partition(":")
    real = getattr(import_module(module), function)
    monkeypatch.setattr(f"{module}.{function}", small)
    (tmp_path / f"{name}.pth").touch()
    with pytest.raises(MissingWeights, match=f"(?s){file}.*--weights FOLDER"):
        load_text_encoder(name, weights=tmp_path, device="cpu")


def test_berts_first_token_is_open_clips(tmp_path: Path) -> None:
    """BiomedCLIP's text tower against the class that trained it, on texts of two lengths."""
    from coverslip.encoders.networks.clip_towers import BertText

    transformers.BertConfig(**SMALL_BERT).save_pretrained(tmp_path)
    torch.manual_seed(0)
    theirs = open_clip.hf_model.HFTextEncoder(
        str(tmp_path), 24, None, "cls_last_hidden_state_pooler", "mlp", pretrained=False
    ).eval()
    ours = BertText(24, **SMALL_BERT).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 8, 3, 0, 0, 0]])
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs(ids), atol=1e-6, rtol=0)
        torch.testing.assert_close(ours(ids[1:, :3]), theirs(ids)[1:], atol=1e-6, rtol=0)


def test_a_text_tower_of_the_hub_is_built_from_a_folder(tmp_path: Path) -> None:
    """An open_clip model whose text is read by BERT, all from local files."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers.BertConfig(**SMALL_BERT).save_pretrained(tmp_path)
    wordpiece = tokenizers.BertWordPieceTokenizer(str(vocabulary(tmp_path)), lowercase=True)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=wordpiece._tokenizer, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    fast.save_pretrained(tmp_path)
    text_cfg = {
        "hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path), "context_length": 16,
        "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler",
    }  # fmt: skip
    name = "coverslip-tiny-bert"
    (tmp_path / f"{name}.json").write_text(json.dumps({**TINY, "text_cfg": text_cfg}))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    theirs = open_clip.create_model(name, pretrained_text=False).eval()
    torch.save(theirs.state_dict(), tmp_path / f"open_clip_{name}.pth")
    text = load_text_encoder(f"open_clip:{name}", weights=tmp_path, device="cpu")
    with torch.inference_mode():
        expected = theirs.encode_text(
            open_clip.get_tokenizer(name)(["a photo of tumours.", "tumour"]), normalize=True
        )
    found = text.encode(["a photo of tumours.", "tumour"])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    with pytest.raises(MissingWeights, match=r"config\.json"):
        load_text_encoder(f"open_clip:{name}", weights="random", device="cpu")


def test_conchs_summary_token_reads_what_it_was_trained_to() -> None:
    """Against torch's own layers: causal, and the summary's sight of the text is one place late."""
    spec = RECIPES["conch"]
    torch.manual_seed(0)
    ours = text_network(spec).eval()
    text = ours.text
    ids = torch.zeros(2, 127, dtype=torch.long)
    ids[0, :5], ids[1, :3] = torch.tensor([1, 40, 50, 60, 2]), torch.tensor([1, 70, 2])
    seen = torch.cat([torch.ones(2, 1, dtype=torch.bool), ids != 0], dim=1)  # (b, 128)
    blocked = torch.ones(128, 128, dtype=torch.bool).triu(1) | ~seen[:, None]  # (b, 128, 128)
    x = torch.cat([text.token_embedding(ids), text.cls_emb.expand(2, 1, -1)], dim=1)
    x = x + text.positional_embedding
    for block in text.transformer.resblocks:
        layer = torch.nn.TransformerEncoderLayer(
            768, 12, 3072, activation="gelu", batch_first=True, norm_first=True
        ).eval()
        state = block.state_dict()
        renamed = {"ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
        for theirs, own in renamed.items():
            state = {k.replace(f"{theirs}.", f"{own}."): v for k, v in state.items()}
        layer.load_state_dict({k.replace("attn.", "self_attn."): v for k, v in state.items()})
        with torch.inference_mode():
            x = layer(x, src_mask=blocked.repeat_interleave(12, dim=0))
    with torch.inference_mode():
        expected = text.ln_final(x[:, -1]) @ text.text_projection
        torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=1e-4)


def test_conchs_query_attends_to_all_tokens() -> None:
    """Against attention written out."""
    from coverslip.encoders.networks.clip_towers import ConchImage

    torch.manual_seed(0)
    network = ConchImage(16, 32, patch_size=8, depth=1, embed_dim=24, num_heads=2).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        pool = network.attn_pool_contrast
        tokens = pool.ln_k(network.trunk.forward_features(x))  # (2, 17, 24)
        bias = pool.attn.in_proj_bias.chunk(3)
        q = pool.ln_q(pool.query) @ pool.attn.q_proj_weight.T + bias[0]  # (1, 16)
        k = tokens @ pool.attn.k_proj_weight.T + bias[1]
        v = tokens @ pool.attn.v_proj_weight.T + bias[2]
        q, k, v = (t.unflatten(-1, (8, 2)) for t in (q[None], k, v))
        shares = torch.einsum("bqhd,bnhd->bhqn", q.expand(2, -1, -1, -1), k) / 2**0.5
        mixed = torch.einsum("bhqn,bnhd->bqhd", shares.softmax(-1), v).flatten(2)
        expected = network.ln_contrast(pool.attn.out_proj(mixed)[:, 0]) @ network.proj_contrast
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-4)


@pytest.fixture
def musk() -> tuple[Any, Any]:
    torch.manual_seed(0)
    image = musk_image(32, 2, 4, 64, 8, 32).eval()
    text = musk_text(32, 2, 4, 64, 50, 40).eval()
    with torch.no_grad():
        for parameter in [*image.parameters(), *text.parameters()]:
            parameter.normal_(std=0.3)
    return image, text


def written_out(network: Any, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """MUSK's expert in the words of its paper: normalised before and inside each part."""
    norm = torch.nn.functional.layer_norm
    x = tokens + network.embed_positions.weight[2 : 2 + tokens.shape[1]]
    for layer in network.layers:
        y, attention = layer.self_attn_layer_norm(x), layer.self_attn
        heads = []
        for part in range(4):
            inside = slice(8 * part, 8 * part + 8)
            q, k, v = (
                p(y)[..., inside] for p in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            scores = (q @ k.mT / 8**0.5).masked_fill(~real[:, None], -torch.inf)
            heads.append(scores.softmax(-1) @ v)
        mixed = attention.inner_attn_ln(torch.cat(heads, dim=-1))
        x = x + attention.out_proj(mixed)
        hidden = torch.nn.functional.gelu(layer.ffn.fc1(layer.final_layer_norm(x)))
        inner = layer.ffn.ffn_layernorm
        x = x + layer.ffn.fc2(norm(hidden, (64,), inner.weight, inner.bias, 1e-5))
    return network.layer_norm(x)[:, 0] @ network.head.weight.T


def test_musks_experts(musk: tuple[Any, Any]) -> None:
    image, text = musk
    pixels = torch.randn(2, 3, 32, 32)
    ids = torch.tensor([[0, 5, 6, 7, 2, 1, 1], [0, 9, 8, 4, 3, 11, 2]])
    with torch.inference_mode():
        tokens = image.embed(pixels)
        assert tokens.shape == (2, 17, 32)
        expected = written_out(image, tokens, torch.ones(2, 17, dtype=torch.bool))
        torch.testing.assert_close(image(pixels), expected, atol=1e-4, rtol=1e-4)
        expected = written_out(text, text.embed(ids), ids != 1)
        torch.testing.assert_close(text(ids), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(text(ids[:1, :5]), text(ids)[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
def test_gpu_and_cpu_agree(text: TextEncoder) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    gpu = load_text_encoder("open_clip:coverslip-tiny-text", weights="random", device="cuda")
    np.testing.assert_allclose(gpu.encode(TEXTS), text.encode(TEXTS), atol=1e-3)
