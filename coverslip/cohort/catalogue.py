"""What an output folder holds: its stores, which model and grid are meant, a row a slide."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from coverslip.cohort.morphometry import NOUNS
from coverslip.engine.clinical import MatchedTable, number
from coverslip.engine.export_stores import exported_files
from coverslip.engine.table_text import Texts
from coverslip.errors import CoverslipError, InvalidConfig, UnknownName
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LEADING_ZERO = re.compile(r"[+-]?0[0-9]")
WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def name_meant(
    stores: Mapping[str, SlideStore], output: Path, kind: str, what: str, asked: str
) -> str:
    """The model of all nuclei, or the grid of all tiles; "" where no store has one.

    kind    "nuclei" or "tiles"; what "model" or "grid", as the flag is called
    asked   a name that must be there; "" for the only one

    Raises UnknownName; InvalidConfig where there are several.
    """
    found = {n.removeprefix(f"{kind}/") for s in stores.values() for n in s.stages(f"{kind}/")}
    if asked and asked not in found:
        raise UnknownName(what, asked, found)
    if len(found) > 1 and not asked:
        raise InvalidConfig(
            f"{output}: holds {kind} of {', '.join(sorted(found))}; name one with --{what}"
        )
    return asked or next(iter(found), "")


def recipe_remarks(stores: Mapping[str, SlideStore], model: str) -> list[str]:
    """What to say where not all nuclei of a model were found alike; nothing where they were."""
    stage, made = f"nuclei/{model}", {}
    for slide, store in stores.items():
        if stage in store.stages():
            settings = store.record(stage).parameters.get("settings")
            made[slide] = orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)
    first = next(iter(made), "")
    others = [slide for slide in made if made[slide] != made[first]]
    if not others:
        return []
    return [
        f"{stage} was not made alike everywhere: {len(others)} of {len(made)} slides, such as "
        f"{others[0]}, have another recipe than {first}; their measurements do not compare"
    ]


def slides_table(stores: Mapping[str, SlideStore], model: str, grid: str) -> pa.Table:
    """One row a slide: slide, width, height (level-0 px), mpp_x, mpp_y, vendor, tissue_mm2, and
    how many tiles and nuclei it has; null where what tells is not complete."""
    import pyarrow as pa

    text, count, number = pa.string(), pa.int64(), pa.float64()
    columns = {
        "slide": text, "width": count, "height": count, "mpp_x": number, "mpp_y": number,
        "vendor": text, "tissue_mm2": number, "tiles": count, "nuclei": count,
    }  # fmt: skip
    rows = []
    for slide, store in stores.items():
        facts = store.slide
        mpp: Any = facts.get("mpp") or (None, None)
        known = "tissue" in store.stages() and mpp[0] is not None
        area = Tissue.from_store(store.group("tissue")).area_um2(mpp) / 1e6 if known else None
        tiles = _length(store, f"tiles/{grid}", "boxes")
        nuclei = _length(store, f"nuclei/{model}", "centroid")
        row = (slide, *facts["size"], *mpp, facts.get("vendor"), area, tiles, nuclei)
        rows.append(dict(zip(columns, row, strict=True)))
    return pa.Table.from_pylist(rows, pa.schema(list(columns.items())))


def parquet_files(
    output: Path,
    stores: Mapping[str, SlideStore],
    model: str,
    grid: str,
    on_slide: Callable[[str], None],
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Parquet files of all slides by what they hold ("nuclei", "glands", "lumina" of the model,
    "tiles" of the grid), and slides whose files could not be written, with the reason."""
    ends = {"tiles": f".tiles_{grid}.parquet"} if grid else {}
    ends |= {kind: f".{kind}_{model}.parquet" for kind in NOUNS if model}
    files: dict[str, list[Path]] = {}
    failed = {}
    for slide in stores:
        on_slide(slide)
        try:
            written = exported_files(output, slide, "parquet")
        except CoverslipError as error:
            failed[slide] = one_line(error)
            continue
        for name, end in ends.items():
            found = [path for path in written if path.name == slide + end]
            if found:
                files.setdefault(name, []).extend(found)
    return files, failed


def one_line(error: CoverslipError) -> str:
    """What went wrong and what to do, for a cell of a table."""
    return "; ".join(line.strip() for line in str(error).splitlines())


def clinical_table(matched: MatchedTable) -> pa.Table:
    """One row a slide that the table knows: slide, patient, and the table's columns, typed.

    Its own column of slides' names is left out, and so is one called patient that is another
    than the patients'. Raises InvalidConfig where a patient's rows contradict one another.
    """
    import pyarrow as pa

    columns = {"slide": pa.array(matched.names, pa.string()),
               "patient": pa.array(matched.patients, pa.string())}  # fmt: skip
    others = [name for name in matched.table.columns if name not in columns]
    return pa.table(columns | {name: typed(matched.texts(name)) for name in others})


def frame_of(table: pa.Table) -> pd.DataFrame:
    """The same in pandas; whole numbers stay whole where some are missing."""
    import pandas as pd
    import pyarrow as pa

    return table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def typed(texts: Texts) -> pa.Array:
    """Whole numbers, numbers or text, as all that is known can be read; a number that begins with a
    zero, such as 007, is a name."""
    import pyarrow as pa

    known = [text for text in texts if text is not None]
    if not known or any(number(text) is None or LEADING_ZERO.match(text) for text in known):
        return pa.array(texts, pa.string())
    if all(WHOLE.fullmatch(text) for text in known):
        return pa.array([None if text is None else int(text) for text in texts], pa.int64())
    return pa.array([None if text is None else number(text) for text in texts], pa.float64())


def _length(store: SlideStore, stage: str, array: str) -> int | None:
    """Rows of a complete stage; None where it is not."""
    return int(store.group(stage)[array].shape[0]) if stage in store.stages() else None
