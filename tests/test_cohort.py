"""A cohort of made-up stores: SQL, measurements, exports, and what must be refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
duckdb = pytest.importorskip("duckdb")
anndata = pytest.importorskip("anndata")

from coverslip.cli import main  # noqa: E402
from coverslip.cohort.cohort import Cohort  # noqa: E402
from coverslip.cohort.measurements import (  # noqa: E402
    MeasurementSettings,
    measured_once,
    slide_measurements,
)
from coverslip.cohort.tables import SqlLimits, open_tables, query_result, write_relation  # noqa: E402
from coverslip.errors import (  # noqa: E402
    IncompleteStage,
    InvalidConfig,
    MissingPackage,
    StoreBusy,
    StoreError,
    UnknownName,
)
from coverslip.export.parquet import write_nuclei_parquet  # noqa: E402
from coverslip.heads.instances import Nuclei  # noqa: E402
from coverslip.heads.recipe import PANNUKE  # noqa: E402
from coverslip.tiling.grid import TileGrid, all_boxes  # noqa: E402
from coverslip.tiling.lock import lock  # noqa: E402
from coverslip.tiling.store import SlideStore  # noqa: E402
from coverslip.tiling.tissue import Tissue  # noqa: E402

GRID = "256px_0.5mpp"
SIZE = (2048, 1024)  # level-0 px at 0.25 µm: 512 x 256 µm


def made_up_nuclei(count: int, seed: int) -> Nuclei:
    """At random over the slide, of random classes, squares of 4 px."""
    random = np.random.default_rng(seed)
    centroid = random.random((count, 2)) * SIZE
    corner = np.array([[-2, -2], [2, -2], [2, 2], [-2, 2]])
    measures = {
        name: random.random(count).astype(np.float32)
        for name in (
            "probability", "perimeter_um", "major_axis_um", "minor_axis_um", "circularity",
            "solidity", "hematoxylin_mean",
        )
    }  # fmt: skip
    return Nuclei(
        centroid=centroid,
        polygon_offset=np.arange(count + 1) * 4,
        polygon=(centroid[:, None] + corner).reshape(-1, 2).astype(np.float32),
        class_id=random.integers(0, len(PANNUKE), count).astype(np.uint8),
        agreement=np.full(count, np.nan, np.float32),
        area_um2=random.gamma(4, 10, count).astype(np.float32),
        **measures,
    )


def write_nuclei(store: SlideStore, nuclei: Nuclei, model: str = "model", seed: int = 0) -> None:
    with store.stage(f"nuclei/{model}", {"settings": {}, "seed": seed}, needs=["tissue"]) as stage:
        stage.append_block(0, nuclei.columns())
        stage.finish({"model": model, "classes": list(PANNUKE)})


def write_store(output: Path, slide: str, count: int | None = 60, seed: int = 0) -> SlideStore:
    """A store of 4 x 2 tiles, all tissue, with `count` nuclei; None for none at all."""
    facts = {
        "name": slide,
        "size": SIZE,
        "mpp": [0.25, 0.25],
        "bounds": [0, 0, *SIZE],
        "fingerprint": slide,
        "colour": "as stored",
        "reader": "tests",
        "vendor": "nobody",
    }
    store = SlideStore.open_or_create(output / f"{slide}.zarr", facts)
    mask = np.ones((32, 64), bool)
    tissue = Tissue(mask, (32.0, 32.0), (), 0.0, (240.0, 240.0, 240.0), "made up", {})
    with store.stage("tissue", {}) as stage:
        tissue.write(stage)
    boxes = all_boxes(SIZE, (0.25, 0.25), 256, 256, 0.5)
    shares = np.ones(len(boxes), np.float32)
    grid = TileGrid(SIZE, (0.25, 0.25), 256, 256, 0.5, 0.0, boxes, shares)
    with store.stage(f"tiles/{GRID}", {"grid": grid.parameters()}, needs=["tissue"]) as stage:
        grid.write(stage)
    features = np.random.default_rng(seed).normal(size=(len(boxes), 5)).astype(np.float32)
    recipe = {"recipe": {"name": "ours"}, "weights_sha256": "weights", "of": slide}
    with store.stage(f"features/ours@{GRID}", recipe, needs=[f"tiles/{GRID}"]) as stage:
        stage.create_array("features", features.shape, "float32", rows_per_block=512)
        stage.write_block(0, {"features": features})
        stage.finish({"dim": 5})
    if count is not None:
        write_nuclei(store, made_up_nuclei(count, seed), seed=seed)
    return store


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides with 60, 90 and 120 nuclei; their Parquet is there, and is not written again."""
    folder = tmp_path_factory.mktemp("cohort") / "out"
    for number, slide in enumerate("abc"):
        write_store(folder, slide, 60 + 30 * number, seed=number)
    Cohort.open(folder).sql("select 1")
    return folder


