"""Slides on slow storage: whole copies, private, within a limit, and never a slide lost for one."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import orjson
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.engine import slide_copies
from coverslip.engine.slide_copies import SlideCopies, SlideCopy
from coverslip.engine.staging import ReadAhead, StagedSlide, Staging, staged
from coverslip.errors import StoreError, UnsupportedSlide
from coverslip.worker_identity import own_marks, place
from coverslip.wsi.fingerprint import fingerprint
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide_parts import SlidePart, slide_parts

WAIT_S = 10.0
"""No wait below takes so long."""


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """The folder on slow storage."""
    folder = tmp_path / "slow"
    folder.mkdir()
    return folder


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path / "local" / "ssd")


def noise(path: Path, size: int, seed: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return str(path)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder: place -> content."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def copied_files(slide: StagedSlide) -> dict[str, bytes]:
    assert slide.remark == ""
    return files(Path(slide.path).parent)


def held_stems(staging: Staging) -> set[str]:
    """Of the slides that lie there, while others come and go."""
    found = (name for _, _, names in os.walk(staging.folder) for name in names)
    return {name.removesuffix(".svs") for name in found if name.endswith(".svs")}


def held_bytes(staging: Staging) -> int:
    sizes = 0
    for folder, _, names in os.walk(staging.folder):
        for name in names:
            if name != "owner.json":
                try:
                    sizes += os.path.getsize(os.path.join(folder, name))
                except FileNotFoundError:
                    continue
    return sizes


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class HeldWriting(NamedTuple):
    """Copying in pieces of 1,000 bytes, the first of which waits for `go_on`."""

    begun: threading.Event
    go_on: threading.Event
    pieces: list[int]


@pytest.fixture
def held_writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldWriting]:
    begun, go_on, pieces = threading.Event(), threading.Event(), []
    write = slide_copies._write

    def wait_and_write(handle: int, content: memoryview) -> None:
        pieces.append(len(content))
        begun.set()
        assert go_on.wait(WAIT_S)
        write(handle, content)

    monkeypatch.setattr(slide_copies, "PIECE", 1000)
    monkeypatch.setattr(slide_copies, "_write", wait_and_write)
    yield HeldWriting(begun, go_on, pieces)
    go_on.set()


def test_a_real_slide_reads_alike_from_its_copy(
    small_slide: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_copies, "PIECE", 100_000)
    with staged(str(small_slide), staging) as slide:
        copy = Path(slide.path)
        assert slide.remark == ""
        assert copy.is_relative_to(staging.folder)
        assert copy.name == small_slide.name
        assert fingerprint(copy) == fingerprint(small_slide)
        assert copy.read_bytes() == small_slide.read_bytes()
        assert copy.stat().st_mtime_ns == small_slide.stat().st_mtime_ns
        with open_slide(copy, cross_check=False) as near, open_slide(small_slide) as far:
            assert near.name == far.name
            assert near.mpp == far.mpp
            np.testing.assert_array_equal(near.decode_tile(0, 3, 4), far.decode_tile(0, 3, 4))
    assert list(staging.folder.iterdir()) == []


def test_copies_are_private(slow: Path, staging: Staging) -> None:
    path = noise(slow / "a.svs", 10)
    with staged(path, staging) as slide:
        (own,) = staging.folder.iterdir()
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert Path(slide.path).parent.parent == own
        assert orjson.loads((own / "owner.json").read_bytes()) == own_marks()


@pytest.mark.parametrize(
    "name", ["a b.ome.tif", "Fälle.svs", "-x.ndpi", "noise", os.fsdecode(b"\xff.svs")]
)
def test_names_stay(slow: Path, staging: Staging, name: str) -> None:
    path = noise(slow / name, 3000)
    with staged(path, staging) as slide:
        assert copied_files(slide) == {name: Path(path).read_bytes()}


def test_a_relative_path(slow: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(slow / "a.svs", 30)
    monkeypatch.chdir(slow)
    with staged("a.svs", staging) as slide:
        assert list(copied_files(slide)) == ["a.svs"]


def test_mrxs_takes_its_folder_along(slow: Path, staging: Staging) -> None:
    path = noise(slow / "case-1.mrxs", 50)
    noise(slow / "case-1" / "Slidedat.ini", 20, 1)
    noise(slow / "case-1" / "Data0000.dat", 5000, 2)
    noise(slow / "case-2" / "Data0000.dat", 5, 3)
    wanted = {k: v for k, v in files(slow).items() if not k.startswith("case-2")}
    with staged(path, staging) as slide:
        assert copied_files(slide) == wanted
        assert fingerprint(slide.path) == fingerprint(path)
    shutil.rmtree(slow / "case-1")
    with staged(path, staging) as slide:
        assert slide.path == path
        assert "the folder of its name" in slide.remark


def element(group: int, number: int, kind: bytes, content: bytes, length: int = -1) -> bytes:
    head = struct.pack("<2H", group, number) + kind
    size = len(content) if length < 0 else length
    long = kind in (b"SQ", b"OB")
    return head + (struct.pack("<HI", 0, size) if long else struct.pack("<H", size)) + content


def dicom(series: bytes, other: bytes = b"", *, open_ended: bool = False) -> bytes:
    """A header and the series' number, after a sequence that holds that of another series."""
    inner = element(0x20, 0xE, b"UI", other)
    item = struct.pack("<2HI", 0xFFFE, 0xE000, len(inner)) + inner
    if open_ended:
        item = struct.pack("<2HI", 0xFFFE, 0xE000, 2**32 - 1) + inner
        item += struct.pack("<2HI", 0xFFFE, 0xE00D, 0) + struct.pack("<2HI", 0xFFFE, 0xE0DD, 0)
    return (
        bytes(128)
        + b"DICM"
        + element(8, 0x1115, b"SQ", item, 2**32 - 1 if open_ended else -1)
        + element(0x10, 0x10, b"PN", b"NAME" * 5)
        + element(0x20, 0xE, b"UI", series)
        + element(0x7FE0, 0x10, b"OB", bytes(500), 2**32 - 1)
    )


