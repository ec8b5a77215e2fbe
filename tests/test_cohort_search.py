"""Searching an output folder: made-up stores for the rules, two real tiny slides end to end."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coverslip.cli import main
from coverslip.cohort.search import (
    Answer,
    ImageQuestion,
    RegionQuestion,
    SearchSettings,
    SlideQuestion,
    TileQuestion,
    neighbourhood,
    search,
    slide_mosaics,
)
from coverslip.cohort.search_index import open_cohort_index
from coverslip.cohort.search_pictures import SlidePictures
from coverslip.cohort.search_report import write_answer
from coverslip.engine.config import RunConfig
from coverslip.engine.run import Run
from coverslip.errors import (
    InvalidConfig,
    RecipeMismatch,
    StoreBusy,
    StoreError,
    UnknownName,
)
from coverslip.kernels.stain_profile import reference_profile
from coverslip.tiling.grid import TileGrid, all_boxes
from coverslip.tiling.lock import lock
from coverslip.tiling.store import SlideStore
from coverslip.wsi.slide import Box

GRID = "256px_0.5mpp"
SIDE = 512  # of a tile in level-0 px, at 0.25 µm/px
DIM = 8


def write_store(
    output: Path,
    slide: str,
    features: np.ndarray,
    *,
    weights: str = "weights",
    encoder: str = "ours",
    stain: dict[str, Any] | None = None,
) -> SlideStore:
    """A store of one row of tiles at 0.25 µm/px with these features [N, DIM]."""
    count = len(features)
    size = (SIDE * count, SIDE)
    facts = {
        "name": slide,
        "size": size,
        "mpp": [0.25, 0.25],
        "bounds": [0, 0, *size],
        "fingerprint": slide,
        "colour": "as stored",
        "reader": "tests",
    }
    store = SlideStore.open_or_create(output / f"{slide}.zarr", facts)
    boxes = all_boxes(size, (0.25, 0.25), 256, 256, 0.5)
    grid = TileGrid(size, (0.25, 0.25), 256, 256, 0.5, 0.0, boxes, np.ones(count, np.float32))
    assert grid.name == GRID
    if not store.is_current(f"tiles/{GRID}", {"grid": grid.parameters()}):
        with store.stage(f"tiles/{GRID}", {"grid": grid.parameters()}) as stage:
            grid.write(stage)
    parameters = {"recipe": {"name": encoder}, "weights_sha256": weights, "stain": stain}
    name = f"features/{encoder}@{GRID}"
    with store.stage(
        name, {**parameters, "of": features.tobytes().hex()}, needs=[f"tiles/{GRID}"]
    ) as s:
        s.create_array("features", features.shape, "float32", rows_per_block=512)
        s.write_block(0, {"features": features.astype(np.float32)})
        s.finish({"dim": DIM})
    return store


def around(axis: int, count: int = 6, seed: int = 0) -> np.ndarray:
    """float32 [count, DIM] near one axis."""
    noise = np.random.default_rng([seed, axis]).normal(0, 0.1, (count, DIM))
    return (np.eye(DIM)[axis] + noise).astype(np.float32)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Three slides of six tiles: a and b look alike, c does not."""
    folder = tmp_path / "out"
    write_store(folder, "a", around(0))
    write_store(folder, "b", around(0, seed=1))
    write_store(folder, "c", around(3))
    return folder


def messages(output: Path, **settings: Any) -> list[str]:
    """What is said to be built for a question."""
    said: list[str] = []
    search(output, TileQuestion("a", 0, 0), SearchSettings(**settings), on_build=said.append)
    return said


# ---------------------------------------------------------------- the index


def test_the_index_is_built_once_and_says_why(output: Path) -> None:
    (said,) = messages(output)
    assert (
        said == f"building the flat index of 18 tiles of 3 slides (ours@{GRID}): there is none yet"
    )
    folder = output / "search" / f"ours@{GRID}"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert messages(output) == []
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_index_follows_the_features(output: Path) -> None:
    messages(output)
    write_store(output, "d", around(5))
    (said,) = messages(output)
    assert said.endswith(
        "24 tiles of 4 slides (ours@256px_0.5mpp): slides came, went or changed: d"
    )
    write_store(output, "c", around(4))
    (said,) = messages(output)
    assert said.endswith("changed: c")
    shutil.rmtree(output / "d.zarr")
    (said,) = messages(output)
    assert said.endswith("changed: d")
    assert messages(output, index="flat") == []
    (said,) = messages(output, index="ivf")
    assert said.startswith("building the ivf index")
    assert messages(output) == []  # what is there is kept where nothing else is asked for