@pytest.fixture
def output(tmp_path: Path, written: Path) -> Path:
    """A copy of its own."""
    return shutil.copytree(written, tmp_path / "out")


def one(cohort: Cohort, query: str) -> Any:
    """The only value that a query finds."""
    ((value,),) = cohort.sql(query).fetchall()
    return value


# ---------------------------------------------------------------- SQL


def test_sql_counts_what_the_stores_hold(output: Path) -> None:
    cohort = Cohort.open(output)
    query = "select slide, count(*), avg(area_um2) from nuclei group by slide order by slide"
    for slide, count, area in cohort.sql(query).fetchall():
        held = cohort.stores[slide].group("nuclei/model")
        assert count == held["centroid"].shape[0]
        assert area == pytest.approx(held["area_um2"][:].mean(dtype=np.float64), rel=1e-6)
    held = sum(int((store.group("nuclei/model")["class_id"][:] == 0).sum())
               for store in cohort.stores.values())  # fmt: skip
    assert len(cohort.nuclei.filter("class = 'Neoplastic'").fetchall()) == held
    assert len(cohort.tiles.fetchall()) == 3 * 8
    (row,) = cohort.sql("from slides where slide = 'b'").df().to_dict("records")
    assert row == {
        "slide": "b", "width": 2048, "height": 1024, "mpp_x": 0.25, "mpp_y": 0.25,
        "vendor": "nobody", "tissue_mm2": pytest.approx(0.512 * 0.256), "tiles": 8, "nuclei": 90,
    }  # fmt: skip
    cohort.close()


def test_parquet_is_written_once_and_again_when_the_store_changes(output: Path) -> None:
    def count() -> int:
        return int(one(Cohort.open(output), "select count(*) from nuclei"))

    shutil.rmtree(output / "parquet")
    assert count() == 270
    times = {path.name: path.stat().st_mtime_ns for path in (output / "parquet").iterdir()}
    assert len(times) == 6
    assert count() == 270
    assert times == {p.name: p.stat().st_mtime_ns for p in (output / "parquet").iterdir()}
    store = SlideStore.open(output / "b.zarr")
    write_nuclei(store, made_up_nuclei(5, 9), seed=9)
    assert count() == 185
    (output / "parquet" / "c.nuclei_model.parquet").unlink()
    assert count() == 185