@pytest.mark.parametrize("open_ended", [False, True])
def test_dicom_takes_its_series_along(slow: Path, staging: Staging, open_ended: bool) -> None:
    (slow / "1.dcm").write_bytes(dicom(b"1.2.3\0", b"1.2.4\0", open_ended=open_ended))
    (slow / "no-suffix").write_bytes(dicom(b"1.2.3\0", b"1.2.5\0", open_ended=not open_ended))
    (slow / "implicit.dcm").write_bytes(bytes(128) + b"DICM" + struct.pack("<2HI", 8, 5, 0) * 9)
    (slow / "other.dcm").write_bytes(dicom(b"1.2.4\0", b"1.2.3\0", open_ended=open_ended))
    noise(slow / "noise.dcm", 4000)
    (slow / "folder.dcm").mkdir()
    with staged(str(slow / "1.dcm"), staging) as slide:
        found = copied_files(slide)
        assert set(found) == {"1.dcm", "no-suffix", "implicit.dcm"}
        assert found["no-suffix"] == (slow / "no-suffix").read_bytes()
    # where its own series is not told, it may be any
    parts = {part.name for part in slide_parts(slow / "implicit.dcm")}
    assert parts == {"1.dcm", "no-suffix", "implicit.dcm", "other.dcm"}
    # and noise under such a name is one file
    assert [part.name for part in slide_parts(slow / "noise.dcm")] == ["noise.dcm"]


@given(st.binary(max_size=300))
def test_any_dicom_header_ends(tail: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.dcm")
        path.write_bytes(bytes(128) + b"DICM" + tail)
        assert slide_parts(path) == [("a.dcm", 132 + len(tail))]


VMS = (
    "[Virtual Microscope Specimen]\r\nNoLayers=1\r\nImageFile={}\r\nImageFile(1,0)= b 1.jpg\r\n"
    "MapFile=sub/map.jpg\r\nOptimisationFile=lost.opt\r\nMacroImage=\r\nSourceLens=20\r\n"
)


def test_vms_takes_the_files_it_names_along(slow: Path, staging: Staging) -> None:
    (slow / "a.vms").write_text(VMS.format("b 0.jpg"), newline="")
    for name in ("b 0.jpg", "b 1.jpg", "sub/map.jpg"):
        noise(slow / name, 700)
    wanted = files(slow)
    noise(slow / "20", 3)  # a value that is no file's name
    noise(slow / "c.jpg", 5)
    with staged(str(slow / "a.vms"), staging) as slide:
        assert copied_files(slide) == wanted


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "sub/../../x.jpg", "..\\x.jpg", ".."])
def test_vms_that_names_files_elsewhere_is_not_followed(
    slow: Path, staging: Staging, name: str
) -> None:
    noise(slow.parent / "x.jpg", 5)
    path = slow / "a.vmu"
    path.write_text(VMS.format(name).replace("[V", "[Uncompressed V"), newline="")
    with pytest.raises(UnsupportedSlide, match="out of its folder"):
        slide_parts(path)
    with staged(str(path), staging) as slide:
        assert slide.path == str(path)
        assert slide.remark.startswith("was read in place: names a file out of its folder: ")
        assert held_bytes(staging) == 0


