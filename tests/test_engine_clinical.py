"""The clinical table: reading it, matching it with slides and patients, and its columns."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.engine.clinical import ClinicalTable, MatchedTable, number, slide_stem
from coverslip.engine.covariates import Covariates
from coverslip.errors import InvalidConfig, UnknownName

SLIDES = """slide,patient,grade,age,died
a.svs,p1,low,61.5,1
b,p1,high,61.5,0
007,p2,high,,true
unused,p3,low,40,0
"""


def read(folder: Path, text: str | bytes, name: str = "clinical.csv") -> ClinicalTable:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return ClinicalTable.read(path)


def matched(folder: Path, text: str = SLIDES) -> MatchedTable:
    return read(folder, text).match(["b", "a", "007"])


class TestReading:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("t.csv", SLIDES),
            ("t.csv", "\ufeff" + SLIDES),
            ("t.csv", SLIDES.replace(",", ";")),
            ("t.txt", SLIDES.replace(",", "\t")),
            ("t.tsv", SLIDES.replace(",", "\t").replace("\n", "\r\n") + "\n\t\t\t\t\n"),
        ],
    )
    def test_delimiters_marks_and_line_ends(self, tmp_path: Path, name: str, content: str) -> None:
        table = read(tmp_path, content, name)
        assert list(table.columns) == ["slide", "patient", "grade", "age", "died"]
        assert table.column("slide") == ("a.svs", "b", "007", "unused")
        assert table.column("age") == ("61.5", "61.5", None, "40")
        assert list(table.lines) == [2, 3, 4, 5]
        assert len(table) == 4

    def test_quotes_hold_delimiters_and_line_ends(self, tmp_path: Path) -> None:
        table = read(tmp_path, 'slide,note\na,"x, y\nz"\nb,"say ""hi"""\n')
        assert table.column("note") == ("x, y\nz", 'say "hi"')
        assert list(table.lines) == [2, 4]

    def test_parquet_is_text_as_a_csv_would_hold_it(self, tmp_path: Path) -> None:
        columns = {
            "slide": ["a", "b"],
            "stage": [2.0, None],
            "age": [61.5, 40.0],
            "died": [True, False],
            "count": [3, 4],
            "day": [datetime.date(2020, 1, 2), None],
            "grade": pa.array(["low", "high"]).dictionary_encode(),
        }
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        table = ClinicalTable.read(tmp_path / "t.parquet")
        assert dict(table.columns) == {
            "slide": ("a", "b"),
            "stage": ("2", None),
            "age": ("61.5", "40"),
            "died": ("true", "false"),
            "count": ("3", "4"),
            "day": ("2020-01-02", None),
            "grade": ("low", "high"),
        }

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "is empty"),
            (b"\n\n", "is empty"),
            (b"slide,x\n", "holds no rows"),
            (b"slide,x,x\na,1,2\n", "several columns named 'x'"),
            (b"slide,,x\na,1,2\n", "column 2 has no name"),
            (b"slide,x\na,1,2\n", "line 2 has 3 cells, the first line 2"),
            (b"slide,x\na,1\nb\n", "line 3 has 1 cells"),
            ("slide,x\na,1\nb,é\n".encode("latin-1"), "line 3 is not UTF-8\n  save it as CSV"),
            ("slide,x\na,1\n".encode("utf-16"), "is UTF-16, not UTF-8"),
            (b"slide,x\na,\0\n", "holds zero bytes"),
            (b"PK\x03\x04workbook", "export the sheet as CSV"),
            (b"PAR1 and nothing more", "cannot be read as Parquet"),
        ],
    )
    def test_what_is_no_table_says_so(self, tmp_path: Path, content: bytes, problem: str) -> None:
        with pytest.raises(InvalidConfig, match=problem) as caught:
            read(tmp_path, content)
        assert "clinical.csv: " in str(caught.value)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match=r"t\.csv: cannot be read: No such file"):
            ClinicalTable.read(tmp_path / "t.csv")

    def test_lists_are_no_values(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"slide": ["a"], "x": [[1, 2]]}), tmp_path / "t.parquet")
        with pytest.raises(InvalidConfig, match="column 'x' is list"):
            ClinicalTable.read(tmp_path / "t.parquet")

    @given(cells=st.lists(st.lists(st.text(max_size=5), min_size=2, max_size=2), max_size=4))
    @settings(max_examples=50, deadline=None)
    def test_any_text_is_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]]
    ) -> None:
        text = "\n".join(",".join(row) for row in cells)
        try:
            table = read(tmp_path_factory.mktemp("t"), text.encode("utf-8", "surrogatepass"))
        except InvalidConfig:
            return
        assert all(len(column) == len(table) for column in table.columns.values())


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.svs", "a"),
        ("x/y/a.OME.TIFF", "a"),
        ("C:\\slides\\a.ndpi", "a"),
        ("TCGA-AA-1234-01Z-00-DX1.0f3c", "TCGA-AA-1234-01Z-00-DX1.0f3c"),
        (".svs", ".svs"),
        ("a.zarr/", "a"),
    ],
)
def test_the_name_of_a_slide(name: str, stem: str) -> None:
    assert slide_stem(name) == stem


