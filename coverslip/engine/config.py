"""What a run is asked to do. A TOML file holds the same names as the command line's flags."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import orjson

from coverslip import __version__
from coverslip.errors import InvalidConfig
from coverslip.settings import toml_content

OnBadTile = Literal["fail", "blank"]
Pixels = Literal["none", "jpeg", "lossless"]
Image = Literal["none", "carried", "portable"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
Stain = Literal["none", "macenko", "vahadane", "ruifrok", "reinhard"]
HOW = ("device", "batch", "compile", "threads", "read_timeout", "cross_check")
"""Settings that do not decide what is made."""
EXPORTS = ("geojson", "h5", "clam", "stamp", "parquet")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides what a run produces, and how it is carried out.

    What it produces
        mpp                microns per pixel of the tiles
        tile, overlap      tile side and how much neighbours share, in px at `mpp`
        min_tissue         share of a tile that must be tissue for it to be kept, 0 to 1
        tissue             False tiles the whole slide
        quality            measure focus, pen and brightness of every tile
        region             QuPath GeoJSON whose polygons limit what is processed
        region_class       only the region's objects of this class
        stain              how the slide's stains are fitted, to recolour what encoders see and what
                           `pixels` keeps: none, macenko, vahadane, ruifrok or reinhard
        stain_target       whose colours: a slide, the store of one, or a profile's JSON; empty for
                           the profile that ships
        encoder            encoders by name, or the .json of a recipe of your own; empty for none
        weights            a local checkpoint for the only encoder, or a folder that holds
                           <name>.safetensors of each
        slide_encoder      slide encoders by name (mean, max, titan...), each on the tile encoder it
                           was made for; empty for none
        slide_weights      as `weights`, of the slide encoders
        trust_remote_code  run the code that some encoders' repositories hold
        replace_features   embed again where the store holds what another recipe or other weights of
                           the same name made, instead of refusing
        nuclei             nucleus model by name, or its file; empty for none
        nucleus_views      turned and mirrored views, 0 to 7, in which each nucleus is looked for
                           again, to tell how sure the model is of it
        tissue_map         file of a tissue map, as `coverslip train tissue` writes it; empty for
                           none
        pixels             keep the tiles' pixels in the store: none, jpeg or lossless
        image              keep the slide as an OME-NGFF 0.5 pyramid in the store: none; carried
                           (JPEG tiles as they are); portable (any Zarr reader opens it, larger)
        export             outward formats to write when a slide is done
        icc                apply the embedded ICC profile (recorded in the store)
        keep_identifiers   what may be kept although it can identify a patient: names of slide
                           properties (aperio.Date, aperio.*), in the store; "paths", in journal
                           and report; empty for nothing
        on_bad_tile        a native tile that cannot be decoded: fail the slide, or blank it

    Pixel size
        assume_mpp         for slides that record none
        mpp_table          CSV with columns slide,mpp; overrides what the files say
        trust_objective    take 10/power µm where a slide records nothing but its objective

    How
        device             "auto", "cpu", "cuda", "cuda:1"; several by comma, or "all" GPUs, share
                           the slides among them, a process each
        batch              tiles per encoder batch; 0 takes what the device's memory holds
        precision          of the encoders: auto (float32 on a CPU, each recipe's own on a GPU),
                           float32, float16, bfloat16
        compile            put encoders through torch.compile
        threads            decode threads; 0 takes what the machine grants
        read_timeout       seconds after which a read is killed
        cross_check        compare one tile with a second reader when a slide is opened
    """

    mpp: float = 0.5
    tile: int = 256
    overlap: int = 0
    min_tissue: float = 0.25
    tissue: bool = True
    quality: bool = True
    region: str = ""
    region_class: str = ""
    stain: Stain = "none"
    stain_target: str = ""
    encoder: tuple[str, ...] = ("efficientnet-lite0",)
    weights: str = ""
    slide_encoder: tuple[str, ...] = ()
    slide_weights: str = ""
    trust_remote_code: bool = False
    replace_features: bool = False
    nuclei: str = ""
    nucleus_views: int = 0
    tissue_map: str = ""
    pixels: Pixels = "none"
    image: Image = "none"
    export: tuple[str, ...] = ()
    icc: bool = False
    keep_identifiers: tuple[str, ...] = ()
    on_bad_tile: OnBadTile = "fail"
    assume_mpp: float | None = None
    mpp_table: str = ""
    trust_objective: bool = False
    device: str = "auto"
    batch: int = 0
    precision: Precision = "auto"
    compile: bool = False
    threads: int = 0
    read_timeout: float = 60.0
    cross_check: bool = True

    def __post_init__(self) -> None:
        _require(math.isfinite(self.mpp) and self.mpp > 0, f"mpp must be above 0, got {self.mpp}")
        _require(8 <= self.tile <= 8192, f"tile must be 8 to 8192 px, got {self.tile}")
        _require(
            0 <= self.overlap < self.tile,
            f"overlap must be 0 to {self.tile - 1} px, got {self.overlap}",
        )
        _require(0 <= self.min_tissue <= 1, f"min-tissue must be 0 to 1, got {self.min_tissue}")
        _require(0 <= self.batch <= 4096, f"batch must be 0 to 4096, got {self.batch}")
        _require(
            0 <= self.nucleus_views <= 7, f"nucleus-views must be 0 to 7, got {self.nucleus_views}"
        )
        _require(self.threads >= 0, f"threads must not be negative, got {self.threads}")
        _require(self.read_timeout > 0, f"read-timeout must be above 0, got {self.read_timeout}")
        if self.assume_mpp is not None:
            _require(
                math.isfinite(self.assume_mpp) and 0.02 <= self.assume_mpp <= 50,
                f"assume-mpp must be 0.02 to 50 µm, got {self.assume_mpp}",
            )
        for name in ("on_bad_tile", "pixels", "image", "stain", "precision"):
            allowed = get_args(get_type_hints(RunConfig)[name])
            value = getattr(self, name)
            flag = name.replace("_", "-")
            _require(value in allowed, f"{flag} must be {' or '.join(allowed)}, got {value!r}")
        for format in self.export:
            _require(format in EXPORTS, f"export knows {', '.join(EXPORTS)}; got {format!r}")
        _require(
            not self.stain_target or self.stain != "none", "stain-target goes with --stain METHOD"
        )
        _require(
            not self.slide_encoder or bool(self.encoder),
            "slide-encoder goes with --encoder: it works on tile embeddings",
        )
        _require(
            not self.weights or len(self.encoder) == 1 or Path(self.weights).is_dir(),
            "one file of weights goes with exactly one encoder; name a folder for several",
        )

    @property
    def digest(self) -> str:
        """The same for settings that make the same, by the same version of the engine."""
        made = {n: v for n, v in dataclasses.asdict(self).items() if n not in HOW}
        content = orjson.dumps([__version__, made], option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(content, digest_size=8).hexdigest()

    @classmethod
    def from_toml(cls, path: str | PathLike[str], **overrides: Any) -> RunConfig:
        """The file's settings, with `overrides` (what the command line named) on top.

        Raises InvalidConfig for a missing or malformed file, an unknown name or a wrong type.
        """
        with toml_content(Path(path)) as settings:
            return cls(**{**_checked(settings), **overrides})


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    checked = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise InvalidConfig(f"no setting named {key!r}; known: {', '.join(sorted(fields))}")
        default = fields[name].default
        if isinstance(default, tuple):
            named = [value] if isinstance(value, str) else value
            if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
                raise InvalidConfig(f"{key} must be a name or a list of names, got {value!r}")
            value = tuple(named)
        elif isinstance(default, float) or name == "assume_mpp":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidConfig(f"{key} must be a number, got {value!r}")
            value = float(value)
        elif type(value) is not type(default):
            raise InvalidConfig(f"{key} must be {type(default).__name__}, got {value!r}")
        checked[name] = value
    return checked


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise InvalidConfig(problem)
