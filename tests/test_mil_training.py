"""A training learns, goes on where it stopped, is one file; the linear model beside it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from coverslip.curve import log_rows
from coverslip.errors import InvalidConfig, MissingWeights
from coverslip.mil.bag_stream import AHEAD, drawn_rows, mean_embeddings, stream
from coverslip.mil.bags import Floats, Rows
from coverslip.mil.baseline import fitted_probe
from coverslip.mil.examples import MilExamples
from coverslip.mil.figures import study_values
from coverslip.mil.model_file import load_model, read_record, study_network
from coverslip.mil.prediction import fold_predictions
from coverslip.mil.slide_model import SlideModel, SlideOutput
from coverslip.mil.splits import Fold
from coverslip.mil.study_network import StudyNetwork
from coverslip.mil.tasks import Task
from coverslip.mil.training import MilResult, MilTraining
from coverslip.mil.training_config import MilConfig
from coverslip.settings import settings_from_toml

DIM = 6
KIND = Task("type", "classes", ("a", "b"))
MONTHS = Task("months", "survival", event="dead")
SCORE = Task("score", "number")
CONFIG = MilConfig(
    arguments={"hidden": 8, "attention_dim": 4}, epochs=4, bags_per_step=5, learning_rate=0.01,
    patience=0,
)  # fmt: skip
LINEAR = replace(CONFIG, model="linear", arguments={})
FOLD = Fold(0, 0, np.arange(0, 18), np.arange(18, 24), np.arange(24, 30))


class HeldBags:
    """Bags in memory: in those of class b some tiles point along the first axis."""

    def __init__(self, label: npt.NDArray[np.int64], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.names = [f"bag-{i}" for i in range(len(label))]
        self.dim = DIM
        self.tiles = []
        for c in label:
            tiles = random.normal(size=(int(random.integers(5, 12)), DIM))
            tiles[:4, 0] += 6 * c
            self.tiles.append(tiles.astype(np.float16))
        self.asked: list[tuple[int, Rows | None]] = []
        self.lock, self.reading, self.most = threading.Lock(), 0, 0

    def count(self, index: int) -> int:
        return len(self.tiles[index])

    def read(self, index: int, rows: Rows | None = None) -> Floats:
        with self.lock:
            self.asked.append((index, rows))
        return self.tiles[index] if rows is None else self.tiles[index][rows]


def examples(*tasks: Task, missing: float = 0.2) -> MilExamples:
    random = np.random.default_rng(1)
    label = np.arange(30) % 2
    targets = np.zeros((30, len(tasks), 2))
    for number, task in enumerate(tasks):
        if task.kind == "classes":
            targets[:, number, 0] = label
        else:
            targets[:, number, 0] = np.round(10 - 5 * label + random.normal(0, 1, 30), 1)
            targets[:, number, 1] = random.random(30) < 0.7
        if number:
            targets[random.random(30) < missing, number] = np.nan
    return MilExamples(HeldBags(label), targets, random.normal(size=(30, 2)).astype(np.float32))


def training(folder: Path, config: MilConfig = CONFIG, *tasks: Task, **more: Any) -> MilTraining:
    tasks = tasks or (KIND, SCORE)
    data = more.pop("data", None) or examples(*tasks)
    fold = more.pop("fold", FOLD)
    return MilTraining(
        config, tasks, data, fold, folder, facts={"encoder": "test"}, device="cpu", **more
    )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("tasks", [(KIND,), (KIND, SCORE, MONTHS)], ids=["one", "three"])
def test_it_learns_what_bags_show(tmp_path: Path, tasks: tuple[Task, ...]) -> None:
    config = replace(CONFIG, epochs=15, max_tiles=6, learning_rate=0.02)
    run = training(tmp_path, config, *tasks)
    result = run.run()
    data = run.examples
    logits = fold_predictions(run.network, data.bags, FOLD.test, data.covariates)
    figures = study_values(run.tasks, logits, data.targets[FOLD.test])
    assert figures["type"]["auroc"] > 0.85
    assert result.validation["type"]["auroc"] > 0.85
    assert result.validation != result.validation_sampled
    assert result.validation_sampled.keys() == {task.name for task in tasks}
    if len(tasks) == 3:
        assert result.validation["score"]["r2"] > 0.3
        assert result.validation["months"]["c_index"] > 0.6
        assert run.tasks[1].mean == pytest.approx(np.nanmean(data.targets[FOLD.train, 1, 0]))
    rows = list(log_rows(tmp_path / "log.csv"))
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    parts = sum(rows[0][f"{task.name}_loss"] for task in tasks) + rows[0]["own_loss"]
    assert rows[0]["loss"] == pytest.approx(parts, rel=1e-4)
    looks = list(log_rows(tmp_path / "validation.csv"))
    assert [row["epoch"] for row in looks] == list(range(1, 16))
    assert min(looks, key=lambda row: row["loss"])["epoch"] == result.best_epoch
    held = orjson.loads((tmp_path / "result.json").read_bytes())
    assert held["best_epoch"] == result.best_epoch


class Stopped(Exception):
    """What stops a training in the middle."""


@pytest.mark.parametrize("config", [CONFIG, LINEAR], ids=["abmil", "linear"])
@pytest.mark.parametrize("at", [4, 6])
def test_a_training_that_goes_on_is_the_same(tmp_path: Path, at: int, config: MilConfig) -> None:
    """Stopped with its first epoch, or in the middle of its second: equal bytes."""
    config, tasks = replace(config, max_tiles=6), (KIND, MONTHS)

    def stop(step: int, steps: int, row: Mapping[str, float]) -> None:
        assert steps == 16
        if step == at:
            raise Stopped

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wanted = training(whole, config, *tasks).run()
    with pytest.raises(Stopped):
        training(parts, config, *tasks).run(stop)
    again = training(parts, config, *tasks)
    assert again.epoch == (at - 1) // 4
    assert again.run() == wanted
    for name in ("model.safetensors", "result.json", "validation.csv"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    a, b = (list(log_rows(folder / "log.csv")) for folder in (whole, parts))
    assert [row["loss"] for row in a] == [row["loss"] for row in b]
    assert [row["step"] for row in b] == list(range(1, 17))
    assert training(parts, config, *tasks).run() == wanted  # of one that is done


def test_another_training_is_refused(tmp_path: Path) -> None:
    training(tmp_path, replace(CONFIG, epochs=1)).run()
    for other, said in (
        ({"config": replace(CONFIG, epochs=2)}, "config.epochs 1 -> 2"),
        ({"fold": replace(FOLD, train=np.arange(17))}, "began with bags"),
    ):
        with pytest.raises(InvalidConfig, match=said):
            training(tmp_path, **{"config": replace(CONFIG, epochs=1), **other})  # type: ignore[arg-type]
    (tmp_path / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(MissingWeights, match=r"checkpoint.pt: cannot be read"):
        training(tmp_path, replace(CONFIG, epochs=1))
    torch.save({"step": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(MissingWeights, match="it lacks epoch"):
        training(tmp_path, replace(CONFIG, epochs=1))


def test_it_stops_when_it_no_longer_gets_better(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=40, patience=2, watch="score", learning_rate=0.02)
    run = training(tmp_path, config, KIND)
    result = run.run()
    assert result.epochs == result.best_epoch + 2 < 40
    assert run.best == 1
    assert read_record(run.path).epoch == result.best_epoch


class Doubled(SlideModel):
    """Two streams of the mean's logits, and a loss of its own: the label."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.one, self.two = torch.nn.Linear(DIM, outputs), torch.nn.Linear(DIM, outputs)
        self.labels: list[int | None] = []

    def forward(self, tiles: Tensor) -> SlideOutput:
        mean = tiles.mean(dim=0)
        streams = torch.stack([self.one(mean), self.two(mean)])
        even = torch.full((1, len(tiles)), 1 / len(tiles))
        return SlideOutput(streams.mean(dim=0), even, mean, streams[:0], streams)

    def with_own_loss(self, tiles: Tensor, label: int | None) -> tuple[SlideOutput, Tensor]:
        self.labels.append(label)
        found = self(tiles)
        return found, found.logits.sum() * 0 + (5.0 if label is None else label)


