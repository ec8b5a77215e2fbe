"""How a run gets on: counts, rate and reasons from hand-written journals, and from real runs."""

from __future__ import annotations

import ast
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coverslip
from coverslip.cli import main
from coverslip.engine.config import RunConfig
from coverslip.engine.journal import Journal
from coverslip.engine.metrics import MetricsServer, exposition
from coverslip.engine.run import Run
from coverslip.engine.status import RunWatcher
from coverslip.errors import InvalidConfig, StoreError
from coverslip.tiling.lock import lock, lock_holder
from coverslip.tiling.store import SlideStore
from coverslip.worker_identity import own_marks

HOUR = 3600.0


def line(time: float, event: str, **facts: Any) -> bytes:
    return json.dumps({"time": time, "event": event, **facts}).encode() + b"\n"


def journal_in(folder: Path) -> Path:
    """A machine's journal, yet to be written."""
    (folder / "journal").mkdir(exist_ok=True)
    return folder / "journal" / "here.jsonl"


def begun(time: float, slide: str) -> bytes:
    return line(time, "slide", slide=slide, file=f"{slide}.svs")


def ended(time: float, slide: str, status: str = "done", **facts: Any) -> bytes:
    kept = {"tiles": 10, "nuclei": 100, "seconds": {"tissue": 1.0, "encoding": 5.0}}
    return line(time, "slide ended", slide=slide, file=f"{slide}.svs", status=status,
                **{**kept, **facts})  # fmt: skip


def unreadable(slide: str, column: int) -> str:
    return (
        f"{slide}.svs: native tile at level 0, column {column}, row 6 cannot be decoded: bad\n"
        "  --on-bad-tile blank goes on without it"
    )


NOW = 100 * HOUR
FIRST = (
    line(NOW - 2 * HOUR, "run", slides=8)
    + begun(NOW - 2 * HOUR, "old")
    + ended(NOW - 1.9 * HOUR, "old")  # before the window: no part of the rate
    + begun(NOW - 1800, "a")
    + ended(NOW - 1200, "a")
    + begun(NOW - 1200, "empty")
    + ended(NOW - 900, "empty", "no tissue", tiles=0, nuclei=None)
    + begun(NOW - 900, "b")
    + ended(NOW - 600, "b", "failed", tiles=0, nuclei=None, reason=unreadable("b", 4))
    + begun(NOW - 600, "crashed")
)
SECOND = (
    line(NOW - 2 * HOUR, "run", slides=8)
    + begun(NOW - 1500, "c")
    + ended(NOW - 700, "c", "failed", reason=unreadable("c", 17), nuclei=None, seconds={})
    + begun(NOW - 30, "opening")
)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two processes' journals: 8 slides in every state."""
    journal_in(tmp_path).write_bytes(FIRST)
    journal_in(tmp_path).with_name("node7.jsonl").write_bytes(SECOND)
    return tmp_path


def test_slides_are_counted_by_their_latest_word(output: Path) -> None:
    found = RunWatcher(output).status(NOW)
    assert (found.slides, found.done, found.no_tissue, found.failed) == (8, 2, 1, 2)
    assert [w.slide for w in found.running] == ["opening"]
    assert found.interrupted == ("crashed",)
    assert found.waiting == 8 - 7
    assert (found.tiles, found.nuclei) == (30, 200)
    assert found.seconds == {"encoding": 20.0, "tissue": 4.0}
    assert found.results == {"done": 2, "failed": 2, "no tissue": 1}
    assert found.updated == NOW - 30


def test_failures_are_grouped_whatever_their_numbers(output: Path) -> None:
    (group,) = RunWatcher(output).status(NOW).failures
    assert group.slides == ("b", "c")
    assert group.reason == ("native tile at level #, column #, row # cannot be decoded: bad")