def test_zarr_folders(slow: Path, staging: Staging) -> None:
    path = slow / "a.ome.zarr"
    for name in ("zarr.json", "0/zarr.json", "0/c/0/0", "0/c/0/1", ".hidden"):
        noise(path / name, 900, len(name))
    (path / "link").symlink_to(path / "0" / "zarr.json")
    (path / "broken").symlink_to("nowhere")
    for given_path in (str(path), f"{path}/"):
        with staged(given_path, staging) as slide:
            assert Path(slide.path).name == path.name
            assert files(Path(slide.path)) == files(path)
            assert fingerprint(slide.path) == fingerprint(path)
    (path / "round").symlink_to(path)
    with staged(str(path), staging) as slide:
        assert slide.path == str(path)
        assert "a.ome.zarr/round is a link to a folder" in slide.remark
    (slow / "empty.zarr").mkdir()
    with staged(str(slow / "empty.zarr"), staging) as slide:
        assert slide.remark == "was read in place: it is an empty folder"


def test_links(slow: Path, staging: Staging) -> None:
    noise(slow / "archive" / "0042.svs", 80)
    link = slow / "case-1.svs"
    link.symlink_to("archive/0042.svs")
    with staged(str(link), staging) as slide:
        assert copied_files(slide) == {"case-1.svs": (slow / "archive" / "0042.svs").read_bytes()}
        assert not Path(slide.path).is_symlink()
    circle = slow / "circle.svs"
    circle.symlink_to(circle)
    with staged(str(circle), staging) as slide:
        assert slide.path == str(circle)
        assert "symbolic links" in slide.remark


def test_urls_are_left_alone(staging: Staging) -> None:
    url = "s3://bucket/a.svs"
    with staged(url, staging) as slide:
        assert slide == StagedSlide(url, "")
    assert not staging.folder.exists()
    with ReadAhead([url], staging, 1) as ahead:
        assert ahead.slide(url) == StagedSlide(url, "")
        ahead.release(url)


@pytest.mark.parametrize("name", ["absent.svs", "pipe.svs", "nul\0.svs", "/", "."])
def test_what_cannot_be_copied_is_left_to_opening(slow: Path, staging: Staging, name: str) -> None:
    os.mkfifo(slow / "pipe.svs")
    path = name if name in "/." else str(slow / name)
    with staged(path, staging) as slide:
        assert slide.path == path
        assert slide.remark.startswith("was read in place: ")


def test_slides_larger_than_the_limit_and_the_disk(
    slow: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = noise(slow / "a.svs", 2000)
    with staged(path, Staging(staging.folder, 1999)) as slide:
        assert slide.path == path
        assert "are more than the" in slide.remark
    with staged(path, Staging(staging.folder, 2000)) as slide:
        assert slide.remark == ""
    for free, fits in ((2019, False), (2020, True)):  # 2 % of 1,000 bytes stay free
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _, free=free: SimpleNamespace(total=1000, free=free)
        )
        with staged(path, staging) as slide:
            assert (slide.remark == "") == fits
            assert fits or "do not fit on the disk" in slide.remark
    with pytest.raises(ValueError, match="at least 1 byte"):
        Staging(staging.folder, 0)


def test_a_disk_that_fills_up_in_the_middle(
    slow: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = noise(slow / "case.mrxs", 50)
    noise(slow / "case" / "Data0000.dat", 5000)
    monkeypatch.setattr(slide_copies, "PIECE", 1000)
    write, written = os.write, []

    def full(handle: int, content: memoryview) -> int:
        if sum(written) > 3000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(write(handle, content[:700]))  # short writes are gone on with
        return written[-1]

    monkeypatch.setattr(os, "write", full)
    with ReadAhead([path], staging, 1) as ahead:
        slide = ahead.slide(path)
        assert slide.path == path
        assert "No space left on device" in slide.remark
        assert held_bytes(staging) == 0
        assert sum(written) > 3000
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:700]))
    with staged(path, Staging(staging.folder, 5050)) as slide:  # what failed takes no room
        assert copied_files(slide) == files(slow)