def test_one_bad_slide_is_named_and_the_others_count(output: Path) -> None:
    (output / "d.zarr").mkdir()
    (output / "d.zarr" / "zarr.json").write_text("{")
    write_store(output, "e", None)
    (output / "parquet" / "a.nuclei_model.parquet").unlink()
    with lock(output / "a.zarr"):
        cohort = Cohort.open(output)
        assert one(cohort, "select count(*) from nuclei") == 210
    assert "is working on this slide" in cohort.left_out["a"]
    assert "cannot be read" in cohort.left_out["d"]
    assert cohort.left_out.keys() == {"a", "d"}
    assert one(cohort, "select nuclei from slides where slide = 'e'") is None


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select * from read_csv('/etc/passwd')", "Permission|disabled"),
        ("select * from read_text('{outside}')", "Permission|disabled"),
        ("select * from '{outside}'", "Permission|disabled"),
        ("select * from '{beside}'", "Permission|disabled"),
        ("select * from '{through}'", "Permission|disabled"),
        ("select * from glob('/*')", "Permission|disabled"),
        ("copy (select 1) to '{inside}'", "must be one SELECT"),
        ("attach '{inside}'", "must be one SELECT"),
        ("drop view nuclei", "must be one SELECT"),
        ("set memory_limit = '900GB'", "must be one SELECT"),
        ("select 1; drop view nuclei", "SELECT and DROP"),
        ("", "got nothing"),
        ("selec 1", "syntax error"),
        ("select nothing from nuclei", "nothing"),
        ("select * from secret", "secret"),
    ],
)
def test_sql_only_reads_and_only_the_cohort(
    written: Path, tmp_path: Path, query: str, message: str
) -> None:
    secret = pd.DataFrame({"a": [1]})  # a name in Python that SQL must not see
    (tmp_path / "outside.csv").write_text("a\n1\n")
    beside = written.with_name("out-beside.csv")  # a sibling whose name begins alike
    beside.write_text("a\n1\n")
    places = {
        "outside": tmp_path / "outside.csv",
        "beside": beside,
        "through": written / ".." / "out-beside.csv",
        "inside": written / "new.csv",
    }
    cohort = Cohort.open(written)
    before = {path.name for path in written.iterdir()}
    with pytest.raises(InvalidConfig, match=message):
        cohort.sql(query.format(**places)).fetchall()
    assert {path.name for path in written.iterdir()} == before
    assert len(secret) == 1


def test_slides_of_any_name_are_no_patterns(tmp_path: Path) -> None:
    names = ["a*", "a'b", "a[1]", "a?", 'a"b', "aab", "é"]
    paths = [tmp_path / f"{name}.parquet" for name in names]
    for count, (name, path) in enumerate(zip(names, paths, strict=True)):
        columns = made_up_nuclei(count, 0).columns()
        if count % 2:
            del columns["agreement"]  # as an older version wrote
        write_nuclei_parquet(path, columns, name, "model")
    connection = open_tables({"nuclei": paths, 'odd "name': paths[:1]}, {}, tmp_path)
    query = "select slide, count(*), count(agreement) from nuclei group by slide"
    found = query_result(connection, query).fetchall()
    assert {slide: numbers for slide, *numbers in found} == {
        name: [count, 0 if count % 2 else count] for count, name in enumerate(names) if count
    }


def test_limits_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"DuckDB: .*(?i:memory|unit)"):
        open_tables({}, {}, tmp_path, SqlLimits(memory="much"))


def test_a_query_beyond_its_memory_spills_and_tidies_up(tmp_path: Path) -> None:
    connection = open_tables({}, {}, tmp_path, SqlLimits(1, "30MiB"))
    query = "select count(*) from (select distinct md5(range::varchar) from range(700000))"
    relation = query_result(connection, query)
    assert relation.fetchall() == [(700_000,)]  # 33 bytes each: more than it may hold
    connection.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_rows_are_written_as_a_stream(written: Path, tmp_path: Path, ending: str) -> None:
    cohort = Cohort.open(written)
    path = tmp_path / f"rows{ending}"
    assert write_relation(cohort.sql("select slide, area_um2 from nuclei"), path) == 270
    read = pd.read_csv(path) if ending == ".csv" else pd.read_parquet(path)
    assert read.groupby("slide").size().to_dict() == {"a": 60, "b": 90, "c": 120}
    with pytest.raises(InvalidConfig, match=r"written as \.csv or \.parquet"):
        write_relation(cohort.tiles, tmp_path / "rows.xlsx")
    with pytest.raises(InvalidConfig, match=r"SQL: .*'[abc]bc'"):
        write_relation(cohort.sql("select (slide || 'bc')::int from nuclei"), tmp_path / "x.csv")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_damaged_parquet_file_says_what_to_do(output: Path) -> None:
    path = output / "parquet" / "b.nuclei_model.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidConfig, match=r"b\.nuclei_model.*\n.*remove the file"):
        Cohort.open(output).sql("select 1")