def test_the_rate_is_that_of_the_recent_window(output: Path) -> None:
    found = RunWatcher(output).status(NOW)
    # four slides since "a" was begun half an hour ago; three are left
    assert found.per_hour == pytest.approx(4 / 0.5)
    assert found.seconds_left == pytest.approx(3 / 8 * HOUR)


def test_nothing_is_left_to_wait_for_where_nobody_works(tmp_path: Path) -> None:
    journal = line(0, "run", slides=2) + begun(0, "a") + ended(600, "a")
    journal_in(tmp_path).write_bytes(journal)
    found = RunWatcher(tmp_path).status(NOW)
    assert found.seconds_left is None
    assert found.per_hour == pytest.approx(6)  # as long as it ran


def test_what_was_complete_already_is_no_work(tmp_path: Path) -> None:
    journal = line(0, "run", slides=1) + begun(1, "a") + ended(2, "a", "unchanged")
    journal_in(tmp_path).write_bytes(journal)
    found = RunWatcher(tmp_path).status(3)
    assert (found.done, found.per_hour) == (1, None)


def test_a_slide_begun_again_is_no_longer_failed(output: Path) -> None:
    with open(journal_in(output), "ab") as journal:
        journal.write(begun(NOW - 5, "b"))
    found = RunWatcher(output).status(NOW)
    assert found.failed == 1
    assert "b" in [w.slide for w in found.running]


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, len(FIRST)), max_size=6).map(sorted))
def test_reading_on_gives_what_reading_anew_gives(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("growing")
    path = journal_in(folder)
    path.touch()
    watcher = RunWatcher(folder)
    for cut in [*cuts, len(FIRST)]:
        path.write_bytes(FIRST[:cut])
        found = watcher.status(NOW)
    assert found == RunWatcher(folder).status(NOW)


def test_a_journal_begun_anew_is_read_anew(output: Path) -> None:
    watcher = RunWatcher(output)
    watcher.status(NOW)
    journal_in(output).with_name("node7.jsonl").unlink()
    journal_in(output).write_bytes(line(NOW, "run", slides=3))
    found = watcher.status(NOW)
    assert (found.slides, found.done, found.waiting, found.results) == (3, 0, 3, {})


def test_lines_that_mean_nothing_are_passed_over(output: Path) -> None:
    before = RunWatcher(output).status(NOW)
    hostile = [
        b"[1, 2]", b'"text"', b'{"time": 1e400}', b'{"event": "slide ended"}', b"\xff\xfe",
        b'{"time": 1, "event": "run", "slides": "many"}',
        b'{"time": "noon", "event": "slide", "slide": 7}', b'{"time": 1, "ev',
    ]  # fmt: skip
    with open(journal_in(output), "ab") as journal:
        journal.write(b"\n".join(hostile) + b"\n")
    assert RunWatcher(output).status(NOW) == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(StoreError, match="no journal"):
        RunWatcher(tmp_path)
    assert main(["status", str(tmp_path)]) == 1
    assert "name the -o of a run" in capsys.readouterr().err


def test_the_library_logs_and_configures_nothing() -> None:
    package = Path(coverslip.__file__).parent
    for module in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            place = f"{module.relative_to(package)}:{node.lineno}"
            if name.startswith("logging."):
                assert ast.unparse(node) == "logging.getLogger(__name__)", place
            assert not name.endswith((".addHandler", ".basicConfig")), place
            if name == "print":
                assert module.parent.name == "cli", place


def test_a_slide_in_hand_tells_where_and_what(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with Journal(tmp_path) as journal, lock(path):
        journal.write("run", slides=1)
        journal.write("slide", slide="a", file="a.svs")
        store = SlideStore.create(path, {"name": "a", "size": [9, 9]})
        stage = store.stage("quality/64px_0.5mpp", {})
        stage.create_array("focus", (3,), "float32", rows_per_block=2)
        stage.write_block(0, {"focus": np.zeros(2, np.float32)})
        (working,) = RunWatcher(tmp_path).status().running
    assert (working.slide, working.host, working.pid) == ("a", socket.gethostname(), os.getpid())
    assert working.stages == {"quality/64px_0.5mpp": 1}
    assert working.since is not None
    found = RunWatcher(tmp_path).status()  # the lock is free again
    assert found.stale_locks == ()


def test_locks_of_the_dead_are_stale(output: Path) -> None:
    silent, gone = output / "a.lock", output / "crashed.lock"
    silent.write_text('{"host": "elsewhere", "pid": 1, "token": "x"}')
    os.utime(silent, (1, 1))
    gone.write_text(json.dumps({**own_marks(), "pid": 2**22 + 1}))
    found = RunWatcher(output).status(NOW)
    assert found.stale_locks == ("a", "crashed")
    assert found.interrupted == ("crashed",)
    assert lock_holder(output / "none.lock") is None
    (output / "torn.lock").write_bytes(b'{"host": "el')
    holder = lock_holder(output / "torn.lock")
    assert holder is not None
    assert (holder.host, holder.pid, holder.dead) == ("", 0, False)
    os.utime(output / "torn.lock", (1, 1))
    assert lock_holder(output / "torn.lock").dead  # type: ignore[union-attr]


def test_prometheus_reads_what_is_told(output: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    text = exposition(RunWatcher(output).status(NOW))
    read = {family.name: family for family in parser.text_string_to_metric_families(text)}
    slides = {s.labels["state"]: s.value for s in read["coverslip_slides"].samples}
    assert slides == {
        "done": 2, "no tissue": 1, "failed": 2, "running": 1, "interrupted": 1, "waiting": 1
    }  # fmt: skip
    assert read["coverslip_slides"].type == "gauge"
    seconds = read["coverslip_stage_seconds"]
    assert seconds.type == "counter"
    assert {s.labels["stage"]: s.value for s in seconds.samples} == {"encoding": 20, "tissue": 4}
    (rate,) = read["coverslip_slides_per_hour"].samples
    assert rate.value == pytest.approx(8)
    for slide in ("old", "crashed", "opening"):
        assert f"{slide}." not in text  # slides may be called after patients
        assert f'"{slide}"' not in text


def test_odd_stage_names_stay_readable(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    odd = 'slide "x"\\y\nz'
    journal_in(tmp_path).write_bytes(ended(1, "a", seconds={odd: 2.5}))
    text = exposition(RunWatcher(tmp_path).status(2))
    read = {family.name: family for family in parser.text_string_to_metric_families(text)}
    (sample,) = read["coverslip_stage_seconds"].samples
    assert (sample.labels["stage"], sample.value) == (odd, 2.5)
    assert read["coverslip_left_seconds"].samples == []  # unknown


@pytest.fixture
def server(output: Path) -> Iterator[MetricsServer]:
    with MetricsServer(RunWatcher(output), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_metrics_are_served(server: MetricsServer, output: Path) -> None:
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert b'coverslip_slides{state="failed"} 2.0' in answer.read()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.url + "/../journal/a.jsonl", timeout=10)
    assert refused.value.code == 404
    refused.value.close()
    port = int(server.url.rsplit(":", 1)[1].partition("/")[0])
    with pytest.raises(InvalidConfig, match="--serve"):
        MetricsServer(RunWatcher(output), "127.0.0.1", port)


def test_the_command_tells_of_a_real_run(tmp_path: Path, small_slide: Path, capsys: Any) -> None:
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"II*\0" + bytes(100))
    output = tmp_path / "out"
    Run.over([small_slide, broken], output, RunConfig(encoder=(), quality=False)).execute()
    assert main(["status", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 slides done, 1 failed" in shown
    assert "broken" in shown
    assert main(["status", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["slides"], told["done"], told["failed"]) == (2, 1, 1)
    assert told["tiles"] > 50
    assert told["seconds"]["tissue"] > 0