class TestSlides:
    def test_rows_come_in_the_order_asked_for(self, tmp_path: Path) -> None:
        found = read(tmp_path, SLIDES).match(["b", "nowhere", "007", "a"])
        assert found.names == ("b", "007", "a")
        assert found.patients == ("p1", "p2", "p1")
        assert found.patient_of == {"b": "p1", "007": "p2", "a": "p1"}
        assert found.texts("grade") == ("high", "high", "low")
        assert found.without == ("nowhere",)
        assert found.remarks == (
            "without a row in the table: nowhere",
            "in the table only: unused",
        )

    def test_a_name_that_ends_like_a_file_is_taken_as_it_is_first(self, tmp_path: Path) -> None:
        found = read(tmp_path, "slide,x\na.png,1\na,2\n").match(["a.png", "a"])
        assert found.texts("x") == ("1", "2")

    def test_two_rows_of_one_slide(self, tmp_path: Path) -> None:
        table = read(tmp_path, "slide,x\na,1\nb,1\na.svs,2\nb.tif,3\n")
        with pytest.raises(InvalidConfig, match=r"2 rows of slide a \(lines 2 and 4\).*1 other"):
            table.match(["a", "b"])

    def test_without_patients_each_slide_is_one(self, tmp_path: Path) -> None:
        found = read(tmp_path, "slide,x\na,1\nb,2\n").match(["a", "b"])
        assert found.patients == ("a", "b")
        assert "every slide counts as a patient of its own" in found.remarks[-1]

    def test_a_slide_of_nobody(self, tmp_path: Path) -> None:
        table = read(tmp_path, "slide,patient\na,p\nb,\n")
        with pytest.raises(InvalidConfig, match="slides of no patient: b"):
            table.match(["a", "b"])
        assert table.match(["a"]).patients == ("p",)

    def test_no_such_columns(self, tmp_path: Path) -> None:
        table = read(tmp_path, SLIDES.replace("slide", "slide_id").replace("patient", "case"))
        with pytest.raises(UnknownName, match=r"clinical\.csv named 'slide'.*slide_id"):
            table.match(["a"])
        with pytest.raises(UnknownName, match="'kase'; did you mean case"):
            table.match(["a"], slide="slide_id", patient="kase")
        assert table.match(["a"], slide="slide_id", patient="case").patients == ("p1",)

    def test_nothing_in_common(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match=r"it names a, b, 007, unused, the slides are x0.*"
                           r"x4 and 2 more\n"):  # fmt: skip
            read(tmp_path, SLIDES).match([f"x{i}" for i in range(7)])


class TestPatients:
    TEXT = "patient,grade\np1,low\np2,high\np9,high\n"

    def test_by_a_pattern(self, tmp_path: Path) -> None:
        names = ["p1-b", "p2-a", "p1-a", "other"]
        found = read(tmp_path, self.TEXT).match(names, patient_pattern=r"^(p\d)-")
        assert found.names == ("p1-b", "p2-a", "p1-a")
        assert found.texts("grade") == ("low", "high", "low")
        assert found.without == ("other",)
        assert found.remarks[-1] == "in the table only: p9"
        whole = read(tmp_path, self.TEXT).match(names, patient_pattern=r"p\d")
        assert whole.patients == found.patients == ("p1", "p2", "p1")

    def test_by_another_table(self, tmp_path: Path) -> None:
        pairs = read(tmp_path, "FILENAME,PATIENT\nx.h5,p1\ny.h5,p2\n", "slides.csv")
        mapping = pairs.pairs("FILENAME", "PATIENT")
        assert mapping == {"x": "p1", "y": "p2"}
        found = read(tmp_path, self.TEXT).match(["y", "x", "z"], patient_of=mapping)
        assert (found.names, found.texts("grade")) == (("y", "x"), ("high", "low"))

    def test_a_slide_of_two_patients(self, tmp_path: Path) -> None:
        table = read(tmp_path, "slide,patient\nx.svs,p1\nx,p2\n")
        with pytest.raises(InvalidConfig, match="line 3: slide x is p2's, but p1's above"):
            table.pairs()

    def test_nothing_says_whose(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match="which slide is whose"):
            read(tmp_path, self.TEXT).match(["p1"])
        with pytest.raises(InvalidConfig, match="no regular expression"):
            read(tmp_path, self.TEXT).match(["p1"], patient_pattern="(")

    def test_slides_become_patients(self, tmp_path: Path) -> None:
        found = matched(tmp_path).by_patient()
        assert found.names == found.patients == ("p1", "p2")
        np.testing.assert_array_equal(found.numbers("age"), [61.5, np.nan])
        with pytest.raises(InvalidConfig, match=r"differ in 'grade': p1 \(high and low\)"):
            found.texts("grade")

    def test_what_one_row_does_not_know_another_says(self, tmp_path: Path) -> None:
        text = "slide,patient,x\na,p,\nb,p,3\n007,q,\n"
        assert matched(tmp_path, text).by_patient().texts("x") == ("3", None)