def test_a_step_is_the_loss_of_its_bags_at_once(tmp_path: Path) -> None:
    """Bag by bag, as it is done in little memory, the gradient is that of the whole step."""
    model = Doubled(3)
    config = replace(CONFIG, bags_per_step=18, warm_up=0.0, weight_decay=0.0, epochs=1)
    data = examples(KIND, SCORE)
    data.targets[2, 0] = np.nan
    run = training(
        tmp_path, config, KIND, SCORE, data=data,
        build=lambda config, dim, outputs, covariates: StudyNetwork(model, covariates),
    )  # fmt: skip
    network = run.network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    streams = torch.stack(
        [
            network(torch.from_numpy(data.bags.read(i)).float(), torch.from_numpy(row)).streams
            for i, row in zip(FOLD.train.tolist(), data.covariates[FOLD.train], strict=True)  # type: ignore[index]
        ]
    )
    target = torch.from_numpy(data.targets[FOLD.train])
    weight = torch.from_numpy(run.tasks[0].class_weight(data.targets[FOLD.train, 0]))  # type: ignore[arg-type]
    loss = torch.zeros(())
    for s in range(2):
        first = run.tasks[0].loss(streams[:, s, :2], target[:, 0], weight.float())
        loss = loss + (first + run.tasks[1].loss(streams[:, s, 2:], target[:, 1])) / 2
    slopes = dict(
        zip(
            [name for name, _ in network.named_parameters()],
            torch.autograd.grad(loss, list(network.parameters())),
            strict=True,
        )
    )
    run._train_epoch(None)
    row = next(iter(log_rows(tmp_path / "log.csv")))
    labels = np.nan_to_num(data.targets[FOLD.train, 0, 0], nan=5.0)
    assert row["own_loss"] == pytest.approx(labels.mean(), rel=1e-4)
    assert row["loss"] == pytest.approx(loss.item() + labels.mean(), rel=1e-4)
    assert sorted(model.labels, key=str) == sorted([*([0] * 8), *([1] * 9), None], key=str)
    norm = torch.stack([g.norm() for g in slopes.values()]).norm().item()
    for name, parameter in network.named_parameters():
        held = run._optimiser.state[parameter]["exp_avg"] / 0.1 * max(1.0, norm / 5)
        torch.testing.assert_close(held, slopes[name], rtol=1e-3, atol=1e-5)
        assert not torch.equal(parameter, before[name])


