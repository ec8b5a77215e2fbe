"""A folder of stores and a clinical table as one thing: bags, SQL, measurements, survival.

cohort = Cohort.open("OUT", clinical="patients.csv")
cohort.sql("select grade, avg(area_um2) from nuclei join clinical using (slide) group by grade")
cohort.table().to_csv("cohort.csv")
curves = cohort.survival("nuclei_per_mm2", time="months", event="dead")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coverslip.cohort.annotated_data import mean_embedding, slides_as_anndata, tiles_as_anndata
from coverslip.cohort.catalogue import (
    clinical_table,
    frame_of,
    name_meant,
    one_line,
    parquet_files,
    recipe_remarks,
    slides_table,
    typed,
)
from coverslip.cohort.measurements import MeasurementSettings, measured_once
from coverslip.cohort.packages import package
from coverslip.cohort.survival import SurvivalCurves, survival_curves
from coverslip.cohort.tables import SqlLimits, open_tables, query_result
from coverslip.engine.bags import open_bags
from coverslip.engine.clinical import ClinicalTable, MatchedTable
from coverslip.engine.exports import StoredSlide
from coverslip.engine.opened_stores import opened_stores
from coverslip.errors import CoverslipError, InvalidConfig, UnknownName
from coverslip.tiling.store import SlideStore

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from coverslip.engine.bag_files import FileBags

PROBLEM = "problem"
"""Column of the measurements that says why a slide has none."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """Slides of one output folder, and what is known of them and their patients.

    output     folder of the stores
    stores     by slide id, in the order of ids
    clinical   the rows of the slides that have one; None without a table
    model      whose nuclei are meant; grid whose tiles; "" is the only one there is
    left_out   slides of the folder that cannot be used -> why; grows as tables are made
    remarks    what did not match between the folder and the clinical table
    """

    output: Path
    stores: Mapping[str, SlideStore]
    clinical: MatchedTable | None
    model: str
    grid: str
    left_out: dict[str, str]
    remarks: tuple[str, ...]
    limits: SqlLimits
    on_slide: Callable[[str], None] = field(repr=False)

    @classmethod
    def open(
        cls,
        folder: str | PathLike[str],
        clinical: str | PathLike[str] | None = None,
        *,
        slide: str = "slide",
        patient: str = "patient",
        patient_pattern: str = "",
        patient_of: Mapping[str, str] | None = None,
        model: str = "",
        grid: str = "",
        limits: SqlLimits | None = None,
        on_slide: Callable[[str], None] = lambda slide: None,
    ) -> Cohort:
        """The cohort of an output folder.

        clinical          CSV, TSV or Parquet of slides or patients, whose columns `slide` and
                          `patient` say of which; these, `patient_pattern` and `patient_of` as in
                          `engine.clinical.ClinicalTable.match`
        model, grid       needed where the folder holds nuclei of several models, or several grids
        limits            of SQL
        on_slide          called with each slide that is exported or measured

        Raises InvalidConfig: no stores, a clinical table that cannot be read or matches nothing,
        several models or grids of which none is named; UnknownName for one that is not there.
        """
        output = Path(folder)
        stores, left_out = opened_stores(output, "run")
        model = name_meant(stores, output, "nuclei", "model", model)
        grid = name_meant(stores, output, "tiles", "grid", grid)
        remarks = recipe_remarks(stores, model)
        matched = None
        if clinical is not None:
            matched = ClinicalTable.read(clinical).match(
                list(stores),
                slide=slide,
                patient=patient,
                patient_pattern=patient_pattern,
                patient_of=patient_of,
            )
            remarks += matched.remarks
        found = (tuple(remarks), limits or SqlLimits(), on_slide)
        return cls(output, stores, matched, model, grid, left_out, *found)

    def bags(self, encoder: str = "", grid: str = "") -> FileBags:
        """Tile embeddings by slide, read when asked for; see `engine.bags.open_bags`."""
        return open_bags(self.output, encoder=encoder, grid=grid or self.grid)

    @property
    def nuclei(self) -> DuckDBPyRelation:
        """All nuclei, one row each: slide, x, y (level-0 px), the measures, class, geometry.

        Nothing is read until a result is fetched. Raises InvalidConfig where no slide has any."""
        return self._relation("nuclei")

    @property
    def tiles(self) -> DuckDBPyRelation:
        """All tiles, one row each: slide, x, y, w, h (level-0 px), tissue_fraction, quality."""
        return self._relation("tiles")

    def sql(self, query: str) -> DuckDBPyRelation:
        """What a SELECT finds in nuclei, tiles, slides, clinical and, where there are any, glands
        and lumina. All have a column `slide`: `nuclei join clinical using (slide)`.

        slides   slide, width, height (level-0 px), mpp_x, mpp_y, vendor, tissue_mm2 and how many
                 tiles and nuclei; null where these are not complete

        Parquet files that are absent or stale are written first, in `<output>/parquet`. Nothing is
        computed until a result is fetched: .df(), .fetchall(), .to_arrow_table(). Raises
        InvalidConfig for SQL that is wrong, or not a SELECT; MissingPackage.
        """
        return query_result(self.connection, query)

    @cached_property
    def connection(self) -> DuckDBPyConnection:
        """DuckDB with the cohort's views; of one thread."""
        files, failed = parquet_files(
            self.output, self.stores, self.model, self.grid, self.on_slide
        )
        self.left_out.update(failed)
        tables = {"slides": slides_table(self.stores, self.model, self.grid)}
        if self.clinical is not None:
            tables["clinical"] = clinical_table(self.clinical)
        return open_tables(files, tables, self.output, self.limits)

    def measurements(self, settings: MeasurementSettings | None = None) -> pd.DataFrame:
        """One row a slide, indexed by slide id, with the columns of `cohort.measurements`.

        Slides are measured when first asked for, or when they changed. One that cannot be has no
        numbers and says why in the column `problem`, which is empty else.
        """
        pd = package("pandas", "a table of measurements")
        rows: dict[str, dict[str, Any]] = {
            slide: {PROBLEM: why} for slide, why in self.left_out.items()
        }
        for slide in self.stores:
            self.on_slide(slide)
            try:
                rows[slide] = measured_once(
                    self.output, slide, self.model, self.grid, settings or MeasurementSettings()
                )
            except CoverslipError as error:
                rows[slide] = {PROBLEM: one_line(error)}
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        columns = {}
        for name in [*(name for name in names if name != PROBLEM), PROBLEM]:
            values = [rows[slide].get(name) for slide in sorted(rows)]
            if name == PROBLEM:
                columns[name] = pd.array([value or "" for value in values], dtype=object)
            else:
                counts = all(value is None or type(value) is int for value in values)
                columns[name] = pd.array(values, dtype="Int64" if counts else "float64")
        return pd.DataFrame(columns, index=pd.Index(sorted(rows), name="slide"))

    def table(self, settings: MeasurementSettings | None = None) -> pd.DataFrame:
        """The measurements beside the clinical table's columns, which come first.

        Raises InvalidConfig where both have a column of one name.
        """
        measured = self.measurements(settings)
        if self.clinical is None:
            return measured
        known = frame_of(clinical_table(self.clinical)).set_index("slide")
        if both := [name for name in known.columns if name in measured.columns]:
            raise InvalidConfig(
                f"{self.clinical.table.path}: has a column {both[0]!r}, and so have the "
                "measurements\n  rename it in the table"
            )
        return known.reindex(measured.index).join(measured)

    def survival(self, feature: str, *, time: str, event: str, groups: int = 2) -> SurvivalCurves:
        """Kaplan-Meier curves of patients by one feature, and the log-rank test between them.

        feature   a column of the clinical table or of the measurements: numbers are split at their
                  quantiles into `groups`, anything else is its own group. A measurement is the
                  mean over a patient's slides
        time      clinical column: until the event, or until last seen without it
        event     clinical column: 1 or true where it happened

        Nobody counts twice: what a table says of a patient must agree. Raises UnknownName for a
        column that is not there; InvalidConfig without a clinical table, for what is no number or
        contradicts itself, and as `survival.survival_curves`.
        """
        if self.clinical is None:
            raise InvalidConfig("survival wants a clinical table with times and events: --clinical")
        patients = self.clinical.by_patient()
        last, happened = patients.numbers(time), patients.events(event)
        values: Sequence[Any]
        if feature in self.clinical.table.columns:
            values = typed(patients.texts(feature)).to_pylist()
        else:
            values = self._patient_means(self.clinical, feature)
        return survival_curves(
            patients.names, values, last, happened, columns=(feature, time, event), groups=groups
        )

    def _patient_means(self, clinical: MatchedTable, feature: str) -> list[float | None]:
        """Of a measurement, of each of the table's patients; None where no slide has it."""
        import pandas as pd

        measured, known = self.measurements(), clinical.table.columns
        if feature not in measured or feature == PROBLEM:
            raise UnknownName("column", feature, {*known, *measured.columns} - {PROBLEM})
        found: dict[str, list[float]] = {}
        for slide, patient in clinical.patient_of.items():
            value = measured.loc[slide, feature]
            found.setdefault(patient, []).extend([] if pd.isna(value) else [float(value)])
        return [sum(values) / len(values) if values else None for values in found.values()]

    def anndata(self, encoder: str = "") -> AnnData:
        """One observation a slide: X its measurements, obs the clinical columns and `problem`.

        encoder   whose tiles' mean is obsm["X_<encoder>"], nan where a slide has none; "" for none

        Raises MissingPackage; UnknownName for an encoder of which no slide has features.
        """
        table = self.table()
        facts = [PROBLEM]
        if self.clinical is not None:
            facts = [*clinical_table(self.clinical).column_names[1:], PROBLEM]
        embeddings = {}
        if encoder:
            bags = self.bags(encoder)
            means = np.full((len(table), bags.dim), np.nan)
            for index, slide in enumerate(bags.names):
                means[table.index.get_loc(slide)] = mean_embedding(bags, index)
            embeddings[encoder] = means
        return slides_as_anndata(table.drop(columns=facts), table[facts], embeddings)

    def tiles_anndata(self, slide: str) -> AnnData:
        """One observation a tile of a slide; see `annotated_data.tiles_as_anndata`.

        Raises UnknownName, InvalidConfig where the folder holds no tiles, and as that does.
        """
        if slide not in self.stores:
            raise UnknownName("slide", slide, self.stores)
        if not self.grid:
            raise InvalidConfig(f"{self.output}: holds no tiles; coverslip tiles makes them")
        return tiles_as_anndata(StoredSlide(self.stores[slide], slide, self.output), self.grid)

    def close(self) -> None:
        """End the SQL connection, if there is one; relations made of it end with it."""
        if "connection" in self.__dict__:
            self.connection.close()
            del self.__dict__["connection"]

    def _relation(self, name: str) -> DuckDBPyRelation:
        held = {row[0] for row in self.connection.execute("SHOW TABLES").fetchall()}
        if name not in held:
            raise InvalidConfig(f"{self.output}: holds no {name}; coverslip {name} makes them")
        return self.connection.table(name)
