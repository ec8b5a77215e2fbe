"""Texts to the numbers that text towers read. What a tower's vocabulary is, its authors publish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverslip.encoders.registry import EncoderSpec
from coverslip.errors import MissingPackage, MissingWeights

if TYPE_CHECKING:
    import torch

Tokeniser = Callable[[Sequence[str]], "torch.Tensor"]
"""n texts -> int64 [n, length], the shorter ones padded; a text beyond the length is cut off."""

_DISTRIBUTIONS = {"open_clip": "open_clip_torch"}


def text_package(name: str, what: str) -> Any:
    """A package that only image-text models need. Raises MissingPackage."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingPackage(what, _DISTRIBUTIONS.get(package, package), "text") from error


def tokeniser_file(spec: EncoderSpec, folder: Path | None, file: str, published: str) -> Path:
    """Where a tokeniser's file is: `<folder>/<encoder>/`, `<folder>/`, or the hub's cache.

    folder      of the checkpoint; None asks the hub
    published   where its authors keep it

    Raises MissingWeights, and says which file to put where.
    """
    reason = ""
    if folder is not None:
        for place in (folder / spec.name / file, folder / file):
            if place.is_file():
                return place
        reason = f"{folder} does not hold it"
    else:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(spec.hub, file, revision=spec.revision or None))
        except Exception as error:  # the hub client raises a zoo of network errors
            said = str(error).strip().splitlines()
            reason = f"the hub did not give it: {said[0] if said else type(error).__name__}"
    raise MissingWeights(
        f"encoder {spec.name}: to read text it needs {file} of {published} ({reason})\n"
        f"  put it beside the checkpoint and name the folder: --weights FOLDER, which holds "
        f"{spec.name}.safetensors and {file}"
    )


def clip_tokeniser(length: int, **options: Any) -> Tokeniser:
    """CLIP's byte pairs, which come with open_clip. Ids are padded with 0 to the length."""
    tokenizer: Any = text_package("open_clip.tokenizer", "CLIP's tokeniser").SimpleTokenizer(
        context_length=length, **options
    )

    def tokens(texts: Sequence[str]) -> torch.Tensor:
        found: torch.Tensor = tokenizer(list(texts))
        return found

    return tokens


def hub_tokeniser(folder: Path, length: int, **options: Any) -> Tokeniser:
    """Of the tokenizer.json and its companions in a folder, as open_clip uses such."""
    tokenizer: Any = text_package("open_clip.tokenizer", "open_clip's tokeniser").HFTokenizer(
        str(folder), length, **options
    )

    def tokens(texts: Sequence[str]) -> torch.Tensor:
        found: torch.Tensor = tokenizer(list(texts))
        return found

    return tokens


def wordpiece_tokeniser(vocabulary: Path, length: int) -> Tokeniser:
    """BERT's word pieces, in lower case, of a vocab.txt. Ids are padded with [PAD]."""
    tokenizers = text_package("tokenizers", f"{vocabulary.name}")
    tokenizer = tokenizers.BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    tokenizer.enable_truncation(length)
    padding = tokenizer.token_to_id("[PAD]")
    return lambda texts: padded([t.ids for t in tokenizer.encode_batch(list(texts))], padding)


def conch_tokeniser(file: Path) -> Tokeniser:
    """CONCH's byte pairs. Ids are padded with 0 to 127, for its summary token is the 128th."""
    tokenizer = text_package("tokenizers", f"{file.name}").Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(127)
    padding = tokenizer.token_to_id("<pad>")
    return lambda texts: padded([t.ids for t in tokenizer.encode_batch(list(texts))], padding, 127)


def sentencepiece_tokeniser(file: Path) -> Tokeniser:
    """MUSK's pieces, numbered as XLM-RoBERTa does, up to 100 with both ends. Padded with 1."""
    package = text_package("sentencepiece", f"{file.name}")
    processor = package.SentencePieceProcessor(model_file=str(file))
    start, end, unknown, padding, length = 0, 2, 3, 1, 100

    def ids(text: str) -> list[int]:
        pieces = [piece + 1 if piece else unknown for piece in processor.encode(text)]
        return [start, *pieces[: length - 2], end]

    return lambda texts: padded([ids(text) for text in texts], padding)


def padded(rows: Sequence[Sequence[int]], padding: int, length: int = 0) -> torch.Tensor:
    """int64 [n, length]: rows of ids, each filled up with `padding`; 0 takes the longest's."""
    import torch

    found = torch.full((len(rows), length or max(map(len, rows), default=0)), padding)
    for i, row in enumerate(rows):
        found[i, : len(row)] = torch.tensor(row)
    return found
