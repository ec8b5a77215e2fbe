"""Slides shared among processes, machines and shards: done once each, and the same comes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from faulty_runs import results
from hypothesis import given, settings
from hypothesis import strategies as st
from pyramids import write_pyramid

from coverslip.cli import main
from coverslip.engine.config import RunConfig
from coverslip.engine.dask_workers import _Distribution, _slurm
from coverslip.engine.journal import Journal, journals, read_journals
from coverslip.engine.process import process_or_explain
from coverslip.engine.result import SlideResult, result_of_event
from coverslip.engine.run import Run
from coverslip.engine.scheduling import Scheduling
from coverslip.engine.slide_queue import SlideQueue
from coverslip.engine.staging import Staging
from coverslip.tiling.lock import lock

OPTIONS = ("--encoder", "none", "--threads", "1", "--export", "geojson")
CONFIG = RunConfig(encoder=(), threads=1, export=("geojson",))
COUNT = 6


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small slides with a disc of tissue each."""
    folder = tmp_path_factory.mktemp("slides")
    y, x = np.mgrid[:512, :512]
    for number in range(COUNT):
        image = np.full((512, 512, 3), 236, np.uint8)
        draw = np.random.default_rng(number)
        disc = (x - 250) ** 2 + (y - 240 - 5 * number) ** 2 < 200**2
        image[disc] = np.array([180, 100, 150]) + draw.integers(-20, 20, (disc.sum(), 3))
        write_pyramid(folder / f"slide-{number}.tif", image, levels=2, mpp=0.5)
    return folder


