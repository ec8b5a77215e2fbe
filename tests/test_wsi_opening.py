"""Opening: readers by content, pixel size by a recorded chain, errors that help, the watchdog."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from pyramids import address_pixels, write_pyramid

from coverslip.errors import (
    BrokenSlide,
    ImplausibleMpp,
    InvalidConfig,
    MissingMpp,
    ReaderTimeout,
    SlideError,
    UnknownName,
    UnreadableTile,
    UnsupportedSlide,
)
from coverslip.tiling.reading import read_window, thumbnail
from coverslip.wsi import guarded, openslide_reader
from coverslip.wsi.facts import slide_facts
from coverslip.wsi.fingerprint import fingerprint
from coverslip.wsi.naming import slide_name
from coverslip.wsi.opening import open_slide, read_mpp_table, slide_paths
from coverslip.wsi.pixel_size import pixel_size_of


@pytest.mark.parametrize(
    ("properties", "mpp", "source"),
    [
        ({"aperio.MPP": "0.2520"}, 0.252, "aperio.MPP"),
        ({"aperio.MPP": "0,265", "openslide.objective-power": "40"}, 0.265, "aperio.MPP"),
        (
            {"philips.DICOM_PIXEL_SPACING": '"0.00025" "0.00025"'}, 0.25,
            "philips.DICOM_PIXEL_SPACING",
        ),
        ({"openslide.mpp-x": "0.46", "openslide.mpp-y": "0.46"}, 0.46, "openslide.mpp-x"),
        (
            {"tiff.XResolution": "40000", "tiff.YResolution": "40000",
             "tiff.ResolutionUnit": "centimeter"}, 0.25, "TIFF resolution",
        ),
        ({"openslide.objective-power": "20"}, 0.5, "objective power 20"),
    ],
)  # fmt: skip
def test_the_first_source_that_speaks_wins(
    properties: dict[str, str], mpp: float, source: str
) -> None:
    found = pixel_size_of("a.svs", properties, trust_objective=True)
    assert found is not None
    assert (found.x, found.y) == pytest.approx((mpp, mpp))
    assert found.source == source


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"openslide.objective-power": "40"},
        {"tiff.XResolution": "72", "tiff.YResolution": "72", "tiff.ResolutionUnit": "inch"},
        {"tiff.XResolution": "300", "tiff.YResolution": "300", "tiff.ResolutionUnit": "inch"},
        {"tiff.XResolution": "40000", "tiff.YResolution": "40000", "tiff.ResolutionUnit": "none"},
        {
            "tiff.ImageDescription": '<!DOCTYPE x [<!ENTITY a "0.25">]>'
            '<OME><Pixels PhysicalSizeX="&a;" PhysicalSizeY="&a;"/></OME>'
        },
    ],
)
def test_what_says_nothing_is_not_guessed(properties: dict[str, str]) -> None:
    assert pixel_size_of("a.svs", properties) is None


@pytest.mark.parametrize("value", ["0", "-0.25", "nan", "inf", "1e6", "1e-9"])
def test_implausible_sizes_are_errors(value: str) -> None:
    with pytest.raises(ImplausibleMpp, match="--mpp-table"):
        pixel_size_of("a.svs", {"aperio.MPP": value})


def test_given_table_file_assumed(tmp_path: Path, small_slide: Path) -> None:
    write_pyramid(tmp_path / "none.tif", address_pixels(300, 300), mpp=None)
    (tmp_path / "t.csv").write_text("slide,mpp\nnone,0.31\nCMU-1-Small-Region.svs,0.4\n")
    table = read_mpp_table(tmp_path / "t.csv")
    with pytest.raises(MissingMpp, match="--assume-mpp"):
        open_slide(tmp_path / "none.tif")
    for arguments, mpp, source in (
        ({"assume_mpp": 0.5}, 0.5, "assumed"),
        ({"mpp_table": table, "assume_mpp": 0.5}, 0.31, "mpp table"),
        ({"mpp": 0.2, "mpp_table": table}, 0.2, "given"),
    ):
        with open_slide(tmp_path / "none.tif", **arguments) as slide:  # type: ignore[arg-type]
            assert slide.pixel_size is not None
            assert (slide.mpp[0], slide.pixel_size.source) == (mpp, source)
    with open_slide(small_slide, assume_mpp=9.0) as slide:
        assert slide.mpp == (0.499, 0.499), "what the file says is not overridden by an assumption"
    with open_slide(small_slide, mpp_table=table) as slide:
        assert slide.mpp == (0.4, 0.4)
    (tmp_path / "t.csv").write_text("slide,mpp\na,much\n")
    with pytest.raises(InvalidConfig, match="line 2"):
        read_mpp_table(tmp_path / "t.csv")


def test_files_that_are_no_slides(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").write_bytes(b"")
    (tmp_path / "text.svs").write_text("not a slide")
    (tmp_path / "link.svs").symlink_to(tmp_path / "nowhere")
    (tmp_path / "new\nline.svs").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for name, kind in (
        ("empty.svs", BrokenSlide),
        ("text.svs", UnsupportedSlide),
        ("link.svs", UnsupportedSlide),
        ("absent.svs", UnsupportedSlide),
        ("new\nline.svs", SlideError),
        ("", UnsupportedSlide),
    ):
        with pytest.raises(kind) as caught:
            open_slide(tmp_path / name)
        assert "\n" not in str(caught.value).splitlines()[0].replace("\\n", "")
    with pytest.raises(UnknownName, match="tiff"):
        open_slide(tmp_path / "text.svs", reader="tif")


def test_a_renamed_png_is_opened_as_what_it_is(tmp_path: Path) -> None:
    image = address_pixels(700, 90)
    Image.fromarray(image).save(tmp_path / "x.svs", "PNG")
    with open_slide(tmp_path / "x.svs", mpp=1.0) as slide:
        assert slide.reader == "image"
        assert np.array_equal(read_window(slide, (0, 0), slide.size, (1, 1)), image)


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr(tmp_path: Path, version: int) -> None:
    image = address_pixels(500, 300)
    path = tmp_path / "x.ome.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=version)  # type: ignore[arg-type]
    datasets = []
    for number in range(2):
        data = np.ascontiguousarray(image[:: 2**number, :: 2**number].transpose(2, 0, 1))
        group.create_array(str(number), data=data, chunks=(1, 128, 128))
        scale = [1.0, 0.3 * 2**number, 0.3 * 2**number]
        datasets.append(
            {"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    axes = [{"name": "c", "type": "channel"}] + [
        {"name": n, "type": "space", "unit": "micrometer"} for n in "yx"
    ]
    multiscales = [{"axes": axes, "datasets": datasets, "version": "0.4"}]
    if version == 2:
        group.attrs["multiscales"] = multiscales
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    with open_slide(path) as slide:
        assert slide.name == "x"
        assert slide.mpp == pytest.approx((0.3, 0.3))
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2)]
        assert np.array_equal(read_window(slide, (0, 0), slide.size, (1, 1)), image)


def test_openslide_behind_the_guard_gives_the_same_pixels(small_slide: Path) -> None:
    with open_slide(small_slide, reader="openslide") as slow, open_slide(small_slide) as fast:
        window = ((123.0, 456.0), (400, 300), (1.3, 1.3))
        assert np.array_equal(read_window(slow, *window), read_window(fast, *window))


def test_an_openslide_error_does_not_poison_the_rest(spoiled: Path, small_slide: Path) -> None:
    with open_slide(spoiled, reader="openslide") as slide, open_slide(small_slide) as sound:
        with pytest.raises(UnreadableTile, match="column 0, row 1"):
            slide.decode_tile(0, 0, 1)
        good = slide.decode_tile(0, 0, 0)
        assert np.array_equal(good, read_window(sound, (0, 0), (1024, 1024), (1, 1)))


def test_a_read_that_hangs_is_killed(small_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = guarded.subprocess.Popen
    hang = "import time; time.sleep(60)"
    children = []

    def hanging(arguments: list[str], **options: object) -> object:
        child = original([arguments[0], "-c", hang], **options)  # type: ignore[call-overload]
        children.append(child)
        return child

    slide = openslide_reader.open(small_slide)
    slide._reader.timeout_s = 0.5
    slide._reader.close()  # the child that opened it
    monkeypatch.setattr(guarded.subprocess, "Popen", hanging)
    started = time.monotonic()
    with pytest.raises(ReaderTimeout, match="--read-timeout"):
        slide.decode_tile(0, 0, 0)
    assert time.monotonic() - started < 30
    assert children[0].poll() is not None
    monkeypatch.undo()
    slide._reader.timeout_s = 60
    assert slide.decode_tile(0, 0, 0) is not None
    slide.close()


def test_a_crashing_library_is_one_bad_tile(
    small_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = openslide_reader.open(small_slide)
    slide._reader.close()  # the child that opened it
    original = guarded.subprocess.Popen
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(
        guarded.subprocess,
        "Popen",
        lambda arguments, **options: original([arguments[0], "-c", crash], **options),
    )
    with (
        slide,
        pytest.raises(UnreadableTile, match="status -11"),
    ):
        slide.decode_tile(0, 0, 0)


def test_many_threads_read_one_slide(small_slide: Path) -> None:
    with open_slide(small_slide) as slide:
        expected = [slide.decode_tile(0, i % 9, i % 11) for i in range(64)]
        found: list[object] = [None] * 64

        def read(number: int) -> None:
            found[number] = slide.decode_tile(0, number % 9, number % 11)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_url_is_read_through_fsspec(small_slide: Path) -> None:
    import fsspec

    with fsspec.open("memory://bucket/case.svs", "wb") as file:
        file.write(small_slide.read_bytes())
    with (
        open_slide("memory://bucket/case.svs") as remote,
        open_slide(small_slide) as local,
    ):
        assert remote.name == "case"
        assert remote.mpp == local.mpp
        window = ((700.0, 800.0), (300, 200), (1.0, 1.0))
        difference = read_window(remote, *window).astype(int) - read_window(local, *window)
        assert np.abs(difference).mean() < 2
    with pytest.raises(UnsupportedSlide, match="cannot be opened"):
        open_slide("memory://bucket/absent.svs")


def test_icc_is_recorded(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = address_pixels(64, 64)
    Image.fromarray(image).save(tmp_path / "i.png", icc_profile=profile)
    with open_slide(tmp_path / "i.png", mpp=1.0, icc=True) as slide:
        assert slide_facts(slide)["colour"] == "sRGB by ICC profile"
        seen = read_window(slide, (0, 0), (64, 64), (1, 1))
        assert np.abs(seen.astype(int) - image).max() <= 2
    with open_slide(tmp_path / "i.png", mpp=1.0) as slide:
        assert slide_facts(slide)["colour"] == "as stored"


def test_facts_hold_no_identifiers(small_slide: Path) -> None:
    with open_slide(small_slide) as slide:
        text = repr(slide_facts(slide))
        assert "CPAPERIOCS" not in text
        assert str(small_slide.parent) not in text
        assert thumbnail(slide, 200).shape == (200, 150, 3)


def test_fingerprints_notice_a_change(tmp_path: Path, small_slide: Path) -> None:
    path = tmp_path / "a.svs"
    content = bytearray(small_slide.read_bytes())
    path.write_bytes(content)
    before = fingerprint(path)
    os.utime(path, (0, 0))
    assert fingerprint(path) == before
    content[100] ^= 1
    path.write_bytes(content)
    assert fingerprint(path) != before


def test_folders_globs_and_names(tmp_path: Path) -> None:
    for name in ("b.svs", "a.tif", "notes.txt", "deep/c.ndpi", "case.mrxs", "case/Data0001.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def names(*inputs: str, recursive: bool = False) -> list[str]:
        found = slide_paths([str(tmp_path / i) for i in inputs], recursive=recursive)
        return [Path(p).relative_to(tmp_path).as_posix() for p in found]

    assert names("") == ["a.tif", "b.svs", "case.mrxs"]
    assert names("", recursive=True) == ["a.tif", "b.svs", "case.mrxs", "deep/c.ndpi"]
    assert names("*.svs", "b.svs") == ["b.svs"]
    assert names("notes.txt") == ["notes.txt"]
    with pytest.raises(InvalidConfig, match="matches nothing"):
        names("*.czi")
    assert slide_name("/x/case.1.ome.tif") == "case.1"