def test_an_index_of_another_schema_is_made_anew(output: Path) -> None:
    messages(output)
    (output / "search" / f"ours@{GRID}" / "index.json").write_bytes(b'{"schema": 0}')
    (said,) = messages(output)
    assert "cannot be used (its index has schema 0, this engine knows 1)" in said


def test_one_process_builds(output: Path) -> None:
    with (
        lock(output / "search" / f"ours@{GRID}"),
        pytest.raises(StoreBusy, match="another process is building this index"),
    ):
        messages(output)


def test_slides_of_another_recipe_are_refused_by_name(output: Path) -> None:
    write_store(output, "stranger", around(0), weights="other weights")
    (output / "broken.zarr").mkdir()
    write_store(output, "bare", around(0), encoder="theirs")
    answer = search(output, TileQuestion("a", 0, 0), SearchSettings(encoder="ours", top=50))
    assert {hit.slide for hit in answer.tiles} == {"a", "b", "c"}
    assert list(answer.cohort.left_out) == ["bare", "broken", "stranger"]
    (stranger,) = [note for note in answer.notes if "stranger" in note]
    assert stranger == (
        "not searched: stranger: its features were made otherwise than those of most slides "
        "(another weights sha256)"
    )
    with pytest.raises(StoreError, match=r"stranger\.zarr: is not in the index: its features were"):
        search(output, TileQuestion("stranger", 0, 0), SearchSettings(encoder="ours"))


def test_slides_recoloured_to_another_target_are_refused(output: Path) -> None:
    target = reference_profile().to_dict()
    stain = {"source": {**target, "pixels": 5}, "target": target}
    write_store(output, "d", around(0), stain=stain)
    cohort = open_cohort_index(output)
    assert cohort.left_out["d"].endswith("(another stain)")
    for slide in "abc":  # now most are stained alike, each from its own source
        write_store(output, slide, around(0), stain={**stain, "source": target})
    cohort = open_cohort_index(output)
    assert not cohort.left_out
    assert cohort.index.record.made_by.stain.startswith("macenko to ")


def test_which_features_are_meant(output: Path, tmp_path: Path) -> None:
    for slide in "abc":
        write_store(output, slide, around(0), encoder="theirs")
    with pytest.raises(InvalidConfig, match=r"ours@.*, theirs@.*; name one with --encoder"):
        open_cohort_index(output)
    assert open_cohort_index(output, encoder="theirs").name == f"theirs@{GRID}"
    with pytest.raises(InvalidConfig, match="no features of nobody; there are ours@"):
        open_cohort_index(output, encoder="nobody")
    with pytest.raises(InvalidConfig, match="no stores here"):
        open_cohort_index(tmp_path / "nothing")
    SlideStore.create(tmp_path / "empty" / "x.zarr", {"name": "x"})
    with pytest.raises(InvalidConfig, match="no complete features"):
        open_cohort_index(tmp_path / "empty")


def test_features_that_are_not_finite_name_their_store(output: Path) -> None:
    features = around(0)
    features[3, 2] = np.inf
    write_store(output, "d", features)
    with pytest.raises(StoreError, match=r"d\.zarr: features/ours@.* not finite"):
        open_cohort_index(output)
    assert not (output / "search" / f"ours@{GRID}").exists()


# ---------------------------------------------------------------- questions


def test_a_tile_finds_its_like_elsewhere(output: Path) -> None:
    answer = search(output, TileQuestion("a", SIDE * 2 + 5, 100), SearchSettings(top=50))
    assert answer.box == Box(SIDE * 2, 0, SIDE, SIDE)
    assert ("a", SIDE * 2) not in {(hit.slide, hit.x) for hit in answer.tiles}  # not itself
    assert len(answer.tiles) == 17
    assert {hit.slide for hit in answer.tiles[:11]} == {"a", "b"}
    assert {hit.slide for hit in answer.tiles[11:]} == {"c"}
    cosines = [hit.similarity for hit in answer.tiles]
    assert cosines == sorted(cosines, reverse=True)
    assert [hit.rank for hit in answer.tiles] == list(range(1, 18))