def test_several_models_or_grids_must_be_told_apart(output: Path) -> None:
    store = SlideStore.open(output / "a.zarr")
    write_nuclei(store, made_up_nuclei(7, 1), "another")
    with pytest.raises(InvalidConfig, match="nuclei of another, model; name one with --model"):
        Cohort.open(output)
    cohort = Cohort.open(output, model="another")
    assert one(cohort, "select count(*) from nuclei") == 7
    with pytest.raises(UnknownName, match="no model named 'modell'"):
        Cohort.open(output, model="modell")


def test_an_empty_folder_and_a_folder_without_nuclei(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no stores here; coverslip run"):
        Cohort.open(tmp_path)
    write_store(tmp_path, "a", None)
    cohort = Cohort.open(tmp_path)
    with pytest.raises(InvalidConfig, match="holds no nuclei"):
        len(cohort.nuclei)
    assert cohort.measurements().loc["a", "tiles"] == 8


def test_nuclei_of_unlike_recipes_are_remarked(output: Path) -> None:
    assert Cohort.open(output).remarks == ()
    store = SlideStore.open(output / "b.zarr")
    with store.stage("nuclei/model", {"settings": {"views": 2}}, needs=["tissue"]) as stage:
        stage.append_block(0, made_up_nuclei(5, 0).columns())
        stage.finish({"model": "model", "classes": list(PANNUKE)})
    (remark,) = Cohort.open(output).remarks
    assert "1 of 3 slides, such as b, have another recipe than a" in remark


# ---------------------------------------------------------------- measurements


def test_a_row_a_slide(output: Path) -> None:
    table = Cohort.open(output).measurements()
    assert list(table.index) == ["a", "b", "c"]
    assert table.index.name == "slide"
    assert (table["problem"] == "").all()
    store = SlideStore.open(output / "b.zarr")
    nuclei = Nuclei.from_columns(store.group("nuclei/model"))
    row = table.loc["b"]
    assert row["tissue_mm2"] == pytest.approx(0.512 * 0.256)
    assert (row["tiles"], row["nuclei"]) == (8, 90)
    assert str(table["nuclei"].dtype) == "Int64"
    assert row["nuclei_per_mm2"] == pytest.approx(90 / (0.512 * 0.256))
    assert row["nucleus_area_um2_mean"] == pytest.approx(nuclei.area_um2.mean(dtype=np.float64))
    assert math.isnan(row["nucleus_agreement_mean"])
    # nearest of class b from class a, in µm, by all pairs
    neoplastic, inflammatory = (nuclei.centroid[nuclei.class_id == i] * 0.25 for i in (0, 1))
    apart = np.linalg.norm(neoplastic[:, None] - inflammatory[None], axis=2)
    assert row["nearest_inflammatory_from_neoplastic_um_mean"] == pytest.approx(
        apart.min(axis=1).mean()
    )
    assert row["nearest_neoplastic_from_inflammatory_um_median"] == pytest.approx(
        np.median(apart.min(axis=0))
    )
    assert row["til_share_within_30um"] == (apart.min(axis=0) <= 30).mean()
    squares = {tuple(xy) for xy in (neoplastic // 50).tolist()}
    inside = [tuple(xy) in squares for xy in (inflammatory // 50).tolist()]
    assert row["til_share_in_tumour"] == np.mean(inside)
    assert row["tumour_mm2"] == pytest.approx(len(squares) * 0.0025)
    assert row["ripley_l_25um"] == pytest.approx(math.sqrt(row["ripley_k_25um"] / math.pi))
    shares = [row[f"nuclei_{name.lower()}_share"] for name in PANNUKE]
    assert sum(shares) == pytest.approx(1)


def test_slides_are_measured_once_and_again_when_they_change(output: Path) -> None:
    cohort = Cohort.open(output)
    first = cohort.measurements()
    path = output / "measurements" / "b.model.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "nuclei": 123}))  # so that a second look shows
    assert Cohort.open(output).measurements().loc["b", "nuclei"] == 123
    other = MeasurementSettings(radii_um=(10.0,))
    assert "ripley_k_10um" in cohort.measurements(other)
    pd.testing.assert_frame_equal(cohort.measurements(), first)
    write_nuclei(SlideStore.open(output / "b.zarr"), made_up_nuclei(7, 5), seed=5)
    assert Cohort.open(output).measurements().loc["b", "nuclei"] == 7
    path.write_text('{"nuclei": "many"}')
    with pytest.raises(StoreError, match=r"b\.model\.json.*\n.*remove it"):
        measured_once(output, "b", "model", GRID, MeasurementSettings())


def test_a_slide_that_cannot_be_measured_is_a_row_with_its_reason(output: Path) -> None:
    write_store(output, "d", None)
    (output / "e.zarr").mkdir()
    table = Cohort.open(output).measurements()
    assert list(table.index) == list("abcde")
    assert "'nuclei/model' is not complete" in table.loc["d", "problem"]
    assert "no zarr.json" in table.loc["e", "problem"]
    assert table.loc["d"].drop("problem").isna().all()
    assert table.loc["a", "nuclei"] == 60


def test_no_nuclei_on_a_slide_are_no_crash(tmp_path: Path) -> None:
    write_store(tmp_path, "a", 0)
    row = Cohort.open(tmp_path).measurements().loc["a"]
    assert row["problem"] == ""
    assert (row["nuclei"], row["nuclei_per_mm2"], row["tumour_mm2"]) == (0, 0, 0)
    for name in (
        "nucleus_area_um2_mean",
        "clark_evans",
        "ripley_l_50um",
        "nearest_nucleus_um_mean",
    ):
        assert math.isnan(row[name])


def test_what_cannot_be_measured_raises(output: Path) -> None:
    store = SlideStore.open(output / "a.zarr")
    with pytest.raises(IncompleteStage):
        slide_measurements(store, "other", GRID, MeasurementSettings())
    store.slide["mpp"] = None
    with pytest.raises(StoreError, match="pixel size is unknown"):
        slide_measurements(store, "model", GRID, MeasurementSettings())
    with pytest.raises(InvalidConfig, match="above 0"):
        MeasurementSettings(radii_um=(0.0,))
    (output / "measurements").mkdir()
    with lock(output / "b.zarr"), pytest.raises(StoreBusy):
        measured_once(output, "b", "model", GRID, MeasurementSettings())


# ---------------------------------------------------------------- bags and AnnData


def test_bags_are_those_of_the_stores(output: Path) -> None:
    bags = Cohort.open(output).bags("ours")
    assert list(bags.names) == ["a", "b", "c"]
    held = SlideStore.open(output / "b.zarr").group(f"features/ours@{GRID}")["features"][:]
    np.testing.assert_array_equal(bags.read(1), held)


def test_tiles_as_anndata(output: Path, tmp_path: Path) -> None:
    assert (
        main(["cohort", "anndata", str(output), "--tiles-of", "b", "-o", f"{tmp_path}/b.h5ad"]) == 0
    )
    read = anndata.read_h5ad(tmp_path / "b.h5ad")
    assert read.shape == (8, 1)
    assert list(read.var_names) == ["tissue_fraction"]
    np.testing.assert_array_equal(read.obsm["spatial"][:2], [[256, 256], [768, 256]])
    store = SlideStore.open(output / "b.zarr")
    held = store.group(f"features/ours@{GRID}")["features"][:]
    np.testing.assert_array_equal(read.obsm["X_ours"], held)
    assert read.uns["spatial"]["b"]["scalefactors"]["spot_diameter_fullres"] == 512
    with pytest.raises(UnknownName):
        Cohort.open(output).tiles_anndata("z")


# ---------------------------------------------------------------- the clinical table


def write_clinical(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def clinical(tmp_path: Path) -> Path:
    """Of slides a, b and c, of patients p and q, and of a slide that is not there."""
    return write_clinical(
        tmp_path / "clinical.csv",
        "slide,patient,grade,code,months,dead",
        "a.svs,p,1,007,12.5,1",
        "b.svs,p,1,,12.5,1",
        "c.svs,q,3,010,40,0",
        "z.svs,r,2,011,3,1",
    )


def test_sql_joins_the_clinical_table(written: Path, clinical: Path) -> None:
    cohort = Cohort.open(written, clinical)
    (remark,) = cohort.remarks
    assert remark == "in the table only: z"
    query = """select patient, grade, any_value(code), count(*) from nuclei
               join clinical using (slide) group by all order by patient"""
    assert cohort.sql(query).fetchall() == [("p", 1, "007", 150), ("q", 3, "010", 120)]
    types = {name: kind for name, kind, *_ in cohort.sql("describe clinical").fetchall()}
    assert types == {
        "slide": "VARCHAR", "patient": "VARCHAR", "grade": "BIGINT", "code": "VARCHAR",
        "months": "DOUBLE", "dead": "BIGINT",
    }  # fmt: skip


def test_the_table_holds_both(written: Path, tmp_path: Path, clinical: Path) -> None:
    table = Cohort.open(written, clinical).table()
    assert list(table.columns[:6]) == ["patient", "grade", "code", "months", "dead", "tissue_mm2"]
    assert table["patient"].to_dict() == {"a": "p", "b": "p", "c": "q"}
    assert table["nuclei"].to_dict() == {"a": 60, "b": 90, "c": 120}
    assert pd.isna(table.loc["b", "code"])
    some = write_clinical(tmp_path / "some.csv", "slide,months", "b,7")
    cohort = Cohort.open(written, some)
    assert cohort.remarks[0] == "without a row in the table: a, c"
    assert cohort.table()["months"].isna().to_dict() == {"a": True, "b": False, "c": True}


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("slide,nuclei", "a,1", "has a column 'nuclei', and so have the measurements"),
        ("slide,Grade,grade", "a,1,2", "Grade and grade of clinical are one to SQL"),
        ("slide,grade", "y,1", "has no row of any slide"),
        ("case,grade", "a,1", "no column of clash.csv named 'slide'"),
    ],
)
def test_clinical_tables_that_do_not_fit(
    written: Path, tmp_path: Path, header: str, row: str, message: str
) -> None:
    path = write_clinical(tmp_path / "clash.csv", header, row)

    def use() -> None:
        cohort = Cohort.open(written, path)
        cohort.sql("select 1")
        cohort.table()

    with pytest.raises((InvalidConfig, UnknownName), match=message):
        use()


def test_patients_count_once_in_survival(written: Path, clinical: Path) -> None:
    cohort = Cohort.open(written, clinical)
    curves = cohort.survival("nuclei", time="months", event="dead")
    # p has 60 and 90 nuclei, q 120
    assert [(g.name, g.patients, g.events) for g in curves.groups] == [
        ("nuclei <= 97.5", 1, 1),
        ("nuclei > 97.5", 1, 0),
    ]
    curves = cohort.survival("code", time="months", event="dead")
    assert [(g.name, g.patients) for g in curves.groups] == [("007", 1), ("010", 1)]
    assert cohort.survival("grade", time="months", event="dead").groups[0].name == "grade <= 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nucleii", "months", "dead"), "did you mean nuclei"),
        (("problem", "months", "dead"), "no column named 'problem'"),
        (("nuclei", "month", "dead"), "did you mean months"),
        (("nuclei", "patient", "dead"), "patient is 'p', no number"),
        (("nuclei", "months", "months"), "not 0, 1, true or false"),
    ],
)
def test_columns_that_are_no_times_or_events(
    written: Path, clinical: Path, arguments: tuple[str, str, str], message: str
) -> None:
    feature, time, event = arguments
    with pytest.raises((InvalidConfig, UnknownName), match=message):
        Cohort.open(written, clinical).survival(feature, time=time, event=event)