@pytest.mark.parametrize("size", [0, 1500, 2500, 4000])
def test_a_source_that_changes_while_it_is_copied(
    slow: Path, staging: Staging, held_writing: HeldWriting, size: int
) -> None:
    path = noise(slow / "a.svs", 2500)
    begun, go_on, _ = held_writing
    with ReadAhead([path], staging, 1) as ahead:
        assert begun.wait(WAIT_S)
        noise(Path(path), size, 1)
        os.utime(path, ns=(1, 1))
        go_on.set()
        slide = ahead.slide(path)
        assert slide == StagedSlide(path, "was read in place: a.svs changed while it was copied")
        assert held_bytes(staging) == 0


@pytest.mark.parametrize("announced", [999, 1001])
def test_a_source_that_changed_after_it_was_listed(
    slow: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch, announced: int
) -> None:
    path = noise(slow / "a.svs", 1000)
    monkeypatch.setattr(slide_copies, "slide_parts", lambda _: [SlidePart("a.svs", announced)])
    with staged(path, staging) as slide:
        assert slide == StagedSlide(path, "was read in place: a.svs changed while it was copied")


def test_a_part_that_vanishes(slow: Path, staging: Staging, held_writing: HeldWriting) -> None:
    path = noise(slow / "case.mrxs", 50)
    part = noise(slow / "case" / "Data0000.dat", 50)
    begun, go_on, _ = held_writing
    with ReadAhead([path], staging, 1) as ahead:
        assert begun.wait(WAIT_S)
        os.unlink(part)
        go_on.set()
        assert "No such file" in ahead.slide(path).remark
        assert held_bytes(staging) == 0


