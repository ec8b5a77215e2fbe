"""What a person does in the viewer: annotate, click, search, ask by text, run a stage, start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient
from viewer_stores import CHANGE, add_grid, new_store, viewing

from coverslip.cli import main
from coverslip.cli.view import _similar
from coverslip.encoders.registry import encoder_spec
from coverslip.engine.config import RunConfig
from coverslip.engine.run import Run
from coverslip.errors import InvalidConfig, RecipeMismatch
from coverslip.export.geojson import read_geojson
from coverslip.tiling.store import SlideStore
from coverslip.viewer import text_layers
from coverslip.viewer.annotations import Annotations, Changed
from coverslip.viewer.jobs import Jobs, Stages, job_config, last_config, stages_from
from coverslip.viewer.safety import Access
from coverslip.viewer.serving import address, listening
from coverslip.viewer.text_layers import TextTowers
from coverslip.viewer.viewer import SimilarTile
from coverslip.wsi.slide import Box

SLIDE = "/api/slides/jpeg"


def polygon(x: float, y: float, side: float = 50, **properties: Any) -> dict[str, Any]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {
        "type": "Feature",
        "id": "0f6d8a52-6f0b-4c43-9d4c-2f2f0c1f0001",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", **properties},
    }


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def client(output: Path, jpeg_slide: Path) -> Iterator[TestClient]:
    with viewing([jpeg_slide], output) as found:
        yield found


# ---------------------------------------------------------------- annotations


def put(client: TestClient, content: Any, tag: str) -> Any:
    headers = {**CHANGE, "if-match": tag}
    return client.put(f"{SLIDE}/annotations", json=content, headers=headers)


def test_annotations_go_to_qupaths_file_and_come_back(client: TestClient, output: Path) -> None:
    empty = client.get(f"{SLIDE}/annotations")
    assert empty.json()["features"] == []
    name = '<b onload="x">é, "quoted" & \\slashed'
    drawn = polygon(
        10.25, 20, name=name, classification={"name": "Tumor", "color": [200, 0, 0]}, isLocked=True
    )
    answer = put(client, collection(drawn), empty.headers["etag"])
    assert (answer.status_code, answer.json()) == (200, {"count": 1})
    (read,) = read_geojson(output / "annotations" / "jpeg.geojson")
    assert (read.kind, read.name, read.class_name) == ("annotation", name, "Tumor")
    assert read.geometry.bounds == (10.25, 20, 60.25, 70)
    again = client.get(f"{SLIDE}/annotations")
    assert again.headers["etag"] == answer.headers["etag"] != empty.headers["etag"]
    assert again.headers["content-type"] == "application/geo+json"
    (feature,) = again.json()["features"]
    assert feature["id"] == drawn["id"]
    assert feature["properties"]["name"] == name
    assert feature["properties"]["isLocked"] is True
    assert "<b onload" not in again.text or again.headers["x-content-type-options"] == "nosniff"
    kept = client.get(f"{SLIDE}/annotations", headers={"if-none-match": again.headers["etag"]})
    assert kept.status_code == 304
    assert client.get(SLIDE).json()["annotations"] == 1


def test_nobodys_annotations_are_overwritten_unseen(client: TestClient) -> None:
    tag = client.get(f"{SLIDE}/annotations").headers["etag"]
    first = put(client, collection(polygon(0, 0)), tag)
    second = put(client, collection(polygon(5, 5)), tag)
    assert second.status_code == 412
    assert second.headers["etag"] == first.headers["etag"]
    found = client.get(f"{SLIDE}/annotations").json()["features"][0]
    assert found["geometry"]["coordinates"][0][0] == [0, 0]
    headers = {**CHANGE, "content-type": "application/json"}
    answer = client.put(f"{SLIDE}/annotations", content=b"{}", headers=headers)
    assert answer.status_code == 428


@pytest.mark.parametrize(
    "content",
    [
        {"type": "Feature"},
        "text",
        collection({"type": "Feature", "geometry": {"type": "Blob", "coordinates": [1]}}),
        collection({"type": "Feature", "geometry": {"type": "Point", "coordinates": ["1", 2]}}),
        collection(polygon(0, 0, side=0)),
    ],
)
def test_what_is_no_geojson_changes_nothing(client: TestClient, output: Path, content: Any) -> None:
    tag = put(client, collection(polygon(0, 0)), '"none"').headers["etag"]
    answer = put(client, content, tag)
    assert answer.status_code == 400
    assert "/" not in answer.json()["error"]
    assert client.get(f"{SLIDE}/annotations").headers["etag"] == tag
    assert [p.name for p in (output / "annotations").iterdir()] == ["jpeg.geojson"]


def test_files_count_from_the_corner_of_the_bounds_and_the_page_does_not(tmp_path: Path) -> None:
    kept, bounds = Annotations(tmp_path), Box(1000, 2000, 5000, 5000)
    content = json.dumps(collection(polygon(1500, 2500))).encode()
    count, version = kept.write("a", content, bounds, "none")
    assert (count, kept.count("a", bounds)) == (1, 1)
    (raw,) = read_geojson(tmp_path / "a.geojson")
    assert raw.geometry.bounds == (500, 500, 550, 550)
    text, same = kept.read("a", bounds)
    assert same == version
    assert json.loads(text)["features"][0]["geometry"]["coordinates"][0][0] == [1500, 2500]
    with pytest.raises(Changed):
        kept.write("a", content, bounds, "none")


def test_without_a_folder_nothing_can_be_kept(jpeg_slide: Path) -> None:
    with viewing([jpeg_slide]) as client:
        assert client.get("/api/slides").json()["output"] is False
        for answer in (
            client.get(f"{SLIDE}/annotations"),
            put(client, collection(), '"none"'),
            client.post(f"{SLIDE}/run", json={"stages": {"quality": True}}, headers=CHANGE),
            client.post(f"{SLIDE}/similar", json={"box": [0, 0, 1, 1]}, headers=CHANGE),
        ):
            assert answer.status_code == 409
            assert "-o" in answer.json()["error"]


# ---------------------------------------------------------------- clicks and searches


def test_a_click_is_the_engines_answer(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import shapely

    from coverslip.engine.clicks import ClickedObject

    asked: list[Any] = []

    def segment(slide: Any, points: Any, *, squiggle: bool, exclude: Any) -> list[Any]:
        asked.append((slide.name, points, squiggle, exclude))
        return [ClickedObject(shapely.box(1, 2, 3, 4.126), 0.5, 12.5, True), None]

    monkeypatch.setattr("coverslip.viewer.action_routes.segment_click", segment)
    content = {"points": [[10, 20.5], [30, 40]], "exclude": [[1, 1]]}
    found = client.post(f"{SLIDE}/click", json=content, headers=CHANGE).json()["objects"]
    assert asked == [("jpeg", [(10, 20.5), (30, 40)], False, [(1, 1)])]
    assert found[1] is None
    assert found[0]["area_um2"] == 12.5
    assert sorted(found[0]["polygon"]) == [[1, 2], [1, 4.13], [3, 2], [3, 4.13]]


def test_a_click_off_the_slide(client: TestClient) -> None:
    answer = client.post(f"{SLIDE}/click", json={"points": [[-5, 10]]}, headers=CHANGE)
    assert answer.status_code == 400
    assert "off the slide" in answer.json()["error"]
    many = {"points": [[1, 1]] * 65}
    assert client.post(f"{SLIDE}/click", json=many, headers=CHANGE).status_code == 400


def test_similar_tiles_are_the_callers_answer(output: Path, jpeg_slide: Path) -> None:
    asked: list[Any] = []

    def find(*question: Any) -> Any:
        asked.append(question)
        return [SimilarTile("other", 1, 2, 3, 4, 0.75)], ["not searched: c: no features"]

    with viewing([jpeg_slide], output, similar=find) as client:
        content = {"box": [10.5, 20, 100.2, 50], "encoder": "uni", "count": 7}
        found = client.post(f"{SLIDE}/similar", json=content, headers=CHANGE).json()
        assert asked == [("jpeg", Box(10, 20, 101, 50), "uni", 7)]
        assert found["tiles"] == [
            {"slide": "other", "x": 1, "y": 2, "w": 3, "h": 4, "similarity": 0.75}
        ]
        assert found["remarks"] == ["not searched: c: no features"]
        for nonsense in ({}, {"box": [0, 0, 0, 5]}, {"box": [0, 0, 5]}, {"box": [0, 0, 5, 5],
                         "count": 0}, {"box": [0, 0, 5, 5], "count": True},
                         {"box": [0, 0, 5, 5], "encoder": "x.json"}):  # fmt: skip
            answer = client.post(f"{SLIDE}/similar", json=nonsense, headers=CHANGE)
            assert answer.status_code == 400, nonsense


def test_the_command_lines_search_answers(output: Path, jpeg_slide: Path) -> None:
    store = new_store(output, jpeg_slide)
    grid = add_grid(store)
    features = np.random.default_rng(0).normal(size=(len(grid), 8)).astype(np.float32)
    parameters = {"recipe": {"name": "ours"}, "weights_sha256": "w", "stain": None}
    needs = [f"tiles/{grid.name}"]
    with store.stage(f"features/ours@{grid.name}", parameters, needs=needs) as stage:
        stage.create_array("features", features.shape, "float32", rows_per_block=512)
        stage.write_block(0, {"features": features})
        stage.finish({"dim": 8})
    tiles, _ = _similar(output)("jpeg", Box(0, 0, 128, 128), "", 3)
    assert len(tiles) == 3
    own = features[0] / np.linalg.norm(features[0])
    best = (features @ own / np.linalg.norm(features, axis=1))[1:].max()
    assert tiles[0].similarity == pytest.approx(best, abs=1e-4)


# ---------------------------------------------------------------- texts


def test_a_text_is_a_heat_map(
    output: Path, jpeg_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = encoder_spec("plip")
    store = new_store(output, jpeg_slide)
    grid = add_grid(store)
    features = np.random.default_rng(0).normal(size=(len(grid), 4)).astype(np.float32)
    made = {"recipe": spec.recipe(), "weights_sha256": "same", "stain": None}
    name = f"features/plip@{grid.name}"
    with store.stage(name, made, needs=[f"tiles/{grid.name}"]) as stage:
        stage.create_array("features", features.shape, "float32", rows_per_block=512)
        stage.write_block(0, {"features": features})
        stage.finish({"dim": 4})
    texts: list[str] = []

    def encode(asked: list[str]) -> np.ndarray:
        texts.extend(asked)
        return np.tile(np.array([[3, 0, 0, 0]], np.float32), (len(asked), 1))

    tower = SimpleNamespace(name="plip", spec=spec, weights_sha256="same", encode=encode)
    monkeypatch.setattr(text_layers, "load_text_encoder", lambda name, weights: tower)
    with viewing([jpeg_slide], output) as client:
        assert client.get("/api/slides").json()["text"] == ["plip"]
        content = {"encoder": "plip", "text": "  a   gland "}
        found = client.post(f"{SLIDE}/prompt", json=content, headers=CHANGE).json()
        assert "a photomicrograph showing a gland." in texts
        heat = {each["layer"]: each for each in client.get(SLIDE).json()["heat"]}
        assert heat[found["layer"]]["kind"] == "prompt"
        assert heat[found["layer"]]["column"] == "a gland"
        tile = client.get(f"{SLIDE}/heat/{found['layer']}/9/0_0.png")
        assert tile.status_code == 200
        cells = client.app.state.viewer.text_layer("jpeg", found["layer"])  # type: ignore[attr-defined]
        wanted = features[:, 0] / np.linalg.norm(features, axis=1)
        assert cells.cells.ravel() == pytest.approx(wanted, abs=1e-5)
        for nonsense, status in (
            ({"encoder": "plip"}, 400), ({"encoder": "plip", "text": " "}, 400),
            ({"encoder": "plip", "text": "x" * 501}, 400), ({"encoder": "uni", "text": "x"}, 400),
            ({"encoder": "conch", "text": "x"}, 409),
        ):  # fmt: skip
            answer = client.post(f"{SLIDE}/prompt", json=nonsense, headers=CHANGE)
            assert answer.status_code == status, nonsense
    tower.weights_sha256 = "other"
    with pytest.raises(RecipeMismatch):
        TextTowers(None).cells(SlideStore.open(output / "jpeg.zarr"), "plip", "gland")


# ---------------------------------------------------------------- jobs


def ended(client: TestClient, job: str) -> list[dict[str, Any]]:
    """What the page is told of a job, until it is over."""
    told = []
    with client.stream("GET", f"/api/jobs/{job}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        told = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
    return told


def test_a_stage_is_run_and_watched(output: Path, jpeg_slide: Path) -> None:
    config = RunConfig(encoder=(), tile=64, min_tissue=0.4, quality=False)
    Run.over([jpeg_slide], output, config).execute()
    report = (output / "report.html").read_bytes()
    before = SlideStore.open(output / "jpeg.zarr").record("tiles/64px_0.5mpp").hash
    with viewing([jpeg_slide], output) as client:
        asked = {"stages": {"quality": True}}
        answer = client.post(f"{SLIDE}/run", json=asked, headers=CHANGE)
        assert answer.status_code == 202
        told = ended(client, answer.json()["job"])
        assert told[-1]["state"] == "done"
        assert client.get(f"/api/jobs/{answer.json()['job']}").json() == told[-1]
        assert client.get("/api/jobs/nothing").status_code == 404
    store = SlideStore.open(output / "jpeg.zarr")
    assert "quality/64px_0.5mpp" in store.stages()
    assert store.record("tiles/64px_0.5mpp").hash == before
    assert (output / "report.html").read_bytes() == report
    # the next job begins from the run's settings, too, not from this job's
    assert last_config(output, "jpeg") == config


def test_a_job_can_be_stopped(
    output: Path, jpeg_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(path: str, slide_id: str, context: Any, debug: bool) -> None:
        while True:
            context.observer(slide_id, "tiles", 3, 10)
            time.sleep(0.01)

    monkeypatch.setattr("coverslip.viewer.jobs.process_or_explain", endless)
    with viewing([jpeg_slide], output) as client:
        ask = {"stages": {"quality": True}}
        job = client.post(f"{SLIDE}/run", json=ask, headers=CHANGE).json()["job"]
        later = client.post(f"{SLIDE}/run", json=ask, headers=CHANGE).json()["job"]
        while client.get(f"/api/jobs/{job}").json()["done"] != 3:
            time.sleep(0.01)
        for each in (later, job):
            headers = {**CHANGE, "content-type": "application/json"}
            assert client.delete(f"/api/jobs/{each}", headers=headers).status_code == 202
            told = ended(client, each)[-1]
            assert told["state"] in ("cancelled",)


def test_a_failed_job_says_why(tmp_path: Path, output: Path, spoiled: Path) -> None:
    with viewing([spoiled], output) as client:
        ask = {"stages": {"quality": True}}
        job = client.post("/api/slides/spoiled/run", json=ask, headers=CHANGE).json()["job"]
        told = ended(client, job)[-1]
    assert told["state"] == "failed"
    assert "cannot be decoded" in told["message"]


@pytest.mark.parametrize(
    "stages",
    [None, {}, [], {"region": "/etc/passwd"}, {"weights": "x"}, {"trust_remote_code": True},
     {"nuclei": "/x/y.safetensors"}, {"nuclei": "head.safetensors"}, {"encoder": ["../x.json"]},
     {"nuclei": 3}, {"encoder": [3]}, {"stain": "sepia"}, {"export": ["exe"]}, {"batch": -1},
     {"output": "/x"}, {"stain_target": "s.zarr"}, {"slide_encoder": "max"}, {"device": "x" * 300}],
)  # fmt: skip
def test_what_cannot_be_asked_of_a_run(tmp_path: Path, stages: Any) -> None:
    with pytest.raises(InvalidConfig):
        Jobs(tmp_path).start("x", "x", stages_from(stages))


def test_a_job_keeps_what_decides_the_grid() -> None:
    base = RunConfig(
        mpp=0.25, tile=512, region="r.geojson", stain="macenko", encoder=("uni",), weights="w.pt",
        nuclei="default", pixels="jpeg", image="carried", export=("h5",),
    )  # fmt: skip
    config = job_config(base, Stages(nuclei="watershed"))
    assert (config.mpp, config.tile, config.region, config.stain) == (
        0.25, 512, "r.geojson", "macenko",
    )  # fmt: skip
    assert (config.encoder, config.nuclei, config.export, config.quality) == (
        (), "watershed", (), False,
    )  # fmt: skip
    assert (config.pixels, config.image, config.weights) == ("none", "none", "")
    assert job_config(base, Stages(encoder=("uni",))).weights == "w.pt"


# ---------------------------------------------------------------- the command


def test_the_command_serves_until_it_is_stopped(small_slide: Path) -> None:
    command = [sys.executable, "-m", "coverslip", "view", str(small_slide), "--port", "0",
               "--no-browser"]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        printed = process.stdout.readline() + process.stdout.readline()
        (url,) = re.findall(rb"http://127.0.0.1:\d+/", printed)
        found = httpx2.get(f"{url.decode()}api/slides", timeout=30)
        assert found.json()["slides"][0]["id"] == "CMU-1-Small-Region"
        assert "server" not in found.headers
        place = ("127.0.0.1", urlsplit(url.decode()).port or 0)
        with socket.create_connection(place, 20) as endless, suppress(ConnectionError):
            endless.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ")
            for _ in range(100):
                endless.sendall(b"x" * 4096)
                time.sleep(0.001)
            assert endless.recv(100) == b""  # closed, or reset
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(20) in (0, -signal.SIGINT, 130)
    assert b"Traceback" not in rest


def test_addresses() -> None:
    token = "a-token-of-some-length"
    assert address(Access(), 8080) == "http://127.0.0.1:8080/"
    assert address(Access("::1"), 1) == "http://[::1]:1/"
    everywhere = address(Access("0.0.0.0", token), 80)
    assert everywhere.endswith(f":80/?token={token}")
    assert "0.0.0.0" not in everywhere
    with listening(Access(), 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidConfig, match="--port"):
            listening(Access(), port)


def test_command_lines_that_mean_nothing(
    tmp_path: Path, small_slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ([str(tmp_path / "empty*.svs")], "matches nothing"),
        ([str(small_slide), "-o", str(tmp_path / "file")], "no folder"),
        ([str(small_slide), "--host", "0.0.0.0", "--token", "short"], "16 characters"),
    ):
        assert main(["view", *arguments]) == 2
        assert said in capsys.readouterr().err
