"""What became of one slide: a row of the report, well or not; the classes of its tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Status = Literal["done", "unchanged", "no tissue", "failed"]


@dataclass(slots=True)
class SlideResult:
    """One slide's row.

    slide         id of the slide in the output folder; file is its name as found
    status        done; unchanged (everything was complete already); no tissue; failed
    reason        for a failure: what happened and what to do next
    size          (width, height) in level-0 px, (0, 0) where the slide never opened
    mpp           (x, y) µm per level-0 px, with where it came from
    tiles         tiles kept; tissue_mm2 the tissue's area; nuclei None where not asked for
    seconds       stage or part of one -> seconds spent in this run
    bottleneck    what the pixel pass waited for most: "decoding", "encoding", ...
    flags         remarks a person should see
    stain         the profile of its stains, as kept in the store; None where not asked for
    stained       picture of sampled tissue, above as it is and below recoloured
    bad_tiles     native tiles that were blanked
    files         what was written, relative to the output folder
    samples       pictures of sampled tiles, relative to the output folder
    """

    slide: str
    file: str
    status: Status = "done"
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    mpp: tuple[float, float] = (0.0, 0.0)
    mpp_source: str = ""
    reader: str = ""
    tiles: int = 0
    tissue_mm2: float = 0.0
    nuclei: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    bottleneck: str = ""
    flags: list[str] = field(default_factory=list)
    stain: dict[str, Any] | None = None
    stained: str = ""
    bad_tiles: int = 0
    files: list[str] = field(default_factory=list)
    overview: str = ""
    samples: list[str] = field(default_factory=list)

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def result_of_event(event: Mapping[str, Any]) -> SlideResult | None:
    """The row of a journal's "slide ended"; None where that is not what a run writes."""
    values: dict[str, Any] = {f.name: event.get(f.name) for f in fields(SlideResult)}
    for name in ("size", "mpp"):
        pair = values[name]
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
            return None
        values[name] = tuple(pair)
    for name in ("slide", "file", "reason", "mpp_source", "reader", "bottleneck", "stained",
                 "overview"):  # fmt: skip
        if not isinstance(values[name], str):
            return None
    for name in ("flags", "files", "samples"):
        texts = values[name]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return None
    seconds = values["seconds"]
    sound = (
        values["status"] in get_args(Status)
        and all(_is_number(values[name]) for name in ("tiles", "tissue_mm2", "bad_tiles"))
        and (values["nuclei"] is None or _is_number(values["nuclei"]))
        and isinstance(seconds, dict)
        and all(map(_is_number, seconds.values()))
        and isinstance(values["stain"], dict | None)
    )
    return SlideResult(**values) if sound else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class ClassifiedSlide:
    """What became of one slide whose tiles got classes.

    tiles     how many
    shares    class -> share of the tiles for which it is the most probable
    files     pictures and object files
    changed   False where everything was there already
    """

    tiles: int
    shares: Mapping[str, float]
    files: Sequence[Path]
    changed: bool

    @classmethod
    def of(
        cls,
        class_id: npt.NDArray[np.integer],
        classes: Sequence[str],
        files: Sequence[Path],
        *,
        changed: bool,
    ) -> ClassifiedSlide:
        """class_id   [N] of the tiles, most probable"""
        import numpy as np

        counts = np.bincount(class_id, minlength=len(classes)) / max(len(class_id), 1)
        shares = dict(zip(classes, counts.tolist(), strict=True))
        return cls(len(class_id), shares, files, changed)