def test_a_staging_folder_that_cannot_be_made(
    slow: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = noise(slow / "a.svs", 10)
    nowhere = Staging(Path(path, "local"))
    with pytest.raises(StoreError, match=r"cannot be copied into it(.|\n)*--stage"):
        staged(path, nowhere).__enter__()
    with pytest.raises(StoreError), ReadAhead([path], nowhere, 1):
        pass

    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with staged(path, staging) as slide:
        assert slide.path == path
        assert "No space left" in slide.remark


def test_copies_are_made_ahead_and_no_more_than_asked(slow: Path, staging: Staging) -> None:
    paths = [noise(slow / f"{i}.svs", 1000, i) for i in range(6)]
    with ReadAhead(paths, staging, 2) as ahead:
        until(lambda: held_bytes(staging) == 2000)
        first = ahead.slide(paths[0])
        until(lambda: held_bytes(staging) == 3000)  # the one in work, and two that wait
        assert ahead.slide(paths[0]) == first
        for i, path in enumerate(paths):
            slide = ahead.slide(path)
            assert copied_files(slide) == {f"{i}.svs": Path(path).read_bytes()}
            assert held_bytes(staging) <= 3000
            ahead.release(path)
            assert not Path(slide.path).exists()
        assert held_bytes(staging) == 0
    assert list(staging.folder.iterdir()) == []


@pytest.fixture
def begun_copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stems of slides whose copying began, in that order."""
    begun: list[str] = []
    copied = SlideCopies._copied

    def noted(copies: SlideCopies, path: str, *rest: Any) -> SlideCopy:
        begun.append(Path(path).stem)
        return copied(copies, path, *rest)

    monkeypatch.setattr(SlideCopies, "_copied", noted)
    return begun


def test_in_another_order_and_not_announced(
    slow: Path, staging: Staging, begun_copies: list[str]
) -> None:
    paths = [noise(slow / f"{i}.svs", 1000, i) for i in range(9)]
    with ReadAhead(paths[:8], staging, 2) as ahead:
        until(lambda: held_bytes(staging) == 2000)
        assert copied_files(ahead.slide(paths[4]))
        until(lambda: held_stems(staging) == {"4", "5", "6"})
        assert begun_copies == ["0", "1", "4", "5", "6"]
        for i in (2, 8, 0, 4, 5, 2):
            assert copied_files(ahead.slide(paths[i])) == {f"{i}.svs": Path(paths[i]).read_bytes()}
        until(lambda: len(begun_copies) == 9)
        assert sorted(begun_copies) == list("001245678")  # 5 had waited, 3 is nobody's
        ahead.release(paths[2])
        assert copied_files(ahead.slide(paths[2]))


def test_an_unforeseen_slide_comes_before_one_that_waits(
    slow: Path, staging: Staging, begun_copies: list[str]
) -> None:
    paths = [noise(slow / f"{i}.svs", 1000, i) for i in range(4)]
    with ReadAhead(paths[:3], Staging(staging.folder, 2500), 3) as ahead:
        ahead.slide(paths[0])
        until(lambda: held_bytes(staging) == 2000)  # 0 in work, 1 waits, 2 has no room
        assert copied_files(ahead.slide(paths[3]))
        assert held_stems(staging) == {"0", "3"}
        ahead.release(paths[3])
        until(lambda: held_stems(staging) == {"0", "1"})
        assert begun_copies == ["0", "1", "3", "1"]


def test_released_before_it_is_asked_for(
    slow: Path, staging: Staging, held_writing: HeldWriting
) -> None:
    begun, go_on, _ = held_writing
    paths = [noise(slow / f"{i}.svs", 2500, i) for i in range(4)]
    with ReadAhead(paths, staging, 3) as ahead:
        assert begun.wait(WAIT_S)
        ahead.release(paths[0])  # in the middle of its copy
        ahead.release(paths[2])
        ahead.release("never heard of")
        go_on.set()
        until(lambda: held_bytes(staging) == 5000)
        assert held_stems(staging) == {"1", "3"}
        assert copied_files(ahead.slide(paths[0]))
        assert copied_files(ahead.slide(paths[2]))


def test_the_limit_waits_and_never_dead_locks(slow: Path, staging: Staging) -> None:
    paths = [noise(slow / f"{i}.svs", 1000, i) for i in range(5)]
    staging = Staging(staging.folder, 2500)
    with ReadAhead(paths, staging, 4) as ahead:
        until(lambda: held_bytes(staging) == 2000)
        assert copied_files(ahead.slide(paths[3]))  # takes the place of one that waits
        assert held_bytes(staging) <= 2500
        assert copied_files(ahead.slide(paths[4]))
        slide = ahead.slide(paths[0])  # both are in work: nothing gives way
        assert slide.path == paths[0]
        assert "leave no room" in slide.remark
        with staged(paths[1], staging) as other:  # the limit is the process's
            assert "leave no room" in other.remark
        ahead.release(paths[3])
        assert copied_files(ahead.slide(paths[1]))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    limit=st.integers(1, 8000),
    ahead=st.integers(1, 3),
    steps=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=12),
)
def test_whatever_is_asked_for_arrives_within_the_limit(
    sizes: list[int], limit: int, ahead: int, steps: list[tuple[int, bool]]
) -> None:
    """Every slide is a true copy or the original with a reason; the limit holds at each write."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        staging = Staging(Path(name, "local"), limit)
        paths = [noise(Path(name, f"{i}.svs"), size, i) for i, size in enumerate(sizes)]
        write, most = slide_copies._write, [0]

        def watched(handle: int, content: memoryview) -> None:
            write(handle, content)
            most.append(held_bytes(staging))

        patch.setattr(slide_copies, "PIECE", 1000)
        patch.setattr(slide_copies, "_write", watched)
        with ReadAhead(paths, staging, ahead) as read_ahead:
            in_work: set[str] = set()
            for place_, ask in steps:
                path = paths[place_ % len(paths)]
                if not ask:
                    read_ahead.release(path)
                    in_work.discard(path)
                    continue
                slide, again = read_ahead.slide(path), path in in_work
                in_work.add(path)
                assert (slide.path == path) == bool(slide.remark)
                assert Path(slide.path).read_bytes() == Path(path).read_bytes()
                fits = sum(os.path.getsize(p) for p in in_work) <= limit
                assert again or not (slide.remark and fits)
        assert max(most) <= limit
        assert list(staging.folder.iterdir()) == []


def test_several_threads_ask_at_once(slow: Path, staging: Staging) -> None:
    paths = [noise(slow / f"{i}.svs", 1000, i) for i in range(12)]
    wrong: list[str] = []
    with ReadAhead(paths, Staging(staging.folder, 3000), 2) as ahead:

        def process(first: int) -> None:
            for path in (*paths[first::3], paths[0]):
                slide = ahead.slide(path)
                content = Path(path).read_bytes()
                # the first slide is everyone's: another may release it meanwhile
                if path != paths[0] and Path(slide.path).read_bytes() != content:
                    wrong.append(path)
                ahead.release(path)

        threads = [threading.Thread(target=process, args=(i,), daemon=True) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
    assert wrong == []


def test_the_end_in_the_middle_of_a_copy(
    slow: Path, staging: Staging, held_writing: HeldWriting
) -> None:
    begun, go_on, pieces = held_writing
    path = noise(slow / "a.svs", 1_000_000)
    seen: list[StagedSlide] = []
    with ReadAhead([path], staging, 1) as ahead:
        waiter = threading.Thread(target=lambda: seen.append(ahead.slide(path)), daemon=True)
        waiter.start()
        assert begun.wait(WAIT_S)
        threading.Timer(0.05, go_on.set).start()
    waiter.join(WAIT_S)
    assert pieces == [1000]
    assert [slide.path for slide in seen] == [path]
    assert "has ended" in seen[0].remark
    assert list(staging.folder.iterdir()) == []
    assert ahead.slide(path).path == path


def test_copies_go_after_an_error(slow: Path, staging: Staging) -> None:
    path = noise(slow / "a.svs", 10)
    for opened in (staged(path, staging), ReadAhead([path], staging, 1)):
        with pytest.raises(KeyboardInterrupt), opened:
            raise KeyboardInterrupt
        assert list(staging.folder.iterdir()) == []


def test_what_read_ahead_refuses(staging: Staging) -> None:
    with pytest.raises(ValueError, match="at least 1 slide"):
        ReadAhead([], staging, 0)
    with pytest.raises(RuntimeError, match="within the block"):
        ReadAhead(["a.svs"], staging, 1).slide("a.svs")


def test_a_bug_in_the_thread_is_not_waited_for(
    slow: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(slide_copies, "slide_parts", broken)
    with ReadAhead(["a.svs"], staging, 1) as ahead, pytest.raises(ZeroDivisionError):
        ahead.slide("a.svs")


def test_left_over_folders(slow: Path, staging: Staging) -> None:
    """Only what certainly was left by a process of this machine goes."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine, boot = own_marks(), psutil.boot_time()
    other_name = {**mine, "host": "elsewhere", "place": "0", "pid": 1}
    before_boot = {**mine, "place": "0" * 12}
    made = {
        "dead": ({**mine, "pid": ended.pid}, None, False),
        "number-taken-again": ({**mine, "started": 1.0}, None, False),
        "before-the-machine-started": (before_boot, boot - 100, False),
        f"{place()}.{ended.pid}-unwritten": (None, None, False),
        "alive": (mine, None, True),
        "container-of-our-name": (before_boot, boot + 1, True),
        "elsewhere": (other_name, boot - 100, True),
        f"{place()}.{os.getpid()}-beginning": (None, None, True),
        "strange": ([1], None, True),
        f"{'0' * 12}.{ended.pid}-unwritten": (None, None, True),
    }
    for name, (marks, written, _) in made.items():
        folder = staging.folder / f"coverslip-{name}"
        noise(folder / "x" / "a.svs", 100)
        if marks is not None:
            (folder / "owner.json").write_bytes(orjson.dumps(marks))
        if written is not None:
            os.utime(folder / "owner.json", (written, written))
    noise(staging.folder / "theirs" / "b.svs", 10)
    (staging.folder / "coverslip-link").symlink_to(slow)
    with staged(noise(slow / "a.svs", 10), staging) as slide:
        assert slide.remark == ""
    kept = {f"coverslip-{name}" for name, (_, _, stays) in made.items() if stays}
    assert {p.name for p in staging.folder.iterdir()} == kept | {"theirs", "coverslip-link"}
    assert (slow / "a.svs").exists()
    assert socket.gethostname() == mine["host"]


STAGE_AND_WAIT = """
import sys
from pathlib import Path
from coverslip.engine.staging import Staging, staged
with staged(sys.argv[1], Staging(Path(sys.argv[2]))) as slide:
    print(slide.path, flush=True)
    sys.stdin.read()
"""


def test_two_processes_and_one_that_is_killed(slow: Path, staging: Staging) -> None:
    path = noise(slow / "a.svs", 500)
    command = (sys.executable, "-c", STAGE_AND_WAIT, path, str(staging.folder))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with staged(path, staging) as slide:
            assert slide.path != str(theirs)
            assert theirs.read_bytes() == copied_files(slide)["a.svs"]
        assert theirs.exists()
        other.kill()
        other.wait()
    assert theirs.exists()
    with staged(path, staging):
        assert not theirs.exists()
    assert list(staging.folder.iterdir()) == []