def test_survival_wants_a_clinical_table(written: Path) -> None:
    with pytest.raises(InvalidConfig, match="--clinical"):
        Cohort.open(written).survival("nuclei", time="months", event="dead")


def test_slides_as_anndata(written: Path, clinical: Path, tmp_path: Path) -> None:
    path = tmp_path / "slides.h5ad"
    command = ["cohort", "anndata", str(written), "--clinical", str(clinical), "--encoder", "ours"]
    assert main([*command, "-o", str(path)]) == 0
    read, cohort = anndata.read_h5ad(path), Cohort.open(written, clinical)
    table = cohort.table()
    assert list(read.obs_names) == ["a", "b", "c"]
    assert list(read.obs.columns) == ["patient", "grade", "code", "months", "dead", "problem"]
    assert read.obs["code"].tolist()[::2] == ["007", "010"]
    assert read[:, "nuclei"].X.ravel().tolist() == [60, 90, 120]
    assert read.n_vars == len(table.columns) - 6
    np.testing.assert_allclose(
        read.obsm["X_ours"], [cohort.bags("ours").read(i).mean(axis=0) for i in range(3)], atol=1e-6
    )


# ---------------------------------------------------------------- the command line


def test_commands(
    written: Path, clinical: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(written), "--clinical", str(clinical)]
    path = tmp_path / "table.csv"
    assert main(["cohort", "measurements", *given, "-o", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{path}: 3 slides, ")
    assert "in the table only: z" in said.err
    read = pd.read_csv(path, index_col="slide")
    assert read["nuclei"].to_dict() == {"a": 60, "b": 90, "c": 120}
    query = "select grade, count(*) as n from nuclei join clinical using (slide) group by grade"
    assert main(["cohort", "sql", *given, query]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[3:5]] in (
        [["1", "150"], ["3", "120"]], [["3", "120"], ["1", "150"]],
    )  # fmt: skip
    survival = ["cohort", "survival", *given, "--feature", "nuclei", "--time", "months"]
    path = tmp_path / "curves.csv"
    assert main([*survival, "--event", "dead", "-o", str(path)]) == 0
    assert "log-rank" in capsys.readouterr().out
    assert set(pd.read_csv(path)["group"]) == {"nuclei <= 97.5", "nuclei > 97.5"}


def test_a_bad_slide_is_an_exit_code(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(output, "d", None)
    path = tmp_path / "table.csv"
    assert main(["cohort", "measurements", str(output), "-o", str(path)]) == 1
    assert "d: " in capsys.readouterr().err
    assert len(pd.read_csv(path)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measurements", "{output}", "-o", "x.xlsx"], "ends in .csv"),
        (["sql", "{output}", "drop view nuclei"], "must be one SELECT"),
        (["sql", "{output}", "select (slide || 'x')::int from nuclei"], "SQL: "),
        (["anndata", "{output}", "--tiles-of", "a", "--encoder", "e", "-o", "x.h5ad"], "tiles-of"),
        (["sql", "{output}/nowhere", "select 1"], "no stores here"),
    ],
)
def test_command_lines_that_mean_nothing(
    written: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{output}", str(written)) for argument in arguments]
    assert main(["cohort", *given]) == 2
    assert message in capsys.readouterr().err


def test_help_loads_nothing_of_it() -> None:
    code = (
        "import sys\nfrom coverslip.cli import main\nfor command in ([], ['sql'], ['survival']):\n"
        "    assert main(['cohort', *command, '--help']) == 0\n"
        "print(sorted({'torch', 'duckdb', 'pandas', 'lifelines', 'anndata', 'pyarrow'}"
        " & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "[]"


def test_a_missing_package_is_named(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingPackage, match=r"duckdb\n.*coverslip\[cohort\]"):
        Cohort.open(written).sql("select 1")
