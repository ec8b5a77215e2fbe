"""Studies from end to end on made-up stores: what is learned, written, predicted and refused."""

from __future__ import annotations

import csv
import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from PIL import Image
from shapely.geometry import box

from coverslip.cli import main
from coverslip.engine.bags import PatientBags, open_bags
from coverslip.engine.clinical import ClinicalTable
from coverslip.engine.mil_ensemble import StudyEnsemble
from coverslip.engine.mil_evaluation import evaluate_study
from coverslip.engine.mil_figures import TaskFigures
from coverslip.engine.mil_plots import surviving_share
from coverslip.engine.mil_prediction import (
    BagPrediction,
    StudyPrediction,
    bags_to_predict,
    predict,
)
from coverslip.engine.mil_run import run_study
from coverslip.engine.mil_study import Study, StudyConfig, study_config
from coverslip.engine.mil_targets import Target
from coverslip.errors import InvalidConfig
from coverslip.export.geojson import read_geojson
from coverslip.mil.splits import SplitConfig
from coverslip.mil.tasks import Task
from coverslip.mil.training_config import MilConfig
from coverslip.tiling.grid import TileGrid, all_boxes
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue

SIDE, DIM, PATIENTS = 512, 6, 24
SIGNAL = 5.0
"""What the first number of an embedding is in tiles that make a slide "tumour"."""
CONFIG = StudyConfig(
    targets=("kind", "months:survival-bins:died", "age:number"),
    covariates=("sex",),
    resamples=50,
    split=SplitConfig(folds=2, validation=0.3),
    training=MilConfig(
        model="additive", arguments={"hidden": 16, "attention_dim": 8}, epochs=25, patience=0,
        bags_per_step=4, learning_rate=2e-2,
    ),
)  # fmt: skip


def _store(folder: Path, name: str, signal: bool, seed: int) -> None:
    """A slide of 16 tiles, all of them tissue; one has the signal."""
    random = np.random.default_rng(seed)
    facts = {"name": name, "size": [SIDE, SIDE], "mpp": [0.5, 0.5], "bounds": [0, 0, SIDE, SIDE],
             "fingerprint": name}  # fmt: skip
    store = SlideStore.create(folder / f"{name}.zarr", facts)
    boxes = all_boxes((SIDE, SIDE), (0.5, 0.5), 128, 128, 0.5)
    grid = TileGrid((SIDE, SIDE), (0.5, 0.5), 128, 128, 0.5, 0.0, boxes,
                    np.ones(len(boxes), np.float32))  # fmt: skip
    tissue = Tissue(np.ones((8, 8), np.bool_), (64.0, 64.0), (box(0, 0, SIDE, SIDE),), 0.0,
                    (240, 240, 240), "made up", {})  # fmt: skip
    with store.stage("tissue", {}) as stage:
        tissue.write(stage)
    tiled = f"tiles/{grid.name}"
    with store.stage(tiled, {"grid": grid.parameters()}) as stage:
        grid.write(stage)
    features = random.normal(scale=0.3, size=(len(boxes), DIM)).astype(np.float32)
    features[:, 0] = 0
    if signal:
        features[seed % len(boxes), 0] = SIGNAL
    made = {"recipe": {"name": "ours"}, "weights_sha256": "w"}
    with store.stage(f"features/ours@{grid.name}", made, needs=[tiled]) as stage:
        stage.create_array("features", features.shape, "float32", rows_per_block=len(features))
        stage.write_block(0, {"features": features})
        stage.finish({"dim": DIM})
    pixels = np.zeros((len(boxes), 128, 128, 3), np.uint8)
    pixels[:] = np.arange(len(boxes), dtype=np.uint8)[:, None, None, None] * 16
    with store.stage(f"pixels/{grid.name}", {}, needs=[tiled]) as stage:
        stage.create_array("pixels", pixels.shape, "uint8", rows_per_block=len(boxes))
        stage.write_block(0, {"pixels": pixels})
        stage.finish({})