def test_own_slide_and_neighbourhood_are_left_out_on_request(output: Path) -> None:
    def own(**settings: Any) -> list[int]:
        question = TileQuestion("a", SIDE * 2, 0)
        hits = search(output, question, SearchSettings(top=50, **settings)).tiles
        return sorted(hit.x // SIDE for hit in hits if hit.slide == "a")

    assert own() == [0, 1, 3, 4, 5]
    assert own(exclude_within_um=1) == [0, 4, 5]  # its neighbours touch it
    assert own(exclude_within_um=128) == [0, 4, 5]  # the next begin at exactly 128 µm
    assert own(exclude_within_um=129) == [5]
    assert own(exclude_own_slide=True) == []


def test_neighbourhood_is_measured_side_to_side() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 10, 10], [20, 20, 10, 10], [5, 5, 10, 10]], np.int32)
    grid = TileGrid((99, 99), (0.5, 2.0), 10, 10, 1.0, 0.0, boxes, np.ones(4, np.float32))
    # µm from the first: 5 across; 5 across and 20 down; the last overlaps it
    box = Box(0, 0, 10, 10)
    assert neighbourhood(grid, box, 0).tolist() == [0, 3]
    assert neighbourhood(grid, box, 5.1).tolist() == [0, 1, 3]
    assert neighbourhood(grid, box, 20.6).tolist() == [0, 1, 3]
    assert neighbourhood(grid, box, 20.7).tolist() == [0, 1, 2, 3]


def test_a_region_is_the_mean_of_its_tiles(output: Path, tmp_path: Path) -> None:
    box = Box(SIDE - 100, 0, SIDE * 3, SIDE)  # the centres of tiles 1, 2 and 3
    answer = search(output, RegionQuestion("a", box), SearchSettings(top=50))
    assert answer.averaged == 3
    features = around(0)[1:4]
    mean = (features / np.linalg.norm(features, axis=1, keepdims=True)).mean(axis=0)
    first = answer.tiles[0]
    store = SlideStore.open(output / f"{first.slide}.zarr").group(f"features/ours@{GRID}")
    vector = store["features"][first.x // SIDE]
    cosine = mean @ vector / np.linalg.norm(mean) / np.linalg.norm(vector)
    assert first.similarity == pytest.approx(cosine, abs=1e-6)
    # the tiles 0 and 4 overlap the box without being part of it: they are left out, too
    assert {hit.x // SIDE for hit in answer.tiles if hit.slide == "a"} == {4, 5}
    corners = [[box.x, 0], [box.right, 0], [box.right, SIDE], [box.x, SIDE], [box.x, 0]]
    drawn = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {"objectType": "annotation"},
    }
    path = tmp_path / "drawn.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [drawn]}))
    by_polygon = search(output, RegionQuestion("a", path), SearchSettings(top=50))
    assert by_polygon.tiles == answer.tiles


def test_what_is_not_there_is_said(output: Path) -> None:
    with pytest.raises(UnknownName, match="no slide named 'aa'"):
        search(output, TileQuestion("aa", 0, 0))
    with pytest.raises(StoreError, match=r"holds \(0, 9999\)\n  the nearest begins at \(0, 0\)"):
        search(output, TileQuestion("a", 0, 9999))
    with pytest.raises(StoreError, match=r"no tile of 256px_0\.5mpp has its centre in 9 x 9 px"):
        search(output, RegionQuestion("a", Box(0, 0, 9, 9)))


def test_slides_are_ranked_by_their_mosaics(output: Path) -> None:
    for metric in ("euclidean", "cosine", "hamming"):
        answer = search(output, SlideQuestion("a", metric=metric))  # type: ignore[arg-type]
        assert answer.slides[0].slide == "b"
        assert {hit.slide for hit in answer.slides} == {"b", "c"}
        near, far = (hit.distance for hit in answer.slides)
        assert 0 < near < far


def test_mosaics_are_kept_until_the_index_changes(output: Path) -> None:
    cohort = open_cohort_index(output)
    path = output / "search" / f"ours@{GRID}" / "mosaic-embedding.npz"
    with SlidePictures(cohort, ()) as pictures:
        first = slide_mosaics(cohort, "embedding", pictures)
        written = path.stat().st_mtime_ns
        again = slide_mosaics(cohort, "embedding", pictures)
        assert path.stat().st_mtime_ns == written
        for slide in "abc":
            np.testing.assert_array_equal(first[slide], again[slide])
            assert set(first[slide].tolist()) <= set(cohort.rows(slide))
        with pytest.raises(InvalidConfig, match=r"no picture of a.*\n.*--mosaic embedding"):
            slide_mosaics(cohort, "colour", pictures)
    stale = path.read_bytes()
    write_store(output, "c", around(6))
    cohort = open_cohort_index(output)
    path.write_bytes(stale)  # as if written for the old index just after it was replaced
    with SlidePictures(cohort, ()) as pictures:
        slide_mosaics(cohort, "embedding", pictures)
    assert path.read_bytes() != stale


# ---------------------------------------------------------------- what is written


def test_json_and_csv_hold_the_same(output: Path, tmp_path: Path) -> None:
    answer = search(output, TileQuestion("a", 0, 0), SearchSettings(top=4))
    for name in ("found.json", "found.csv"):
        write_answer(tmp_path / name, answer)
    found = json.loads((tmp_path / "found.json").read_bytes())
    assert found["question"] == {"kind": "tile", "slide": "a", "x": 0, "y": 0}
    assert found["index"]["tiles"] == 18
    with open(tmp_path / "found.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide"] for row in rows] == [hit["slide"] for hit in found["results"]]
    assert [float(row["similarity"]) for row in rows] == pytest.approx(
        [hit["similarity"] for hit in found["results"]]
    )
    with pytest.raises(InvalidConfig, match=r"\.html, \.csv or \.json"):
        write_answer(tmp_path / "found.txt", answer)


