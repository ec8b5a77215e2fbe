"""The clinical table: what is known of slides and patients, matched with them by name.

Nothing is guessed: no similar names, no decimal commas, no units.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coverslip.engine.table_text import Texts, problem, read_table
from coverslip.errors import InvalidConfig, UnknownName, printable
from coverslip.wsi.naming import DOUBLE_SUFFIXES

Floats = npt.NDArray[np.float64]
EVENTS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
SLIDE_SUFFIXES = (
    *DOUBLE_SUFFIXES, ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms",
    ".vmu", ".czi", ".dcm", ".isyntax", ".png", ".jpg", ".jpeg", ".zarr", ".h5", ".pt",
)  # fmt: skip
"""What is cut off a slide's name in a table; other endings may belong to the name."""
SHOWN = 5
"""Names in a message, of more."""


@dataclass(frozen=True, eq=False)
class ClinicalTable:
    """Columns of text as a file holds them; None where nothing is known.

    path      the file
    columns   by name, in order
    lines     of the file, on which rows begin
    """

    path: str
    columns: Mapping[str, Texts]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> ClinicalTable:
        """CSV or TSV (UTF-8; commas, semicolons or tabs) or Parquet, by content.

        Raises InvalidConfig: unreadable, empty, another encoding, columns of one name.
        """
        return cls(fspath(path), *read_table(path))

    def column(self, name: str) -> Texts:
        """Raises UnknownName."""
        try:
            return self.columns[name]
        except KeyError:
            kind = f"column of {printable(Path(self.path).name)}"
            raise UnknownName(kind, name, self.columns) from None

    def pairs(self, slide: str = "slide", patient: str = "patient") -> dict[str, str]:
        """Slide -> patient, of a table that says which slide is whose; for `match`.

        Raises UnknownName, InvalidConfig.
        """
        found: dict[str, str] = {}
        for name, whose, line in zip(
            self.column(slide), self.column(patient), self.lines, strict=True
        ):
            if name is None or whose is None:
                continue
            stem = slide_stem(name)
            if found.setdefault(stem, whose) != whose:
                raise problem(
                    self.path, f"line {line}: slide {stem} is {whose}'s, but {found[stem]}'s above"
                )
        return found

    def match(
        self,
        names: Sequence[str],
        *,
        slide: str = "slide",
        patient: str = "patient",
        patient_pattern: str = "",
        patient_of: Mapping[str, str] | None = None,
    ) -> MatchedTable:
        """The rows that belong to slides: one a slide where the table has a column of slides, else
        one a patient.

        names             of slides, as bags and stores have them
        slide, patient    columns. Slides may be named with a slide file's extension
        patient_pattern   regular expression that finds the patient in a slide's name: its group 1,
                          or all that it matches ("TCGA-..-....")
        patient_of        slide -> patient, from elsewhere (see `pairs`)

        Raises UnknownName (no such column), InvalidConfig: nothing matches, two rows of one slide,
        slides of no patient, no telling which row is whose.
        """
        own = _patients(names, patient_pattern, patient_of)
        if slide in self.columns:
            rows = self._rows_by(slide, names)
            units = {name: rows[name] for name in names if name in rows}
            self._check_single(units)
            used = set(units)
        else:
            self._check_patients(slide, patient, own)
            rows = self._rows_by(patient, ())
            units = {n: rows[own[n]] for n in names if own and own.get(n) in rows}
            used = {own[name] for name in units} if own else set()
        if not units:
            raise problem(
                self.path,
                f"has no row of any slide; it names {_some(rows)}, the slides are {_some(names)}",
                "both must have the same names",
            )
        without = tuple(name for name in names if name not in units)
        remarks = [f"without a row in the table: {_some(without)}"] if without else []
        if unused := [name for name in rows if name not in used]:
            remarks.append(f"in the table only: {_some(unused)}")
        if own is None and patient in self.columns:
            whose = self.column(patient)
            own = {name: whose[row] or "" for name, (row, *_) in units.items()}
        elif own is None:
            if patient != "patient":
                self.column(patient)
            remarks.append(f"no column {patient!r}: every slide counts as a patient of its own")
            own = {name: name for name in units}
        if nobody := [name for name in units if not own.get(name)]:
            raise problem(self.path, f"slides of no patient: {_some(nobody)}")
        patients = tuple(own[name] for name in units)
        return MatchedTable(
            self, tuple(units), tuple(units.values()), patients, without, tuple(remarks)
        )

    def _rows_by(self, column: str, slides: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Name -> its rows; of slides, without extensions that are not part of the name."""
        found: dict[str, list[int]] = {}
        asked = set(slides)
        for row, name in enumerate(self.column(column)):
            if name is not None:
                key = slide_stem(name) if asked and name not in asked else name
                found.setdefault(key, []).append(row)
        return {name: tuple(rows) for name, rows in found.items()}

    def _check_single(self, units: Mapping[str, tuple[int, ...]]) -> None:
        twice = {name: rows for name, rows in units.items() if len(rows) > 1}
        if twice:
            name, rows = next(iter(twice.items()))
            lines = " and ".join(str(self.lines[row]) for row in rows)
            more = f", and of {len(twice) - 1} other slides too" if len(twice) > 1 else ""
            raise problem(
                self.path,
                f"has {len(rows)} rows of slide {name} (lines {lines}){more}",
                "keep one row a slide",
            )

    def _check_patients(self, slide: str, patient: str, own: Mapping[str, str] | None) -> None:
        if slide != "slide" or patient not in self.columns:
            self.column(slide)
        if own is None:
            raise problem(
                self.path,
                f"has no column {slide!r}, so rows are patients; which slide is whose?",
                "name the column of slides, or give a pattern that finds the patient in a slide's "
                "name, or a table of slides and patients",
            )


@dataclass(frozen=True, eq=False)
class MatchedTable:
    """What a table says of slides, or of patients, in the order they were asked for.

    names      of the slides, or the patients
    rows       of the table: those of each
    patients   whose each is
    without    slides that have no row
    remarks    what did not match, for a person
    """

    table: ClinicalTable
    names: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    patients: tuple[str, ...]
    without: tuple[str, ...]
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def patient_of(self) -> dict[str, str]:
        """Name -> patient."""
        return dict(zip(self.names, self.patients, strict=True))

    def by_patient(self) -> MatchedTable:
        """The same of patients, as their first slides come. Whether a patient's rows agree is seen
        when a column is asked for."""
        rows: dict[str, dict[int, None]] = {}
        for patient, own in zip(self.patients, self.rows, strict=True):
            rows.setdefault(patient, {}).update(dict.fromkeys(own))
        patients = tuple(rows)
        units = tuple(map(tuple, rows.values()))
        return MatchedTable(self.table, patients, units, patients, self.without, self.remarks)

    def texts(self, column: str) -> Texts:
        """[n], None where nothing is known.

        Raises UnknownName; InvalidConfig where a patient's rows contradict one another.
        """
        values = self.table.column(column)
        found = [sorted({v for r in rows if (v := values[r]) is not None}) for rows in self.rows]
        contradicting = [
            f"{name} ({' and '.join(own)})"
            for name, own in zip(self.names, found, strict=True)
            if len(own) > 1
        ]
        if contradicting:
            raise problem(
                self.table.path,
                f"rows of one patient differ in {column!r}: {_some(contradicting)}",
                "make them agree, or study slides instead of patients",
            )
        return tuple(own[0] if own else None for own in found)

    def classes_of(self, column: str) -> tuple[str, ...]:
        """What the column holds, sorted: as numbers where all are, else as text."""
        found = {value for value in self.texts(column) if value is not None}
        numbers = {value: number(value) for value in found}
        if None in numbers.values():
            return tuple(sorted(found))
        return tuple(sorted(found, key=lambda value: (numbers[value], value)))

    def classes(self, column: str, classes: Sequence[str]) -> Floats:
        """[n] the number of each one's class, nan where nothing is known. Raises InvalidConfig for
        what is none of `classes`."""
        known = {name: float(place) for place, name in enumerate(classes)}
        return self._values(column, known.get, f"none of the classes {', '.join(classes)}")

    def numbers(self, column: str) -> Floats:
        """[n], nan where nothing is known. Raises InvalidConfig for what is no finite number."""
        return self._values(column, number, "no number")

    def events(self, column: str) -> Floats:
        """[n] 1 where it happened and 0 where it did not, nan where nothing is known. Raises
        InvalidConfig for what is not 0, 1, true or false."""
        return self._values(column, lambda v: EVENTS.get(v.lower()), "not 0, 1, true or false")

    def _values(self, column: str, value_of: Callable[[str], float | None], wrong: str) -> Floats:
        texts = self.texts(column)
        values = [np.nan if text is None else value_of(text) for text in texts]
        for name, rows, text, value in zip(self.names, self.rows, texts, values, strict=True):
            if value is None:
                source = self.table.column(column)
                line = next(self.table.lines[row] for row in rows if source[row] == text)
                comma = number(str(text).replace(",", ".")) is not None
                raise problem(
                    self.table.path,
                    f"line {line} ({name}): {column} is {text!r}, {wrong}",
                    "write decimals with a point" if comma else "",
                )
        return np.array(values, np.float64)


def slide_stem(name: str) -> str:
    """A slide's name in a table without its folder and a slide file's extension."""
    stem = name.strip().replace("\\", "/").rstrip("/").rpartition("/")[2]
    for suffix in SLIDE_SUFFIXES:
        if stem.lower().endswith(suffix) and len(stem) > len(suffix):
            return stem[: -len(suffix)]
    return stem


def number(text: str) -> float | None:
    """None for what is no finite number."""
    found = float(text) if NUMBER.fullmatch(text) else np.nan
    return found if np.isfinite(found) else None


def _patients(
    names: Sequence[str], pattern: str, patient_of: Mapping[str, str] | None
) -> dict[str, str] | None:
    """Slide -> patient as far as pattern or mapping say; None where neither is given."""
    if pattern and patient_of is not None:
        raise InvalidConfig("give patient_pattern or patient_of, not both")
    if patient_of is not None:
        return {name: patient_of[name] for name in names if name in patient_of}
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InvalidConfig(
            f"patient_pattern {pattern!r} is no regular expression: {error}"
        ) from None
    found = {name: compiled.search(name) for name in names}
    group = min(compiled.groups, 1)
    return {name: m.group(group) for name, m in found.items() if m and m.group(group)}


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = [printable(name) for name in names]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (", ".join(listed[:SHOWN]) or "nothing") + more
