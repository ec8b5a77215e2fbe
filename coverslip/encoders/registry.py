"""Encoders by name: what each needs and gives, readable without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import orjson

from coverslip.errors import InvalidConfig, UnknownName

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """A recipe: everything that decides what an encoder makes of a tile.

    name            how users and stores call it
    architecture    timm's name for the network, or "package.module:function" that builds it
    arguments       passed to `timm.create_model`, or to that function
    dim             length of the embedding; 0 where only the built network knows
    input_px        side of the network's input
    mpp             µm per pixel it was trained at
    mean, std       of the normalisation, for pixels scaled to 0..1
    interpolation   "bilinear" or "bicubic"
    antialias       whether shrinking averages what it leaves out
    crop            share of the resized tile's side that is kept, from the middle; 1 keeps all
    pooling         "pooled" (the network's own), "cls", "mean" (patch tokens), "cls+mean", or
                    "class-shares" (of a network that classifies pixels: each class's share of them)
    columns         what each number of the embedding is, where they have names
    weights         "package" (ships with a dependency), "hub", "remote-code" (hub, with the network
                    as code beside them), or "" for those that are downloaded by hand
    key_mapping     "package.module:function" that renames a checkpoint's keys to timm's
    hub             repository on the hub that holds them; "" takes timm's own of the architecture
    revision        commit of that repository; "" takes the newest
    file            the checkpoint's name there; "" takes model.safetensors or pytorch_model.bin
    sha256          of that file as published; "" where it is not known
    prefix          what the names of its tensors begin with, where it holds more than the encoder
    base            the encoder to whose weights these are low-rank updates; "" where they are whole
    text            "package.module:function" that loads the text tower of a CLIP model; "" has none
    dtype           on a GPU, under autocast; on the CPU it is float32 always
    parameters      of the network, in millions; 0 where nobody counted
    licence, gated  of the weights
    """

    name: str
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    dim: int = 0
    input_px: int = 224
    mpp: float = 0.5
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    crop: float = 1.0
    pooling: Literal["pooled", "cls", "mean", "cls+mean", "class-shares"] = "pooled"
    columns: tuple[str, ...] = ()
    weights: Literal["package", "hub", "remote-code", ""] = "hub"
    key_mapping: str = ""
    hub: str = ""
    revision: str = ""
    file: str = ""
    sha256: str = ""
    prefix: str = ""
    base: str = ""
    text: str = ""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    parameters: float = 0.0
    licence: str = ""
    gated: bool = False
    kind: ClassVar[str] = "encoder"
    weights_flag: ClassVar[str] = "--weights"

    def recipe(self) -> dict[str, Any]:
        """JSON-able; two encoders with one recipe and the same weights embed alike."""
        return deciding(
            self, {"licence", "gated", "mpp", "weights", "parameters", "file", "sha256"}
        )

    def to_json(self) -> bytes:
        """The whole record as a file that `from_json` reads."""
        return orjson.dumps(self, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_json(cls, path: Path) -> EncoderSpec:
        """Of a file as pretraining leaves beside its weights. Raises InvalidConfig."""
        try:
            content = orjson.loads(path.read_bytes())
            tuples = ("mean", "std", "columns")
            content |= {key: tuple(content[key]) for key in tuples if key in content}
            return cls(**content)
        except (OSError, TypeError, orjson.JSONDecodeError) as error:
            raise InvalidConfig(f"{path}: not an encoder's recipe ({error})") from None

    def recipe_hash(self) -> str:
        """sha256 of the recipe."""
        content = orjson.dumps(self.recipe(), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(content).hexdigest()


def deciding(record: Any, unimportant: set[str]) -> dict[str, Any]:
    """What decides a result in a dataclass of settings: all but the unimportant, and but what is as
    it is by default, so that a setting added later changes nobody's hash."""
    return {
        f.name: value
        for f in fields(record)
        if f.name not in unimportant and (value := getattr(record, f.name)) != _default(f)
    }


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


Spec = TypeVar("Spec", bound=Named)


class Registry(Generic[Spec]):
    """Specs by name: this package's, and those of installed packages.

    kind      what one is called in messages
    sources   "package.module:function" each, yielding specs; called when a name is first wanted
    group     of entry points, each a spec
    """

    def __init__(self, kind: str, sources: Sequence[str], group: str) -> None:
        self.kind, self.group = kind, group
        self._sources: list[str] | None = list(sources)
        self._specs: dict[str, Spec] = {}

    def register(self, spec: Spec) -> Spec:
        """Make it known. The same spec twice is accepted; another under a known name is not."""
        if self._specs.setdefault(spec.name, spec) != spec:
            raise ValueError(f"another {self.kind} is registered as {spec.name!r}")
        return spec

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._specs)

    def spec(self, name: str) -> Spec:
        """What is registered as `name`. Raises UnknownName with the near misses."""
        self._load()
        try:
            return self._specs[name]
        except KeyError:
            raise UnknownName(self.kind, name, self._specs) from None

    def _load(self) -> None:
        sources, self._sources = self._sources or [], None
        if not sources:
            return
        for source in sources:
            module, _, function = source.partition(":")
            for spec in getattr(import_module(module), function)():
                self.register(spec)
        for point in entry_points(group=self.group):
            self.register(point.load())


_encoders: Registry[EncoderSpec] = Registry(
    "encoder",
    [
        "coverslip.encoders.recipes.pathology:published_encoders",
        "coverslip.encoders.recipes.image_text:clip_encoders",
    ],
    group="coverslip.encoders",
)


def register(spec: EncoderSpec) -> EncoderSpec:
    """Make an encoder known. The same spec twice is accepted; another under a known name is not."""
    return _encoders.register(spec)


def encoder_names() -> list[str]:
    """All registered names, sorted."""
    return _encoders.names()


def encoder_spec(name: str) -> EncoderSpec:
    """The recipe registered as `name`. Raises UnknownName with the near misses."""
    return _encoders.spec(name)