def test_the_page_escapes_what_a_slide_is_called(tmp_path: Path) -> None:
    output = tmp_path / "out"
    hostile = '"><img src=x onerror=alert(1)>'
    write_store(output, hostile, around(0))
    write_store(output, "plain", around(0, seed=1))
    for question in (TileQuestion(hostile, 0, 0), SlideQuestion("plain")):
        write_answer(tmp_path / "page.html", search(output, question))
        page = (tmp_path / "page.html").read_text()
        assert "<img src=x" not in page
        assert "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;" in page
        assert "default-src 'none'" in page
        assert "no picture" in page
        assert "its slide is not" in page  # why, among the notes


def test_a_page_of_nothing(tmp_path: Path) -> None:
    write_store(tmp_path / "out", "a", around(0))
    question = TileQuestion("a", 0, 0)
    answer = search(tmp_path / "out", question, SearchSettings(exclude_own_slide=True))
    assert answer.tiles == ()
    write_answer(tmp_path / "page.html", answer)
    assert "all tiles were left out" in (tmp_path / "page.html").read_text()
    write_answer(tmp_path / "page.html", search(tmp_path / "out", SlideQuestion("a")))
    assert "there is no other slide" in (tmp_path / "page.html").read_text()


# ---------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def embedded(
    tmp_path_factory: pytest.TempPathFactory, small_slide: Path, jpeg_slide: Path
) -> tuple[Path, Path]:
    """An output folder with features of two real tiny slides, and the folder of the slides."""
    slides = tmp_path_factory.mktemp("scans")
    shutil.copy(small_slide, slides / "whole.svs")
    shutil.copy(jpeg_slide, slides / "renamed.tif")
    output = tmp_path_factory.mktemp("embedded")
    config = RunConfig(tile=128, mpp=1.0, quality=False, threads=1)
    inputs = [slides / "whole.svs", slides / "renamed.tif"]
    results = Run.over(inputs, output, config).execute(debug=True)
    assert [result.status for result in results] == ["done", "done"]
    (slides / "renamed.tif").rename(slides / "another name.tif")
    return output, slides


