"""Which annotation files belong to which slide, and what is said where none does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from coverslip.engine.annotated_slides import annotation_files, of_annotated_slides
from coverslip.errors import InvalidConfig
from coverslip.wsi.slide import Slide


def touched(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("one.geojson", "s/one.svs"),
        ("one.GeoJSON.gz", "s/one.svs"),
        ("one.svs.json", "s/one.svs"),
        ("one.second reader.zip", "s/one.svs"),
        ("one.two.geojson", "s/one.two.svs"),  # the longer name
        ("one.two.x.geojson", "s/one.two.svs"),
        ("scan.geojson", "s3://bucket/scan.ome.tif"),
        ("scan.ome.tif.geojson", "s3://bucket/scan.ome.tif"),
        ("twin.svs.geojson", "s/twin.svs"),
        ("twin.ndpi.mine.geojson", "s/twin.ndpi"),
        ("mirax.geojson", "s/mirax.zarr/"),
        ("onetwo.geojson", None),
        ("one.geojson.txt", None),
        ("One.geojson", None),
    ],
)
def test_a_file_belongs_to_the_slide_after_which_it_is_named(
    tmp_path: Path, file: str, owner: str | None
) -> None:
    slides = ["s/one.svs", "s/one.two.svs", "s3://bucket/scan.ome.tif", "s/twin.svs",
              "s/twin.ndpi", "s/mirax.zarr/"]  # fmt: skip
    (path,) = touched(tmp_path / "drawn", file)
    expected = {} if owner is None else {owner: (path,)}
    assert annotation_files(slides, [tmp_path / "drawn"]) == expected
    assert annotation_files(slides[::-1], [tmp_path / "drawn"]) == expected


def test_a_slide_has_all_its_files_and_the_only_one_needs_no_name(tmp_path: Path) -> None:
    a, b = touched(tmp_path / "one", "case.a.geojson", "case.b.geojson")
    (c,) = touched(tmp_path / "other", "case.a.geojson")
    places = [tmp_path / "one", tmp_path / "other", a]
    assert annotation_files(["case.svs", "bare.svs"], places) == {"case.svs": (a, b, c)}
    assert annotation_files(["bare.svs"], [a]) == {"bare.svs": (a,)}
    assert annotation_files(["bare.svs"], [a, b]) == {}


def test_what_fits_twice_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "twin.geojson")
    with pytest.raises(InvalidConfig, match=r"twin\.geojson: fits a/twin\.svs and b/twin\.tif"):
        annotation_files(["a/twin.svs", "b/twin.tif"], [tmp_path])
    touched(tmp_path, "twin.geojson.gz")
    with pytest.raises(InvalidConfig, match=r"twin\.geojson\.gz: twin\.geojson beside it"):
        annotation_files(["a/twin.svs"], [tmp_path])
    with pytest.raises(InvalidConfig, match="no such file or folder of annotations"):
        annotation_files(["a/twin.svs"], [tmp_path / "absent"])


def test_every_slide_is_read_with_its_files_or_none_is(tmp_path: Path, small_slide: Path) -> None:
    for name in ("one.svs", "two.svs"):
        (tmp_path / name).symlink_to(small_slide)
    slides = [str(tmp_path / "one.svs"), str(tmp_path / "two.svs")]
    a, b = touched(tmp_path / "drawn", "one.a.geojson", "one.b.geojson")
    opened = []

    def names(slide: Slide, files: Sequence[Path]) -> list[tuple[str, str]]:
        opened.append(slide.name)
        return [(slide.name, file.name) for file in files]

    said = (
        f"{tmp_path / 'drawn'}: no annotations of {slides[1]}\n"
        "  QuPath's GeoJSON is wanted, named after its slide; looked for two.geojson and "
        "two.<anything>.geojson, also .json and .zip, also .gz"
    )
    with pytest.raises(InvalidConfig, match=re.escape(said)):
        of_annotated_slides(slides, tmp_path / "drawn", names)
    assert opened == []  # what is missing is known before anything is read
    (c,) = touched(tmp_path / "drawn", "two.geojson")
    found = of_annotated_slides(slides, tmp_path / "drawn", names)
    assert found == [("one", a.name), ("one", b.name), ("two", c.name)]
    with pytest.raises(InvalidConfig, match="any of 2 slides, such as"):
        of_annotated_slides(slides, b.with_name("two.geojson").rename(tmp_path / "x.json"), names)