@pytest.mark.parametrize("max_tiles", [0, 3])
def test_bags_trained_on_alone_say_how_means_are_standardised(
    tmp_path: Path, max_tiles: int
) -> None:
    """With covariates and two tasks; each is read once for it, with as many tiles as taught."""
    data = examples(KIND, SCORE)
    tiles = data.bags.tiles  # type: ignore[attr-defined]
    for index in (*FOLD.validation, *FOLD.test):
        tiles[index] += 100
    drawn = {i: drawn_rows(len(tiles[i]), max_tiles, (LINEAR.seed, i)) for i in FOLD.train.tolist()}
    means = np.stack(
        [
            (tiles[i] if rows is None else tiles[i][rows]).astype(np.float64).mean(axis=0)
            for i, rows in drawn.items()
        ]
    )
    run = training(tmp_path, replace(LINEAR, max_tiles=max_tiles), data=data)
    asked = data.bags.asked  # type: ignore[attr-defined]
    assert asked == []

    def stop(step: int, steps: int, row: Mapping[str, float]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run.run(stop)
    assert sorted(i for i, _ in asked[: len(FOLD.train)]) == FOLD.train.tolist()
    assert {i for i, _ in asked} == set(FOLD.train.tolist())
    result = run.run()
    for network in (run.network, load_model(run.path, "cpu")[1]):
        model = network.model
        np.testing.assert_allclose(model.centre, means.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.spread, means.std(axis=0), rtol=1e-5)
    assert bool(result.validation_sampled) == bool(max_tiles)


def test_the_linear_model_learns_from_means_that_differ_by_little(tmp_path: Path) -> None:
    """By a hundredth of their size: without its standardisation, the same steps learn nothing."""
    data, random = examples(KIND), np.random.default_rng(2)
    for index in range(30):
        tiles = 5 + random.normal(0, 0.05, (8, DIM))
        tiles[:, 0] += 0.1 * (index % 2)
        data.bags.tiles[index] = tiles.astype(np.float32)  # type: ignore[attr-defined]
    data = replace(data, covariates=None)
    config = replace(LINEAR, epochs=10, learning_rate=0.1)
    run = training(tmp_path / "one", config, KIND, data=data)
    assert run.run().validation["type"]["auroc"] == 1
    assert min(row["loss"] for row in log_rows(tmp_path / "one" / "validation.csv")) < 0.3
    raw = training(tmp_path / "other", config, KIND, data=data)
    raw.network.prepare = lambda means: None
    raw.run()
    assert min(row["loss"] for row in log_rows(tmp_path / "other" / "validation.csv")) > 0.5
    logits = fold_predictions(run.network, data.bags, FOLD.test)
    _, loaded = load_model(run.path, "cpu")
    np.testing.assert_array_equal(fold_predictions(loaded, data.bags, FOLD.test), logits)
    assert study_values(run.tasks, logits, data.targets[FOLD.test])["type"]["auroc"] == 1


def test_a_linear_model_without_its_standardisation_is_refused(tmp_path: Path) -> None:
    """As they were before: a file, and a checkpoint to go on from."""
    from safetensors.torch import load_file, save_file

    run = training(tmp_path, replace(LINEAR, epochs=1))
    run.run()
    kept = {k: v for k, v in load_file(run.path).items() if k != "model.centre"}
    path, record = tmp_path / "old.safetensors", orjson.dumps(run.record.as_json()).decode()
    save_file(kept, path, {"coverslip.mil": record})
    with pytest.raises(InvalidConfig, match=r"old.safetensors: model.centre does not fit a model"):
        load_model(path, "cpu")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for wrong in (None, "no tensor", torch.ones(DIM + 1)):
        state["network"] |= {"model.spread": wrong}
        torch.save(state, tmp_path / "checkpoint.pt")
        with pytest.raises(InvalidConfig, match=r"checkpoint.pt: model.spread does not fit"):
            training(tmp_path, replace(LINEAR, epochs=1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precisions_agree(tmp_path: Path, precision: str) -> None:
    config = replace(CONFIG, epochs=1, precision=precision)
    run = training(tmp_path, config, KIND)
    run.run()
    (found,) = log_rows(tmp_path / "validation.csv")
    exact = training(tmp_path / "exact", replace(CONFIG, epochs=1), KIND)
    exact.run()
    (wanted,) = log_rows(tmp_path / "exact" / "validation.csv")
    assert found["loss"] == pytest.approx(wanted["loss"], rel=0.02)


def test_a_model_is_one_file(tmp_path: Path) -> None:
    run = training(tmp_path, replace(CONFIG, epochs=2))
    run.run()
    record, network = load_model(run.path, "cpu")
    assert record == replace(run.record, epoch=record.epoch)
    assert record.facts == {"encoder": "test"}
    assert (record.dim, record.covariates, record.outputs) == (DIM, 2, 3)
    data = run.examples
    found = fold_predictions(network, data.bags, FOLD.test, data.covariates)
    again = fold_predictions(run.network, data.bags, FOLD.test[::-1], data.covariates)
    np.testing.assert_array_equal(found, again[::-1])
    assert found.dtype == np.float64
    assert found.shape == (6, 3)
    assert fold_predictions(network, data.bags, FOLD.test[:0], data.covariates).shape == (0, 3)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = training(tmp_path, replace(CONFIG, epochs=1))
    run.run()
    weights = load_file(run.path)
    content = replace(run.record, epoch=1).as_json()
    path = tmp_path / "other.safetensors"

    def refused(said: str, **changed: Any) -> None:
        held = orjson.dumps({**content, **changed}).decode()
        save_file(weights, path, {"coverslip.mil": held})
        with pytest.raises(InvalidConfig, match=f"other.safetensors: {said}"):
            load_model(path, "cpu")

    refused("a model of version 9", version=9)
    refused("its record holds 'more'", more=1)
    refused("its record holds", dim="6")
    refused("no setting named 'rate'", config={"rate": 1})
    refused("not a task", tasks=[{"name": "x"}])
    refused("a study wants tasks", tasks=[])
    refused("no record of a slide-level", facts=3)
    refused(".* does not fit a model abmil", dim=7)
    refused("no .*named 'abmill'; did you mean abmil", config={"model": "abmill"})
    save_file(weights, path, {"coverslip.mil": "[]"})
    with pytest.raises(InvalidConfig, match="no record of a slide-level"):
        load_model(path)
    save_file(weights, path)
    with pytest.raises(InvalidConfig, match="no record of a slide-level"):
        load_model(path)
    path.write_bytes(b"no")
    with pytest.raises(InvalidConfig, match="not a model's file"):
        load_model(path)


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    def refused(said: str, *arguments: Any, **more: Any) -> None:
        with pytest.raises(InvalidConfig, match=said):
            training(tmp_path, *arguments, **more)

    refused("1 bags on two sides: 17", fold=replace(FOLD, validation=np.arange(17, 24)))
    refused("no bag for validation", fold=replace(FOLD, validation=FOLD.test[:0]))
    refused("wants a GPU", replace(CONFIG, precision="float16"))
    refused("compares the bags of a step", replace(CONFIG, bags_per_step=1), MONTHS)
    data = examples(KIND, SCORE)
    data.bags.tiles[20] = data.bags.tiles[20][:0]  # type: ignore[attr-defined]
    refused("'bag-20'", data=data)
    data = examples(KIND, SCORE)
    data.targets[FOLD.validation] = np.nan
    refused("no bag for validation has a label", data=data)
    data = examples(KIND, SCORE)
    data.targets[3, 0, 0] = 2
    refused("row 3 has 2", data=data)
    with pytest.raises(InvalidConfig, match="'bag-1': a covariate"):
        replace(data, covariates=np.array([[0], [np.nan], *[[0]] * 28], np.float32))
    with pytest.raises(ValueError, match="targets must be"):
        replace(data, targets=data.targets[:4])
    data = examples(KIND)
    data.targets[FOLD.validation, 0] = 1
    with pytest.raises(InvalidConfig, match="'type': its auroc means nothing"):
        training(tmp_path, replace(CONFIG, watch="score"), KIND, data=data).run()


def test_a_bag_that_spoils_it_is_named(tmp_path: Path) -> None:
    data = examples(KIND)
    data.bags.tiles[5][2, 3] = np.nan  # type: ignore[attr-defined]
    for config in (CONFIG, LINEAR):
        with pytest.raises(InvalidConfig, match="bag 'bag-5': embeddings that are not finite"):
            training(tmp_path / config.model, config, KIND, data=data).run()
    network = study_network(CONFIG, DIM, 2, 2)
    with pytest.raises(InvalidConfig, match="bag 'bag-5'"):
        fold_predictions(network, data.bags, np.arange(6), data.covariates)
    for parameter in network.parameters():
        parameter.data.fill_(1e38)
    with pytest.raises(InvalidConfig, match="the network's answer is not finite"):
        fold_predictions(network, data.bags, np.arange(2), data.covariates)


def test_settings_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("model = 'dsmil'\nepochs = 3\nwarm_up = 0\n[arguments]\nquery_dim = 8\n")
    config = settings_from_toml(MilConfig, path)
    assert (config.model, config.warm_up, config.arguments) == ("dsmil", 0.0, {"query_dim": 8})
    for wrong, said in (
        ("epoch = 3", "no setting named 'epoch'"), ("epochs = 0", "at least 1"),
        ("seed = -1", "at least 0"), ("precision = 'int8'", "float32 or bfloat16 or float16"),
        ("watch = 'accuracy'", "loss or score"), ("learning_rate = nan", "learning_rate"),
        ("warm_up = 1", "warm_up"), ("weight_decay = inf", "weight_decay"),
        ("arguments = 3", "arguments must be dict"),
    ):  # fmt: skip
        path.write_text(wrong)
        with pytest.raises(InvalidConfig, match=said):
            settings_from_toml(MilConfig, path)


def test_only_a_few_bags_are_held() -> None:
    data = HeldBags(np.arange(30) % 2)
    coming = stream(data, ((i, None) for i in range(30)))
    for index, tiles in enumerate(coming):
        np.testing.assert_array_equal(tiles, data.tiles[index])
        assert len(data.asked) <= index + 1 + AHEAD
        if index == 9:
            break
    coming.close()
    assert len(data.asked) <= 10 + AHEAD
    data.tiles[3] = data.tiles[3][:, :4]
    with pytest.raises(InvalidConfig, match=r"'bag-3': embeddings \[n, 6\]"):
        list(stream(data, [(2, None), (3, None)]))


def test_sub_samples_are_drawn_anew_each_epoch_and_the_same_when_watched(tmp_path: Path) -> None:
    data = examples(KIND)
    training(tmp_path, replace(CONFIG, max_tiles=4, epochs=3), KIND, data=data).run()
    asked = data.bags.asked  # type: ignore[attr-defined]
    taught = [tuple(rows) for index, rows in asked if index == 4]
    watched = [None if rows is None else tuple(rows) for index, rows in asked if index == 20]
    assert len(taught) == 3
    assert len(set(taught)) > 1
    assert all(len(set(rows)) == 4 and list(rows) == sorted(rows) for rows in taught)
    assert len(watched) == 5  # three looks; at the end once more, and once whole
    assert len(set(watched)) == 2
    assert watched[-1] is None
    assert drawn_rows(4, 4, (0,)) is None
    assert drawn_rows(9, 0, (0,)) is None


def test_mean_embeddings() -> None:
    data = HeldBags(np.arange(6) % 2)
    found = mean_embeddings(data, np.array([4, 1]))
    np.testing.assert_allclose(found[0], data.tiles[4].astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(found[1], data.tiles[1].astype(np.float64).mean(axis=0))


def test_the_probe_of_classes_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    features = random.normal(5, 3, (80, 4))
    label = (features[:, 0] + random.normal(0, 2, 80) > 5).astype(float)
    label[features[:, 1] > 8] = 2
    target = np.stack([label, label * 0], axis=1)
    task = Task("k", "classes", ("a", "b", "c"))
    train, rest = np.arange(60), np.arange(60, 80)
    probe = fitted_probe(
        task, features, target, train, rest, class_weights=False, strengths=(0.05,)
    )
    standard = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
    reference = LogisticRegression(C=1 / (0.05 * 60), tol=1e-10, max_iter=5000)
    reference.fit(standard[train], label[train])
    found = task.prediction(probe.logits(features[rest]))
    np.testing.assert_allclose(found, reference.predict_proba(standard[rest]), atol=1e-4)


def test_the_probe_of_survival_is_lifelines() -> None:
    """CoxPHFitter(penalizer=0.1) of lifelines 0.30; it divides by bags, and by n - 1 in spreads."""
    time = np.array([5, 3, 3, 8, 1, 3, 9, 5, 2, 8, 4, 6.0])
    event = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1.0])
    first = np.array([0.2, 1.1, 0.3, -0.5, 2.0, 1.1, -1.0, 0.2, 0.4, 0.2, 0.9, -0.3])
    second = np.array([1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1.0])
    every, target = np.arange(12), np.stack([time, event], axis=1)
    strength = 0.1 * 12 / event.sum() * 12 / 11
    probe = fitted_probe(
        MONTHS, np.stack([first, second], axis=1), target, every, every, strengths=(strength,)
    )
    found = probe.weight[:, 0] / probe.spread
    np.testing.assert_allclose(found, [1.7570482741467974, 0.7471246580495117], atol=1e-3)


@pytest.mark.parametrize(
    "task",
    [KIND, Task("g", "ordinal", ("a", "b", "c")), SCORE, MONTHS,
     Task("t", "survival-bins", event="dead")],
    ids=lambda task: task.kind,
)  # fmt: skip
def test_the_probe_of_every_task(task: Task) -> None:
    """More features than bags: it finds the one that tells, and its strength by validation."""
    random = np.random.default_rng(3)
    features = random.normal(size=(90, 60))
    features[:, 0] *= 4
    signal = features[:, 0] / 4
    target = np.stack([np.exp(-signal) * 5, random.random(90) < 0.8], axis=1).astype(float)
    if task.kind == "classes":
        target[:, 0] = signal > 0
    if task.kind == "number":
        target[:, 0] = 10 * signal
    if task.kind == "ordinal":
        target[:, 0] = np.digitize(signal, [-0.4, 0.4])
    target[3] = np.nan
    train, validation, test = np.arange(50), np.arange(50, 70), np.arange(70, 90)
    task = task.fitted(target[train])
    strengths = (1.0, 0.1, 0.01)
    probe = fitted_probe(task, features, target, train, validation, strengths=strengths)
    losses = {}
    for strength in strengths:
        one = fitted_probe(task, features, target, train, validation, strengths=(strength,))
        logits = torch.from_numpy(one.logits(features[validation]))
        weight = task.class_weight(target[train])
        balance = None if weight is None else torch.from_numpy(weight)
        losses[strength] = task.loss(logits, torch.from_numpy(target[validation]), balance).item()
    assert losses[probe.strength] == min(losses.values())
    figures = study_values([task], probe.logits(features[test]), target[test][:, None])[task.name]
    main = {"number": "pearson", "ordinal": "auroc", "classes": "auroc"}.get(task.kind, "c_index")
    assert figures[main] > 0.6


def test_a_result_is_plain() -> None:
    assert orjson.loads(orjson.dumps(MilResult(1, 1, {"a": {"b": float("nan")}}, {}))) == {
        "epochs": 1, "best_epoch": 1, "validation": {"a": {"b": None}}, "validation_sampled": {},
    }  # fmt: skip