def test_a_tile_end_to_end(
    embedded: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, slides = embedded
    grid = TileGrid.from_store(SlideStore.open(output / "renamed.zarr").group("tiles/128px_1mpp"))
    x, y = grid.boxes[0, :2].tolist()
    page = tmp_path / "page.html"
    line = ["search", str(output), "--tile", f"renamed:{x + 3},{y + 3}", "--exclude-own-slide"]
    assert main([*line, "--top", "3", "--slides", str(slides), "-o", str(page)]) == 0
    said = capsys.readouterr()
    assert "whole" in said.out
    assert "renamed" not in said.out
    text = page.read_text()
    # the query, three hits, and the maps of two slides; found by fingerprint under another name
    assert text.count("data:image/jpeg;base64,") == 4 + 2
    assert "Notes" not in text
    assert main([*line, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.err == ""  # the index was there
    assert {hit["slide"] for hit in found["results"]} == {"whole"}


def test_an_image_finds_the_tile_it_was_cut_from(
    embedded: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from coverslip.tiling.reading import read_region
    from coverslip.wsi.opening import open_slide

    output, slides = embedded
    grid = TileGrid.from_store(SlideStore.open(output / "whole.zarr").group("tiles/128px_1mpp"))
    x, y, w, h = grid.boxes[len(grid) // 2].tolist()
    with open_slide(slides / "whole.svs") as slide:
        pixels = read_region(slide, Box(x, y, w, h), slide.mpp[0])
    path = tmp_path / "cut.png"
    Image.fromarray(pixels).save(path)
    line = ["search", str(output), "--image", str(path), "--device", "cpu", "--json"]
    assert main([*line, "--mpp", "0.499"]) == 0
    said = capsys.readouterr()
    first = json.loads(said.out)["results"][0]
    assert (first["slide"], first["x"], first["y"]) == ("whole", x, y)
    # not 1: the slide is halved in the DCT domain, its cut-out by averaging
    assert first["similarity"] > 0.9
    assert main(line) == 2
    assert "does not say how large its pixels are; give --mpp" in capsys.readouterr().err
    assert main([*line, "--mpp", "0.499", "--weights", "random"]) == 1
    refused = capsys.readouterr().err
    assert "its weights sha256 is random-0" in refused


def test_small_and_large_images(embedded: tuple[Path, Path], tmp_path: Path) -> None:
    output, slides = embedded
    with Image.open(slides / "another name.tif") as image:
        pixels = image.convert("RGB")

    def asked(size: tuple[int, int], mpp: float) -> Answer:
        pixels.crop((300, 300, 300 + size[0], 300 + size[1])).save(tmp_path / "cut.png")
        question = ImageQuestion(str(tmp_path / "cut.png"), mpp, device="cpu")
        return search(output, question, SearchSettings(top=1))

    small = asked((100, 90), 1.0)
    assert small.averaged == 1
    assert small.picture is not None
    assert small.picture.shape == (128, 128, 3)
    assert any("continued by mirroring" in note for note in small.notes)
    large = asked((600, 300), 1.0)
    assert large.averaged == 8
    assert large.picture is not None
    assert large.picture.shape == (256, 512, 3)
    assert not large.notes
    assert any("enlarged 2.00 times" in note for note in asked((64, 64), 2.0).notes)
    with pytest.raises(InvalidConfig, match="half a tile is the least, 64 px"):
        asked((63, 500), 1.0)
    with pytest.raises(InvalidConfig, match="more than 1024 tiles"):
        asked((1000, 800), 10.0)


def test_slides_end_to_end(
    embedded: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, slides = embedded
    line = ["search", str(output), "--slide", "whole", "--slides", str(slides)]
    page = tmp_path / "page.html"
    assert main([*line, "--mosaic", "colour", "--metric", "hamming", "-o", str(page)]) == 0
    assert "renamed" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert "by colour" in text


def test_another_encoder_is_refused(embedded: tuple[Path, Path], tmp_path: Path) -> None:
    output, _ = embedded
    Image.new("RGB", (128, 128), "pink").save(tmp_path / "pink.png")
    question = ImageQuestion(str(tmp_path / "pink.png"), 1.0, weights="random", device="cpu")
    with pytest.raises(RecipeMismatch, match=r"the encoder of .*pink\.png"):
        search(output, question)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "exactly one of"),
        (["--tile", "a:0,0", "--slide", "a"], "exactly one of"),
        (["--tile", "a:0"], "--tile wants SLIDE:X,Y"),
        (["--tile", "a:0,nan"], "--tile wants SLIDE:X,Y"),
        (["--tile", ":0,0"], "--tile wants SLIDE:X,Y"),
        (["--region", "a:0,0,5"], "--region wants SLIDE:X,Y,W,H"),
        (["--region", "a:0,0,0,5"], "--region wants SLIDE:X,Y,W,H"),
        (["--tile", "a:0,0", "--mpp", "0.5"], "--mpp goes with --image"),
        (["--slide", "a", "--exclude-own-slide"], "goes with --tile or --region"),
        (["--tile", "a:0,0", "--metric", "cosine"], "--metric goes with --slide"),
        (["--tile", "a:0,0", "--slides", "x"], "--slides goes with a page"),
    ],
)
def test_lines_that_mean_nothing(
    output: Path, line: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(output), *line]) == 2
    assert said in capsys.readouterr().err


def test_trouble_is_one_line(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(output), "--tile", "z:0,0"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    built, trouble = said.err.splitlines()
    assert built.startswith("building the flat index")
    assert trouble.startswith("coverslip: no slide named 'z'")
