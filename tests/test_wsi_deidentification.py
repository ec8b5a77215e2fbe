"""Copies that identify nobody: the same pixels, none of the words, or no copy at all."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from planted import SECRETS, write_planted
from pyramids import address_pixels, write_pyramid

from coverslip.cli import main
from coverslip.errors import BrokenSlide, SlideError, UnsupportedSlide
from coverslip.wsi import deidentification
from coverslip.wsi.deidentification import deidentified
from coverslip.wsi.identifiers import identifiers_of
from coverslip.wsi.opening import open_slide


def tiles_of(path: Path) -> list[list[bytes]]:
    """The bytes of each tile of each tiled directory, by tifffile."""
    content = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        return [
            [
                content[offset : offset + count]
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
            for page in file.pages
            if page.is_tiled
        ]


def secrets_in(path: Path) -> list[str]:
    content = path.read_bytes().lower()
    return [
        secret
        for secret in SECRETS
        if any(secret.lower().encode(code) in content for code in ("utf-8", "utf-16-le"))
    ]


@pytest.mark.parametrize(("bigtiff", "byteorder"), [(False, "<"), (True, "<"), (True, ">")])
def test_a_planted_svs_loses_all_but_its_pixels(
    tmp_path: Path, bigtiff: bool, byteorder: str
) -> None:
    image = address_pixels(700, 600)
    path = write_planted(tmp_path / "a.svs", image, bigtiff=bigtiff, byteorder=byteorder)
    before = path.read_bytes()
    made = deidentified(path, tmp_path / "b.svs")
    assert secrets_in(path) == list(SECRETS)
    assert secrets_in(made.path) == []
    assert path.read_bytes() == before
    assert identifiers_of(str(made.path)) == []
    assert tiles_of(made.path) == tiles_of(path)
    assert (made.levels, made.found > 12) == (2, True)
    with tifffile.TiffFile(path) as file:
        gone = [page.dataoffsets[0] for page in file.pages[3:]]
    assert len(gone) == 2
    assert all(before[o : o + 64] not in made.path.read_bytes() for o in gone)
    with open_slide(path) as old, open_slide(made.path) as new:
        assert (new.levels, new.pixel_size, new.vendor) == (old.levels, old.pixel_size, "aperio")
        assert new.icc_profile == old.icc_profile == b"icc" * 50
        assert new.associated == ("thumbnail",)
    with openslide.OpenSlide(str(made.path)) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.499
        assert slide.properties["aperio.AppMag"] == "20"
        assert slide.level_dimensions == ((700, 600), (350, 300))
        assert set(slide.associated_images) == {"thumbnail"}
    with tifffile.TiffFile(made.path) as file:
        assert (file.is_bigtiff, file.byteorder) == (bigtiff, byteorder)
        assert np.array_equal(file.pages[0].asarray(), tifffile.imread(path, key=0))


def test_the_thumbnail_goes_where_asked(tmp_path: Path) -> None:
    path = write_planted(tmp_path / "a.svs", address_pixels(700, 600))
    made = deidentified(path, tmp_path / "b.svs", keep_thumbnail=False)
    with openslide.OpenSlide(str(made.path)) as slide:
        assert not slide.associated_images
        assert slide.level_count == 2


def test_the_real_slide_of_the_package(tmp_path: Path, small_slide: Path) -> None:
    made = deidentified(small_slide, tmp_path / "b.svs")
    assert made.bytes < small_slide.stat().st_size
    assert tiles_of(made.path) == tiles_of(small_slide)
    held = made.path.read_bytes()
    found = [each.value for each in identifiers_of(str(small_slide)) if len(each.value) < 40]
    assert "12/29/09" in found
    assert not [value for value in found if value.encode() in held]


@pytest.mark.real
def test_real_slides_of_the_shared_folder(tmp_path: Path, real_slides: list[Path]) -> None:
    copied = 0
    for number, path in enumerate(real_slides):
        if path.suffix != ".svs" or path.stat().st_size > 15 * 2**20:
            continue
        made = deidentified(path, tmp_path / f"{number}.svs")
        assert tiles_of(made.path) == tiles_of(path)
        assert identifiers_of(str(made.path)) == []
        copied += 1
    assert copied


def test_a_generic_tiff_keeps_its_levels_only(tmp_path: Path) -> None:
    path, image = tmp_path / "a.tif", address_pixels(600, 500)
    with tifffile.TiffWriter(path) as file:
        for step in (1, 2):
            file.write(
                np.ascontiguousarray(image[::step, ::step]),
                tile=(256, 256),
                photometric="rgb",
                compression="adobe_deflate",
                metadata=None,
                resolution=(4e4 / step, 4e4 / step),
                resolutionunit="CENTIMETER",
                description="Quillfeather",
                subfiletype=int(step > 1),
            )
        label = np.zeros((90, 80, 3), np.uint8)
        file.write(label, tile=(16, 16), photometric="rgb", metadata=None, description="label")
    made = deidentified(path, tmp_path / "b.tif")
    with open_slide(made.path) as slide:
        assert slide.size == (600, 500)
        assert slide.mpp == pytest.approx((0.25, 0.25))
    with tifffile.TiffFile(made.path) as file:
        assert len(file.pages) == 2
        assert np.array_equal(file.pages[0].asarray(), image)
    assert b"Quillfeather" not in made.path.read_bytes()


def test_tiles_that_share_bytes_share_them_in_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_pyramid(path, np.full((512, 512, 3), 240, np.uint8))
    with tifffile.TiffFile(path) as file:
        place, offsets = file.pages[0].tags[324].valueoffset, file.pages[0].dataoffsets
    with open(path, "r+b") as content:
        content.seek(place)
        content.write(struct.pack("<4I", *[offsets[0]] * 3, 0))
    made = deidentified(path, tmp_path / "b.tif")
    with tifffile.TiffFile(made.path) as file:
        assert len(set(file.pages[0].dataoffsets[:3])) == 1
        assert file.pages[0].dataoffsets[3] == 0


def test_tiles_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_pyramid(path, address_pixels(2048, 1024), compression=None)
    with tifffile.TiffFile(path) as file:
        offsets, counts = file.pages[0].tags[324], file.pages[0].tags[325]
        first, length = file.pages[0].dataoffsets[0], path.stat().st_size
    with open(path, "r+b") as content:
        content.seek(offsets.valueoffset)
        content.write(struct.pack("<32I", *(first + i for i in range(32))))
        content.seek(counts.valueoffset)
        content.write(struct.pack("<32I", *[length - first - 32] * 32))
    with pytest.raises(BrokenSlide, match="its tiles overlap"):
        deidentified(path, tmp_path / "b.tif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif"]


def test_what_cannot_be_done_whole_is_not_begun(tmp_path: Path) -> None:
    image = address_pixels(600, 500)
    tifffile.imwrite(tmp_path / "a.ome.tif", image, tile=(256, 256), photometric="rgb", ome=True)
    with pytest.raises(UnsupportedSlide, match="is ome: only Aperio SVS"):
        deidentified(tmp_path / "a.ome.tif", tmp_path / "b.tif")
    spoken = write_planted(tmp_path / "c.svs", image, comment=b"for Quillfeather")
    with pytest.raises(UnsupportedSlide, match="words inside its compressed pixels"):
        deidentified(spoken, tmp_path / "d.svs")
    plain = write_planted(tmp_path / "e.svs", image)
    with pytest.raises(SlideError, match="S21-12345, which looks like an accession number"):
        deidentified(plain, tmp_path / "S21-12345.svs")
    with pytest.raises(SlideError, match="is there already"):
        deidentified(plain, spoken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.tif", "c.svs", "e.svs"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("pixels", "not the same bytes"),
        ("words", "still hold the operator"),
        ("label", "pixels of directory 3"),
    ],
)
def test_a_copy_that_is_not_right_never_gets_its_name(
    tmp_path: Path, spoil: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_planted(tmp_path / "a.svs", address_pixels(600, 500))
    with tifffile.TiffFile(path) as file:
        label = file.pages[3]
        strip = path.read_bytes()[label.dataoffsets[0] :][: label.databytecounts[0]]
    extra = {"pixels": b"?", "words": b"x tech.oglethorpe x", "label": strip}[spoil]
    write = deidentification._Copy.write

    def spoiled(copy: deidentification._Copy, kept: list[object]) -> int:
        tiles = write(copy, kept)  # type: ignore[arg-type]
        if spoil == "pixels":
            copy._file.seek(400)
        copy._file.write(extra)
        return tiles

    monkeypatch.setattr(deidentification._Copy, "write", spoiled)
    with pytest.raises(SlideError, match=said):
        deidentified(path, tmp_path / "b.svs")
    assert [p.name for p in tmp_path.iterdir()] == ["a.svs"]


def test_the_command_renames_by_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides, names, image = tmp_path / "slides", tmp_path / "names.csv", address_pixels(600, 500)
    slides.mkdir()
    write_planted(slides / "S21-12345.svs", image)
    write_pyramid(slides / "plain.tif", image)
    assert main(["deidentify", str(slides), str(tmp_path / "out")]) == 1
    assert "looks like" in capsys.readouterr().err
    line = ["deidentify", str(slides), str(tmp_path / "new"), "--names", str(names)]
    names.write_text("slide,name\nS21-12345.svs,case-1\nplain,case-2\n")
    assert main([*line, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["path"]).name for row in rows] == ["case-1.svs", "case-2.tif"]
    line[2] = str(tmp_path / "third")
    for bad in ("slide,name\nplain,../x\n", "slide,name\nS21-12345,a\n", "slide,name\nplain\n"):
        names.write_text(bad)
        assert main(line) == 2
    assert not (tmp_path / "third").exists()
    assert main(["deidentify", str(slides / "plain.tif"), str(tmp_path / "one.tif")]) == 0
    assert (tmp_path / "one.tif").is_file()