def _tumour(patient: int) -> bool:
    return patient % 2 == 1


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(stores of two slides a patient, of which one shows what the patient has; the table)."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = [["slide", "patient", "kind", "months", "died", "age", "sex", "site"]]
    for patient in range(PATIENTS):
        tumour = _tumour(patient)
        for slide in "ab":
            name = f"p{patient:02d}{slide}"
            _store(folder, name, tumour and slide == "a", 10 * patient + (slide == "b"))
            rows.append([
                f"{name}.svs", f"p{patient:02d}", "tumour" if tumour else "normal",
                str(10 - 6 * tumour + patient / 100), "1",
                "" if patient == 3 else str(60 + patient),
                "fm"[patient // 3 % 2], f"site {patient // 4 % 4}",
            ])  # fmt: skip
    table = folder / "table.csv"
    table.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    return folder, table


@pytest.fixture(scope="module")
def studied(
    cohort: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[TaskFigures]]:
    """(the study's folder, its figures)."""
    folder = tmp_path_factory.mktemp("study") / "first"
    return folder, run_study(_study(cohort), folder, device="cpu")


def _study(cohort: tuple[Path, Path], config: StudyConfig = CONFIG) -> Study:
    return Study.of(open_bags(cohort[0]), ClinicalTable.read(cohort[1]), config)


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_learns_what_is_there(studied: tuple[Path, list[TaskFigures]]) -> None:
    kind, months, age = studied[1]
    assert kind.model.figures["auroc"].value > 0.95
    assert months.model.figures["c_index"].value > 0.6  # within a kind they are by chance
    assert age.model.figures["r2"].value < 0.6  # nothing in the slides tells it
    assert kind.baseline.figures["auroc"].value < kind.model.figures["auroc"].value + 1e-9
    beyond = kind.beyond["auroc"]
    assert beyond.low <= beyond.value <= beyond.high
    assert {point.aim for point in kind.model.points} == {"sensitivity", "specificity"}
    for point in kind.model.points:  # chosen on few bags: what it gives on others is what it is
        found = point.found
        assert found.true_positives + found.false_negatives == PATIENTS / 2
        assert found.true_negatives + found.false_positives == PATIENTS / 2
        assert len(point.thresholds) == 2


def test_every_patient_is_tested_once_and_never_on_two_sides(
    studied: tuple[Path, list[TaskFigures]],
) -> None:
    rows = _rows(studied[0] / "folds.csv")
    for fold in "01":
        sides = {row["patient"]: row["part"] for row in rows if row["fold"] == fold}
        assert len(sides) == PATIENTS
        assert sum(row["fold"] == fold for row in rows) == PATIENTS
    assert sorted(r["patient"] for r in rows if r["part"] == "test") == [
        f"p{patient:02d}" for patient in range(PATIENTS)
    ]


def test_tables_say_what_the_figures_say(studied: tuple[Path, list[TaskFigures]]) -> None:
    folder, figures = studied
    rows = _rows(folder / "predictions.csv")
    assert len(rows) == PATIENTS
    for row, said in zip(rows, figures[0].model.predictions, strict=True):
        assert float(row["kind model tumour"]) == pytest.approx(said[1], rel=1e-4)
        assert row["kind"] == ("tumour" if _tumour(int(row["bag"][1:])) else "normal")
    assert next(row for row in rows if row["bag"] == "p03")["age"] == ""
    written = {(r["task"], r["figure"], r["way"]): r for r in _rows(folder / "figures.csv")}
    auroc = written["kind", "auroc", "model"]
    assert float(auroc["value"]) == pytest.approx(figures[0].model.figures["auroc"].value)
    assert float(auroc["low"]) <= float(auroc["value"]) <= float(auroc["high"])


def test_the_page_shows_tasks_and_warns_of_sites(studied: tuple[Path, list[TaskFigures]]) -> None:
    page = (studied[0] / "report.html").read_text(encoding="utf-8")
    for words in ("kind", "months", "AUROC", "C-index", "Operating points", "one site"):
        assert words in page
    for picture in (studied[0] / "report").glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200
    assert len(list((studied[0] / "report").glob("*.png"))) == 4


def test_a_study_goes_on_and_another_is_refused(
    cohort: tuple[Path, Path], studied: tuple[Path, list[TaskFigures]], tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(studied[0], folder)
    before = (folder / "folds" / "0-0" / "model.safetensors").stat().st_mtime_ns
    again = run_study(_study(cohort), folder, device="cpu")
    assert (folder / "folds" / "0-0" / "model.safetensors").stat().st_mtime_ns == before
    first = studied[1][0].model
    assert np.array_equal(again[0].model.predictions, first.predictions)
    for name in ("figures.csv", "predictions.csv", "folds.csv", "report.html"):
        assert (folder / name).read_bytes() == (studied[0] / name).read_bytes()
    other = replace(CONFIG, training=replace(CONFIG.training, learning_rate=1e-3))
    with pytest.raises(InvalidConfig, match="learning_rate"):
        run_study(_study(cohort, other), folder, device="cpu")


def test_each_fold_may_choose_its_settings(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    hopeless = {"model": "mean", "arguments": {"hidden": 4}, "learning_rate": 1e-6, "epochs": 1}
    config = replace(
        CONFIG, targets=("kind",), covariates=(), alternatives=(hopeless, {"epochs": 25}),
        inner_folds=2, training=replace(CONFIG.training, max_tiles=24),
    )  # fmt: skip
    run_study(_study(cohort, config), tmp_path, device="cpu")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What sub-sampling costs" in page
    records = StudyEnsemble.load(tmp_path, "cpu").records
    assert {record.config.model for record in records} == {"additive"}


def test_sites_stay_together(cohort: tuple[Path, Path]) -> None:
    config = replace(CONFIG, site="site", split=replace(CONFIG.split, keep_sites=True))
    study = _study(cohort, config)
    assert study.sites is not None
    for fold, _ in study.folds():
        assert not set(study.sites[fold.test]) & set(study.sites[fold.rest])


@pytest.fixture(scope="module")
def predicted(
    cohort: tuple[Path, Path],
    studied: tuple[Path, list[TaskFigures]],
) -> dict[str, BagPrediction]:
    ensemble = StudyEnsemble.load(studied[0], "cpu")
    given = bags_to_predict(open_bags(cohort[0]), ensemble, studied[0], cohort[1])
    bags, asked = given.bags, StudyPrediction(ensemble, given.covariates, formats=())
    found = dict(predict(bags, asked))
    assert all(isinstance(said, BagPrediction) for said in found.values())
    again = dict(predict(bags, asked))
    assert not any(said.changed for said in again.values())  # type: ignore[union-attr]
    return found  # type: ignore[return-value]


def test_predictions_are_right_and_attention_finds_the_signal(
    cohort: tuple[Path, Path], predicted: dict[str, BagPrediction]
) -> None:
    found = 0
    for patient in range(PATIENTS):
        said = predicted[f"p{patient:02d}"]
        assert (said.numbers[1] > 0.5) == _tumour(patient)
        store = SlideStore.open(cohort[0] / f"p{patient:02d}a.zarr")
        other = SlideStore.open(cohort[0] / f"p{patient:02d}b.zarr")
        (stage,) = store.stages("predictions/")
        one, two = store.group(stage), other.group(stage)
        attention = np.concatenate([one["attention"][:], two["attention"][:]])
        assert attention.sum() == pytest.approx(1, abs=1e-5)
        assert np.array_equal(one["prediction"][:], two["prediction"][:])
        assert one["contributions"].shape == (16, len(one.attrs["contribution_names"]))
        found += _tumour(patient) and attention.argmax() == 10 * patient % 16
    assert found > 0.8 * PATIENTS / 2


def test_contributions_add_up_to_the_logits(
    cohort: tuple[Path, Path], studied: tuple[Path, list[TaskFigures]]
) -> None:
    ensemble = StudyEnsemble.load(studied[0], "cpu")
    bags = open_bags(cohort[0])
    tiles = bags.read(2)
    rows = [np.ones(record.covariates, np.float32) for record in ensemble.records]
    answer = ensemble.answer(tiles, rows)
    import torch

    logits = []
    for network, row in zip(ensemble.networks, rows, strict=True):
        given = torch.from_numpy(row)
        found = network(torch.from_numpy(tiles), given)
        logits.append((found.logits - network.covariate_logits(given)).detach().numpy())
    assert answer.contributions.sum(axis=0) == pytest.approx(np.mean(logits, axis=0), abs=1e-4)


def test_pictures_and_qupath_tiles(
    cohort: tuple[Path, Path], studied: tuple[Path, list[TaskFigures]]
) -> None:
    ensemble = StudyEnsemble.load(studied[0], "cpu")
    given = bags_to_predict(open_bags(cohort[0]), ensemble, studied[0], cohort[1])
    one = PatientBags(given.bags.bags, {"p01a": "p01"})
    said = dict(predict(one, StudyPrediction(ensemble, given.covariates)))["p01"]
    assert isinstance(said, BagPrediction)
    files = said.files
    names = sorted(file.name.partition("@")[2].partition(".5mpp")[2] for file in files)
    assert names == [".attention.png", ".contribution-0.png", ".contribution-1.png",
                     ".contribution-2.png", ".geojson.gz", ".top.png"]  # fmt: skip
    objects = read_geojson(next(file for file in files if file.name.endswith(".geojson.gz")))
    assert len(objects) == 16
    measured = objects[0].measurements
    assert "Attention" in measured
    assert "Contribution: kind: tumour" in measured
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                image.verify()
        elif file.suffix == ".gz":
            assert gzip.decompress(file.read_bytes())


def test_another_cohort_is_evaluated(
    cohort: tuple[Path, Path], studied: tuple[Path, list[TaskFigures]]
) -> None:
    found = evaluate_study(open_bags(cohort[0]), studied[0], cohort[1], "cpu")
    assert found.bags == PATIENTS
    assert found.figures["kind"]["auroc"].value > 0.95
    assert set(found.figures) == {"kind", "months", "age"}


def test_other_embeddings_are_refused(
    cohort: tuple[Path, Path], studied: tuple[Path, list[TaskFigures]]
) -> None:
    ensemble = StudyEnsemble.load(studied[0], "cpu")
    facts = open_bags(cohort[0]).facts
    with pytest.raises(InvalidConfig, match="weights"):
        ensemble.require({**facts, "weights_sha256": "others"}, "OUT")
    with pytest.raises(InvalidConfig, match="dim 7, not 6"):
        ensemble.require({**facts, "encoder": "", "dim": 7}, "OUT")
    with pytest.raises(InvalidConfig, match="--table"):
        bags_to_predict(open_bags(cohort[0]), ensemble, studied[0], None)


def test_a_study_half_done_says_so(studied: tuple[Path, list[TaskFigures]], tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(studied[0], folder)
    (folder / "folds" / "0-1" / "calibration.json").unlink()
    with pytest.raises(InvalidConfig, match="fold 0-1 is not trained to the end"):
        StudyEnsemble.load(folder, "cpu")
    with pytest.raises(InvalidConfig, match="holds no trained study"):
        StudyEnsemble.load(tmp_path, "cpu")
    (folder / "study.json").write_bytes(b"{")
    with pytest.raises(InvalidConfig, match=r"study\.json: cannot be read"):
        study_config(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind:kinds", "one of classes"),
        (":number", "a column"),
        ("grade:ordinal", "which class is above which"),
        ("months:survival", "the column of the event"),
        ("age:number:years", "nothing comes after number"),
    ],
)
def test_targets_that_mean_nothing(text: str, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        StudyConfig(targets=(text,))


def test_targets_of_a_table(cohort: tuple[Path, Path]) -> None:
    rows = ClinicalTable.read(cohort[1]).match(["p00a", "p01a", "p03a"])
    task = Target.parse("kind").task(rows)
    assert task == Task("kind", "classes", ("normal", "tumour"))
    assert Target.parse("kind").values(task, rows).tolist() == [[0, 0], [1, 0], [1, 0]]
    ordinal = Target.parse("kind:ordinal:tumour,normal")
    assert ordinal.values(ordinal.task(rows), rows)[:, 0].tolist() == [1, 0, 0]
    age = Target.parse("age:number")
    assert np.isnan(age.values(age.task(rows), rows)[:, 0]).tolist() == [False, False, True]
    months = Target.parse("months:survival:died")
    assert months.values(months.task(rows), rows)[0].tolist() == [10, 1]
    with pytest.raises(InvalidConfig, match="no slide is 'benign'"):
        Target.parse("kind:classes:benign,tumour").task(rows)


def test_surviving_share_is_kaplan_and_meiers() -> None:
    """Worked by hand: of 5, one dies at 2, one is lost at 3, one dies at 4."""
    time, event = np.array([2.0, 3, 4, 5, 5]), np.array([1, 0, 1, 0, 0], bool)
    moments, surviving = surviving_share(time, event)
    assert moments.tolist() == [0, 2, 4, 5]
    assert surviving == pytest.approx([1, 4 / 5, 4 / 5 * 2 / 3, 4 / 5 * 2 / 3])
    none = surviving_share(time, np.zeros(5, bool))
    assert none[1].tolist() == [1, 1]


def test_the_command_line(
    cohort: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = str(cohort[0]), str(cohort[1])
    settings = tmp_path / "study.toml"
    settings.write_text(
        "resamples = 20\n[split]\nfolds = 2\nvalidation = 0.3\n"
        "[training]\nbags_per_step = 4\n[training.arguments]\nhidden = 8\n",
        encoding="utf-8",
    )
    study = str(tmp_path / "study")
    common = ["mil", "train", folder, "--table", table, "-o", study, "--config", str(settings)]
    assert main([*common, "--target", "kind", "--model", "mean", "--unit", "slide",
                 "--epochs", "2", "--learning-rate", "0.01"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "auroc" in said
    assert f"{2 * PATIENTS} bags" in said
    record = orjson.loads((tmp_path / "study" / "study.json").read_bytes())
    assert record["config"]["training"]["model"] == "mean"
    out = str(tmp_path / "said.csv")
    assert main(["mil", "predict", folder, "--study", study, "-o", out, "--export", "none"]) == 0
    said = capsys.readouterr()
    assert "48 bags" in said.out
    assert "no picture" not in said.err  # none was asked for
    assert len(_rows(Path(out))) == 2 * PATIENTS
    few = tmp_path / "few"
    for path in sorted(cohort[0].glob("*.zarr"))[:5]:
        shutil.copytree(path, few / path.name)
        SlideStore.open(few / path.name).remove(["pixels/128px_0.5mpp"])
    assert main(["mil", "predict", str(few), "--study", study, "--export", "sheet"]) == 0
    assert "(say where with --slides FOLDER)\n  and of 2 more" in capsys.readouterr().err
    assert main(["mil", "evaluate", folder, "--study", study, "--table", table]) == 0
    assert "balanced_accuracy" in capsys.readouterr().out
    assert main([*common, "--target", "sort"]) == 1
    assert "no column of table.csv named 'sort'" in capsys.readouterr().err
    assert main([*common]) == 2
    assert "which column" in capsys.readouterr().err