@pytest.fixture(scope="module")
def alone(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the slides."""
    output = tmp_path_factory.mktemp("alone")
    Run.over([slides], output, CONFIG).execute()
    found = results(output)
    assert len([name for name in found if name.endswith(".geojson.gz")]) >= COUNT
    return found


def unheard(slide: str, stage: str, done: int, total: int) -> None:
    """An observer."""


def rows(output: Path) -> Counter[tuple[str, str]]:
    """How often each slide ended how, as the journals tell."""
    events = [e for e in read_journals(output) if e["event"] == "slide ended"]
    return Counter((event["slide"], event["status"]) for event in events)


def once_each(output: Path) -> bool:
    done = {slide: n for (slide, status), n in rows(output).items() if status == "done"}
    return done == {f"slide-{number}": 1 for number in range(COUNT)}


def reported(output: Path) -> list[str]:
    lines = (output / "report.csv").read_text().splitlines()[1:]
    return [line.partition(",")[0] for line in lines]


@contextmanager
def begun(
    *arguments: str, code: str = "", within: tuple[str, ...] = (), **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """`coverslip ...` in a process of its own; code runs before; within another command."""
    program = f"{code}\nimport sys\nfrom coverslip.cli import main\nsys.exit(main({arguments!r}))"
    # a main module that workers, too, can begin with
    program = f"if __name__ == '__main__':\n{_indented(program)}"
    process = subprocess.Popen(
        [*within, sys.executable, "-W", "ignore", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, said = process.communicate(timeout=120)
    assert process.returncode == code, out + said
    return said


def holder(output: Path, deadline_s: float = 60) -> int:
    """The process that has a slide in hand, as soon as there is one."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        for path in output.glob("*.lock"):
            try:
                return int(orjson.loads(path.read_bytes())["pid"])
            except (FileNotFoundError, orjson.JSONDecodeError):
                continue
        time.sleep(0.002)
    raise AssertionError("nobody took a slide in hand")


class TestSeveralRuns:
    def test_they_share_the_slides(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        line = ("run", str(slides), "-o", str(tmp_path), *OPTIONS)
        with begun(*line) as one, begun(*line) as two:
            ended(one)
            ended(two)
        assert results(tmp_path) == alone
        assert once_each(tmp_path)
        assert reported(tmp_path) == [f"slide-{number}" for number in range(COUNT)]

    def test_a_killed_one_s_slide_is_taken_over(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        """It dies while the other waits for the last slide."""
        dies = (
            "import os, signal, time, pathlib\n"
            "import coverslip.engine.process as process\n"
            "def dies(*arguments):\n"
            f"    while not pathlib.Path({str(tmp_path / 'waiting')!r}).exists():\n"
            "        time.sleep(0.01)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "process.write_exports = dies"
        )
        line = ("run", str(slides), "-o", str(tmp_path), *OPTIONS)
        with begun(*line, code=dies) as doomed:
            assert holder(tmp_path) == doomed.pid
            said: list[str] = []

            def let_die(result: SlideResult) -> None:
                said.append(result.slide)
                if len(said) == COUNT - 1:  # all but the one that it has in hand
                    (tmp_path / "waiting").touch()

            Run.over([slides], tmp_path, CONFIG).execute(on_result=let_die)
            doomed.communicate(timeout=60)
            assert doomed.returncode == -signal.SIGKILL
        assert len(said) == COUNT
        assert results(tmp_path) == alone

    def test_where_processes_cannot_see_one_another(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        """Each in a container's space of processes, as on a machine of its own; one is killed."""
        apart = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
        if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no right to a space of processes of its own")
        line = ("run", str(slides), "-o", str(tmp_path), *OPTIONS)
        quick = "import coverslip.tiling.lock\ncoverslip.tiling.lock.SILENT_S = 1.5"
        with begun(*line, within=apart) as doomed, begun(*line, code=quick, within=apart) as other:
            assert holder(tmp_path) == 1  # a number that means nothing elsewhere
            doomed.kill()
            ended(other)
        assert results(tmp_path) == alone
        assert reported(tmp_path) == [f"slide-{number}" for number in range(COUNT)]
        assert len(journals(tmp_path)) == 2

    def test_what_another_run_did_is_not_looked_at_again(
        self, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("coverslip.engine.slide_queue.LOOK_S", 0.0)
        Run.over([slides], tmp_path, CONFIG).execute()
        given = [(str(slides / f"slide-{n}.tif"), f"slide-{n}") for n in range(3)]
        told: list[SlideResult] = []
        queue = SlideQueue(given, tmp_path, CONFIG.digest, told.append, unheard)
        done = next(e for e in read_journals(tmp_path) if e["event"] == "slide ended")
        with Journal(tmp_path) as journal:  # as another run writes meanwhile
            for slide, changes in (
                ("slide-0", {}),
                ("slide-1", {"settings": RunConfig().digest}),
                ("slide-2", {"status": "failed"}),
            ):
                event = {**done, "slide": slide, "file": f"{slide}.tif", **changes}
                journal.write("slide ended", **{k: v for k, v in event.items()
                                                if k not in ("time", "event")})  # fmt: skip
        assert queue.next() == given[1]  # settings of another run
        assert [result.slide for result in told] == ["slide-0"]
        assert queue.next() == given[2]  # failed there; it may go better here
        assert queue.next() is None
        assert not queue.over

    def test_another_file_of_that_name_is_not_taken_for_done(
        self, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("coverslip.engine.slide_queue.LOOK_S", 0.0)
        other = (str(slides / "slide-1.tif"), "slide-0")
        queue = SlideQueue([other], tmp_path, CONFIG.digest, lambda _: None, unheard)
        Run(((str(slides / "slide-0.tif"), "slide-0"),), tmp_path, CONFIG).execute()
        assert queue.next() == other

    def test_a_slide_in_hand_is_put_off(self, slides: Path, tmp_path: Path) -> None:
        run = Run.over([slides / "slide-0.tif"], tmp_path, CONFIG)
        with Journal(tmp_path) as journal:
            context = run.context(journal, "cpu", observer=lambda *_: None)
            with lock(tmp_path / "slide-0.zarr"):
                assert process_or_explain(*run.slides[0], context, debug=True) is None
        assert [e["event"] for e in read_journals(tmp_path)] == ["slide", "slide put off"]

    def test_it_waits_until_a_slide_is_free(self, slides: Path, tmp_path: Path) -> None:
        held, free = threading.Event(), threading.Event()

        def hold() -> None:
            with lock(tmp_path / "slide-0.zarr"):
                held.set()
                free.wait(30)

        holding = threading.Thread(target=hold)
        holding.start()
        held.wait(30)
        order: list[str] = []
        waited: set[tuple[str, str]] = set()

        def observe(slide: str, stage: str, done: int, total: int) -> None:
            waited.add((slide, stage))

        def finished(result: SlideResult) -> None:
            order.append(result.slide)
            if len(order) == COUNT - 1:
                threading.Timer(2.5, free.set).start()  # after it has been looked at again

        found = Run.over([slides], tmp_path, CONFIG).execute(on_result=finished, observer=observe)
        holding.join()
        assert ("slide-0", "another process has it in hand") in waited
        assert order[-1] == "slide-0"
        assert [result.slide for result in found] == [f"slide-{n}" for n in range(COUNT)]
        assert {result.status for result in found} == {"done"}


class TestShards:
    @settings(max_examples=40, deadline=None)
    @given(names=st.sets(st.text(min_size=1, max_size=12), max_size=30), parts=st.integers(1, 9))
    def test_every_slide_is_in_one(self, names: set[str], parts: int) -> None:
        slides = [(f"{name}.svs", name) for name in sorted(names)]
        shards = [Scheduling(shard=(i + 1, parts)).own(slides) for i in range(parts)]
        assert sorted(slide for shard in shards for slide in shard) == slides
        fewer = slides[: len(slides) // 2]
        for i, shard in enumerate(shards):  # a folder that grows moves none
            assert set(Scheduling(shard=(i + 1, parts)).own(fewer)) <= set(shard)

    def test_they_are_about_equal(self) -> None:
        slides = [(f"case-{number}.svs", f"case-{number}") for number in range(10_000)]
        sizes = [len(Scheduling(shard=(i + 1, 20)).own(slides)) for i in range(20)]
        assert max(sizes) < 1.15 * 500
        assert min(sizes) > 0.85 * 500

    def test_together_they_make_what_one_makes(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        """The last one's report is of all slides."""
        seen = []
        for number in (1, 2, 3):
            shard = f"{number}/3"
            assert main(["run", str(slides), "-o", str(tmp_path), *OPTIONS, "--shard", shard]) == 0
            seen.append(reported(tmp_path))
        assert results(tmp_path) == alone
        assert once_each(tmp_path)
        assert len(seen[0]) < COUNT
        assert seen[2] == [f"slide-{number}" for number in range(COUNT)]

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--shard", "0/3"], "counts from 1"),
            (["--shard", "4/3"], "counts from 1"),
            (["--shard", "1-3"], "such as 3/20"),
            (["--workers", "2"], "goes with --scheduler dask"),
            (["--scheduler", "celery"], "dask or an address"),
            (["--scheduler", "tcp://a:1", "--workers", "2"], "goes with --scheduler dask"),
            (["--scheduler", "dask", "--slurm", "time=1:00:00"], "leave --scheduler out"),
            (["--slurm", "Time 1"], "sbatch's options by their long names"),
            (["--slurm", "time=soon"], "such as 8:00:00"),
            (["--stage-limit", "5"], "goes with --stage"),
            (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers"),
        ],
    )
    def test_flags_that_mean_nothing(
        self,
        flags: list[str],
        says: str,
        slides: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("coverslip.engine.dask_workers.CONNECT_S", 0.5)
        assert main(["run", str(slides), "-o", str(tmp_path), *OPTIONS, *flags]) == 2
        assert says in capsys.readouterr().err


class TestDask:
    def test_a_killed_worker_costs_nothing(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        line = ("run", str(slides), "-o", str(tmp_path), *OPTIONS)
        with begun(*line, "--scheduler", "dask", "--workers", "2") as run:
            os.kill(holder(tmp_path), signal.SIGKILL)
            ended(run)
        assert results(tmp_path) == alone
        assert reported(tmp_path) == [f"slide-{number}" for number in range(COUNT)]
        assert {status for _, status in rows(tmp_path)} <= {"done", "unchanged"}

    def test_a_slide_that_kills_its_workers_is_a_row(self, slides: Path, tmp_path: Path) -> None:
        """And a bad one is a row as anywhere."""
        given = tmp_path / "given"
        given.mkdir()
        for number in (1, 2, 3):
            os.link(slides / f"slide-{number}.tif", given / f"slide-{number}.tif")
        (given / "bad.tif").write_bytes(b"II*\0nonsense")
        watch = threading.Thread(target=_kill_whoever_holds, args=(tmp_path / "out/slide-1.lock",))
        watch.start()
        line = ("run", str(given), "-o", str(tmp_path / "out"), *OPTIONS, "--json")
        with begun(*line, "--scheduler", "dask", "--workers", "1") as run:
            out, said = run.communicate(timeout=120)
        watch.join()
        found = {row["slide"]: row for row in map(json.loads, out.splitlines())}
        assert run.returncode == 1, said
        assert found["bad"]["status"] == "failed"
        assert found["slide-1"]["reason"].startswith("slide-1.tif: worker after worker died")
        assert found["slide-2"]["status"] == found["slide-3"]["status"] == "done"
        assert main(["run", str(given), "-o", str(tmp_path / "out"), *OPTIONS, "--json"]) == 1

    def test_a_cluster_that_exists(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        """A worker with two threads copies the next slide while one is processed."""
        with _cluster(tmp_path) as address:
            line = ("run", str(slides), "-o", str(tmp_path / "out"), *OPTIONS)
            with begun(*line, "--scheduler", address, "--stage", str(tmp_path / "ssd")) as run:
                ended(run)
        assert results(tmp_path / "out") == alone
        assert list((tmp_path / "ssd").iterdir()) == []

    def test_gpus_are_asked_for_as_resources(self) -> None:
        submitted: list[dict[str, Any]] = []

        class Client:
            def scheduler_info(self, n_workers: int) -> dict[str, Any]:
                worker = {"nthreads": 1, "host": "node1", "resources": {"GPU": 1}}
                return {"workers": {"a": worker, "b": dict(worker)}}

            def submit(self, *task: object, **options: Any) -> object:
                submitted.append({"task": task, **options})
                return object()

        run = Run((), Path("out"), RunConfig())

        def told(*progress: object) -> None:
            raise AssertionError(progress)  # there are workers

        for gpus in (True, False):
            distribution = _Distribution(Client(), run, None, "topic", gpus, told)  # type: ignore[arg-type]
            assert distribution.room()
            for number in range(4):  # each has one in hand and one to go on with
                distribution.hand_out((f"{number}.svs", str(number)))
            assert not distribution.room()
        assert [one["resources"] for one in submitted] == [{"GPU": 1}] * 4 + [None] * 4
        assert submitted[0]["task"][-1] == 2  # that share a machine


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """A scheduler and a worker of two threads, as somebody else would have started them."""
    place = folder / "scheduler.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    base = [sys.executable, "-m"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    scheduler = [*base, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    worker = [*base, "distributed.cli.dask_worker", "--nthreads", "2", "--no-dashboard"]
    processes = []
    try:
        for command in (
            [*scheduler, "--no-dashboard", "--scheduler-file", str(place)],
            [*worker, "--scheduler-file", str(place), "--local-directory", str(folder / "dask")],
        ):
            processes.append(subprocess.Popen(command, **quiet))  # type: ignore[call-overload]
            until = time.monotonic() + 60
            while not place.exists() and time.monotonic() < until:
                time.sleep(0.02)
        yield json.loads(place.read_text())["address"]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


def _kill_whoever_holds(path: Path, times: int = 4) -> None:
    """Each that takes the slide in hand, until so many are dead."""
    dead: set[int] = set()
    until = time.monotonic() + 50
    while len(dead) < times and time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError, orjson.JSONDecodeError, ProcessLookupError):
            pid = int(orjson.loads(path.read_bytes())["pid"])
            if pid not in dead:
                os.kill(pid, signal.SIGKILL)
                dead.add(pid)
        time.sleep(0.001)


class TestSlurm:
    def test_the_job_is_what_was_asked_for(self, tmp_path: Path) -> None:
        text = "partition=gpu,time=2-12:00:00,mem=32G,cpus-per-task=8,gpus=1,constraint=a100,,h100"
        cluster, gpus = _slurm(Run((), tmp_path, CONFIG), Scheduling.of(slurm=text, workers=3))
        try:
            script = cluster.job_script()
        finally:
            cluster.close()
        for directive in (
            "-p gpu", "-t 2-12:00:00", "--mem=32G", "--cpus-per-task=8", "--gpus=1",
            "--constraint=a100,h100",
        ):  # fmt: skip
            assert f"#SBATCH {directive}" in script
        assert gpus
        assert "--resources GPU=1" in script
        assert "--nthreads 1" in script

    def test_jobs_do_the_slides(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        """Slurm's commands are played: a job is a process on this machine."""
        played = {
            "sbatch": f'for job; do :; done\ncp "$job" {tmp_path}/job.sh\n'
            f"setsid bash {tmp_path}/job.sh >{tmp_path}/job 2>&1 </dev/null &\n"
            'echo "Submitted batch job $!"',
            "scancel": 'kill -TERM -- "-$1"',
        }
        commands = tmp_path / "bin"
        commands.mkdir()
        for name, script in played.items():
            (commands / name).write_text(f"#!/bin/bash\n{script}\n")
            (commands / name).chmod(0o755)
        path = f"{commands}{os.pathsep}{os.environ['PATH']}"
        line = ("run", str(slides), "-o", str(tmp_path / "out"), *OPTIONS)
        with begun(*line, "--slurm", "time=1:00:00,mem=2G", PATH=path) as run:
            ended(run)
        assert results(tmp_path / "out") == alone


class TestStaging:
    def test_copies_make_the_same(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        line = ["run", str(slides), "-o", str(tmp_path / "out"), *OPTIONS]
        assert main([*line, "--stage", str(tmp_path / "ssd")]) == 0
        assert results(tmp_path / "out") == alone
        assert list((tmp_path / "ssd").iterdir()) == []

    def test_several_processes_are_handed_copies(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        run = Run.over([slides], tmp_path / "out", dataclasses.replace(CONFIG, device="cpu,cpu"))
        found = run.execute(scheduling=Scheduling(staging=Staging(tmp_path / "ssd")))
        assert {result.status for result in found} == {"done"}
        assert not any(result.flags for result in found)
        assert results(tmp_path / "out") == alone

    def test_what_does_not_fit_is_read_in_place_and_said(
        self, slides: Path, tmp_path: Path, alone: Mapping[str, bytes]
    ) -> None:
        staging = Staging(tmp_path / "ssd", limit=1000)
        found = Run.over([slides], tmp_path / "out", CONFIG).execute(
            scheduling=Scheduling(staging=staging)
        )
        assert all("was read in place" in " ".join(result.flags) for result in found)
        assert results(tmp_path / "out") == alone

    def test_a_broken_copy_is_told_of_by_the_slide_s_name(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        broken = tmp_path / "given" / "broken.svs"
        broken.parent.mkdir()
        broken.write_bytes(b"II*\0nonsense")
        line = ["run", str(broken), "-o", str(tmp_path / "out"), *OPTIONS, "--json"]
        assert main([*line, "--stage", str(tmp_path / "ssd")]) == 1
        reason = json.loads(capsys.readouterr().out)["reason"]
        assert str(broken) in reason
        assert "ssd" not in reason


class TestRowsFromJournals:
    ROW = SlideResult(
        "a", "a.svs", size=(9, 8), mpp=(0.5, 0.25), tiles=3, nuclei=None, seconds={"tissue": 1.5},
        flags=["odd"], stain={"method": "macenko"}, files=["geojson/a.geojson.gz"],
    )  # fmt: skip

    def test_a_row_comes_back_as_it_was(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            journal.write("slide ended", **dataclasses.asdict(self.ROW))
        (event,) = read_journals(tmp_path)
        assert result_of_event(event) == self.ROW

    @pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(SlideResult)])
    @pytest.mark.parametrize("value", [{"a": [1]}, [{}], 10**400, "<b>", True, object()])
    def test_what_no_run_writes_is_no_row(self, name: str, value: object) -> None:
        event = orjson.loads(orjson.dumps(dataclasses.asdict(self.ROW)))
        found = result_of_event({**event, name: value})
        assert (
            found is None
            or type(getattr(found, name)) is type(getattr(self.ROW, name))
            or (name in ("nuclei", "tiles", "bad_tiles", "tissue_mm2") and isinstance(value, int))
        )


@pytest.mark.parametrize("imported", ["", "import torch"])
def test_torch_takes_its_share_whenever_it_is_imported(imported: str) -> None:
    code = (
        f"from coverslip.engine.sharing import limit_torch\n{imported}\n"
        "limit_torch(1)\nimport torch\nprint(torch.get_num_threads())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert said.stdout.strip() == "1"


def test_tiles_and_watershed_wait_for_no_torch(slides: Path, tmp_path: Path) -> None:
    """Its import takes longer than many a slide."""
    line = ["run", str(slides / "slide-0.tif"), "-o", str(tmp_path), *OPTIONS]
    code = (
        "import sys\nfrom coverslip.cli import main\n"
        f"assert main({[*line, '--nuclei', 'watershed']!r}) == 0\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