class TestColumns:
    def test_classes(self, tmp_path: Path) -> None:
        found = matched(tmp_path)
        assert found.classes_of("grade") == ("high", "low")
        np.testing.assert_array_equal(found.classes("grade", ["low", "high"]), [1, 0, 1])
        with pytest.raises(InvalidConfig, match=r"line 3 \(b\): grade is 'high', none of .* low"):
            found.classes("grade", ["low"])

    def test_numbers_as_classes_are_in_their_order(self, tmp_path: Path) -> None:
        text = "slide,stage\na,10\nb,2\n007,\n"
        assert matched(tmp_path, text).classes_of("stage") == ("2", "10")

    def test_events(self, tmp_path: Path) -> None:
        np.testing.assert_array_equal(matched(tmp_path).events("died"), [0, 1, 1])
        with pytest.raises(InvalidConfig, match=r"line 3 \(b\): grade is 'high', not 0, 1"):
            matched(tmp_path).events("grade")

    def test_the_first_bad_number_is_named(self, tmp_path: Path) -> None:
        text = "slide;age\na;61\nb;\n007;3,5\n"
        with pytest.raises(InvalidConfig, match=r"line 4 \(007\): age is '3,5', no.*\n.*point"):
            matched(tmp_path, text).numbers("age")

    @pytest.mark.parametrize("text", ["1_000", "inf", "nan", "0x10", "1e999", "", "1.2.3", "٣"])
    def test_what_is_no_number(self, text: str) -> None:
        assert number(text) is None

    @given(st.floats(allow_nan=False, allow_infinity=False))
    @settings(deadline=None)
    def test_numbers_come_back(self, value: float) -> None:
        assert number(repr(value)) == value


class TestCovariates:
    TEXT = "slide,age,sex,site,all\na,50,f,1,x\nb,70,m,2,x\n007,,f,1,x\nc,90,d,3,x\nd,,,,x\n"

    @pytest.fixture
    def table(self, tmp_path: Path) -> MatchedTable:
        return read(tmp_path, self.TEXT).match(["a", "b", "007", "c", "d"])

    def test_by_hand(self, table: MatchedTable) -> None:
        made = Covariates.fit(table, ["age", "sex", "site"], [0, 1, 2], categories=["site"])
        assert made.names == ("age", "age is missing", "sex=f", "sex=m", "site=1", "site=2")
        np.testing.assert_allclose(
            made.matrix(table),
            [
                [-1, 0, 1, 0, 1, 0],
                [1, 0, 0, 1, 0, 1],
                [0, 1, 1, 0, 1, 0],
                [3, 0, 0, 0, 0, 0],  # a sex and a site that training did not know
                [0, 1, 0, 0, 0, 0],
            ],
        )
        assert made.matrix(table).dtype == np.float32

    def test_what_is_not_trained_on_decides_nothing(self, table: MatchedTable) -> None:
        made = Covariates.fit(table, ["age"], [0, 1])
        assert made.names == ("age",)
        np.testing.assert_allclose(made.matrix(table)[:, 0], [-1, 1, 0, 3, 0])

    def test_out_and_in(self, table: MatchedTable) -> None:
        made = Covariates.fit(table, ["age", "sex"], [0, 1, 2])
        again = Covariates.from_dict(json.loads(json.dumps(made.to_dict())))
        assert again == made
        with pytest.raises(InvalidConfig, match="cannot be understood"):
            Covariates.from_dict({"columns": [{"name": "age"}]})

    def test_none(self, table: MatchedTable) -> None:
        assert Covariates().matrix(table).shape == (5, 0)

    def test_nothing_varies(self, table: MatchedTable) -> None:
        made = Covariates.fit(table, ["age"], [0])
        np.testing.assert_allclose(made.matrix(table)[:, 0], [0, 20, 0, 40, 0])

    def test_nothing_known(self, table: MatchedTable) -> None:
        with pytest.raises(InvalidConfig, match="'age' is empty for all that are learned from"):
            Covariates.fit(table, ["age"], [2, 4])
        with pytest.raises(UnknownName, match="'ago'; did you mean age"):
            Covariates.fit(table, ["ago"], [0])

    def test_text_where_training_knew_numbers(self, table: MatchedTable, tmp_path: Path) -> None:
        made = Covariates.fit(table, ["age"], [0, 1])
        other = read(tmp_path, "slide,age\nz,old\n", "new.csv").match(["z"])
        with pytest.raises(InvalidConfig, match=r"new\.csv: line 2 \(z\): age is 'old', no number"):
            made.matrix(other)
