"""Losses against references in float64 NumPy; what a missing label is worth; what logits say."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.errors import InvalidConfig
from coverslip.mil.losses import cox_loss
from coverslip.mil.tasks import Task, places, task_losses, task_records

CLASSES = Task("type", "classes", classes=("a", "b", "c"))
GRADES = Task("grade", "ordinal", classes=("low", "middle", "high"))
NUMBER = Task("score", "number", mean=10.0, spread=4.0)
SURVIVAL = Task("months", "survival", event="dead")
BINS = Task("months", "survival-bins", event="dead", limits=(2.0, 5.0))
ALL = (CLASSES, GRADES, NUMBER, SURVIVAL, BINS)

TIME = np.array([5, 3, 3, 8, 1, 3, 9, 5, 2, 8, 4, 6.0])
EVENT = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1.0])
FIRST = np.array([0.2, 1.1, 0.3, -0.5, 2.0, 1.1, -1.0, 0.2, 0.4, 0.2, 0.9, -0.3])
SECOND = np.array([1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1.0])

Floats = npt.NDArray[np.float64]


def target_of(task: Task, count: int, random: np.random.Generator) -> Floats:
    if task.classes:
        first = random.integers(len(task.classes), size=count).astype(float)
        first[: len(task.classes)] = range(len(task.classes))
    else:
        first = np.round(random.uniform(0, 9, count))
    return np.stack([first, (np.arange(count) % 3 > 0).astype(float)], axis=1)


def loss_of(task: Task, logits: Floats, target: Floats, weight: Floats | None = None) -> float:
    return task.loss(
        torch.from_numpy(logits),
        torch.from_numpy(target),
        None if weight is None else torch.from_numpy(weight),
    ).item()


def efron(risk: Floats, time: Floats, event: npt.NDArray[np.bool_]) -> float:
    """As the paper writes it: by time, the dead against all at risk, less and less of the dead."""
    total = 0.0
    for t in np.unique(time[event]):
        dead = event & (time == t)
        at_risk, tied = np.exp(risk[time >= t]).sum(), np.exp(risk[dead]).sum()
        total -= risk[dead].sum()
        total += sum(math.log(at_risk - k / dead.sum() * tied) for k in range(dead.sum()))
    return total / event.sum()


def test_classes_and_their_weights_by_hand() -> None:
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    target = np.array([[0, 0], [1, 0.0]])
    assert loss_of(CLASSES, logits, target) == pytest.approx(-(math.log(0.5) + math.log(0.1)) / 2)
    weight = np.array([2.0, 0.5, 1.0])
    wanted = -(2 * math.log(0.5) + 0.5 * math.log(0.1)) / 2
    assert loss_of(CLASSES, logits, target, weight) == pytest.approx(wanted)
    one = loss_of(CLASSES, logits[:1], target[:1], weight)  # not divided out of a single bag
    assert one == pytest.approx(-2 * math.log(0.5))


def test_grades_by_hand() -> None:
    logits = np.array([[1.0, -2.0], [0.5, 0.25], [0.0, 3.0]])
    target = np.array([[0, 0], [1, 0], [2, 0.0]])
    above = 1 / (1 + np.exp(-logits))
    wanted = (
        -math.log((1 - above[0, 0]) * (1 - above[0, 1]))
        - math.log(above[1, 0] * (1 - above[1, 1]))
        - math.log(above[2, 0] * above[2, 1])
    ) / 3
    assert loss_of(GRADES, logits, target) == pytest.approx(wanted)
    chances = GRADES.prediction(logits)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert chances.min() >= 0
    np.testing.assert_allclose(
        chances[0], [1 - above[0, 0], above[0, 0] - above[0, 1], above[0, 1]]
    )
    np.testing.assert_allclose(chances[2], [0.5, 0.0, 0.5])  # the second question gives way


def test_numbers_by_hand() -> None:
    target = np.array([[12, 0], [30, 0.0]])  # 0.5 and 5 spreads above the mean
    assert loss_of(NUMBER, np.zeros((2, 1)), target) == pytest.approx((0.5**2 / 2 + 4.5) / 2)
    np.testing.assert_allclose(NUMBER.prediction(np.array([[0.5], [5.0]])), [12, 30])


def test_hazards_by_hand() -> None:
    logits = np.array([[0.3, -1.0, 2.0]] * 4)
    hazard = 1 / (1 + np.exp(-logits[0]))
    lives = np.cumprod(1 - hazard)
    # an event in the second bin, whose first moment is 2; censored there; both in the open last
    target = np.array([[2.0, 1], [4.9, 0], [5.0, 1], [99, 0]])
    each = [lives[0] * hazard[1], lives[1], lives[1] * hazard[2], lives[2]]
    assert loss_of(BINS, logits, target) == pytest.approx(-np.log(each).mean())
    np.testing.assert_allclose(BINS.survival(logits)[0], lives)
    np.testing.assert_allclose(BINS.prediction(logits), -lives.sum())


def test_cox_against_lifelines() -> None:
    """Log likelihood -9.226553996 of lifelines 0.30 at its own coefficients (Efron's ties)."""
    risk = 2.921565263425362 * FIRST + 1.349883129036524 * SECOND
    found = loss_of(SURVIVAL, risk[:, None], np.stack([TIME, EVENT], axis=1))
    assert found * EVENT.sum() == pytest.approx(9.226553996235408, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 6), st.floats(0.1, 30))
def test_cox_is_efrons(seed: int, count: int, times: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    risk = random.normal(0, spread, count)
    time = random.integers(times, size=count).astype(float)
    event = random.random(count) < 0.6
    found = cox_loss(torch.from_numpy(risk), torch.from_numpy(time), torch.from_numpy(event))
    wanted = efron(risk, time, event) if event.any() else 0.0
    assert found.item() == pytest.approx(wanted, rel=1e-7, abs=1e-7)


def test_cox_stays_finite_where_exponentials_do_not() -> None:
    risk = torch.tensor([500.0, -500.0, 300.0, 0.0], requires_grad=True)
    loss = cox_loss(risk, torch.tensor([1.0, 1, 2, 3]), torch.tensor([True, True, True, False]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(risk.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.kind)
def test_gradients_are_those_of_the_loss(task: Task) -> None:
    random = np.random.default_rng(1)
    target, logits = target_of(task, 7, random), random.normal(size=(7, task.outputs))
    held = torch.from_numpy(logits.copy()).requires_grad_()
    task.loss(held, torch.from_numpy(target)).backward()
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        slope = (loss_of(task, logits + step, target) - loss_of(task, logits - step, target)) / 2e-5
        assert held.grad[place].item() == pytest.approx(slope, abs=1e-8)  # type: ignore[index]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.kind)
def test_missing_labels_have_no_part(task: Task) -> None:
    random = np.random.default_rng(2)
    target, logits = target_of(task, 9, random), random.normal(size=(9, task.outputs))
    hidden = target.copy()
    hidden[[2, 5]] = np.nan
    kept = [0, 1, 3, 4, 6, 7, 8]
    assert loss_of(task, logits, hidden) == pytest.approx(loss_of(task, logits[kept], target[kept]))
    held = torch.from_numpy(logits).requires_grad_()
    task.loss(held, torch.from_numpy(hidden)).backward()
    assert not held.grad[[2, 5]].any()  # type: ignore[index]
    assert held.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.kind)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_no_label_is_a_loss_of_zero(task: Task, count: int) -> None:
    logits = torch.full((count, task.outputs), math.inf, requires_grad=True)
    loss = task.loss(logits, torch.full((count, 2), math.nan, dtype=torch.float64))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_cox_of_the_censored_alone_is_zero() -> None:
    logits = torch.randn(3, 1, requires_grad=True)
    loss = SURVIVAL.loss(logits, torch.tensor([[1.0, 0], [2, 0], [3, 0]], dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()  # type: ignore[union-attr]


def test_several_tasks_share_the_logits() -> None:
    tasks = (CLASSES, NUMBER, BINS)
    assert places(tasks) == [slice(0, 3), slice(3, 4), slice(4, 7)]
    random = np.random.default_rng(3)
    logits = torch.from_numpy(random.normal(size=(5, 2, 7)))  # two streams
    target = np.stack([target_of(t, 5, random) for t in tasks], axis=1)
    target[1, 0], target[:, 1] = np.nan, np.nan
    found = task_losses(tasks, logits, torch.from_numpy(target), [None] * 3)
    for number, (task, place) in enumerate(zip(tasks, places(tasks), strict=True)):
        each = [loss_of(task, logits[:, s, place].numpy(), target[:, number]) for s in range(2)]
        assert found[number].item() == pytest.approx(np.mean(each))
    assert found[1] == 0
    with pytest.raises(InvalidConfig, match="different names"):
        places((CLASSES, CLASSES))


def test_what_the_training_bags_decide() -> None:
    values = np.array([[2, 0], [6, 0], [np.nan, 0]])
    fitted = Task("x", "number").fitted(values)
    assert (fitted.mean, fitted.spread) == (4.0, 2.0)
    times = np.stack([np.arange(1, 10.0), np.ones(9)], axis=1)
    censored = np.array([[100, 0], [200, 0.0]])
    fitted = Task("x", "survival-bins", event="e").fitted(np.concatenate([times, censored]))
    assert fitted.limits == (3.0, 5.0, 7.0)
    assert BINS.fitted(times) == BINS
    weight = CLASSES.class_weight(np.array([[0, 0], [0, 0], [0, 0], [1, 0], [np.nan, 0]]))
    assert weight is not None
    np.testing.assert_allclose(weight, [4 / (2 * 3), 4 / 2, 1])  # of the class that is not there
    assert NUMBER.class_weight(values) is None
    for task, target, said in (
        (Task("x", "number"), values[:1], "do not differ"),
        (Task("x", "survival-bins", event="e"), censored, "no event"),
        (Task("x", "survival-bins", event="e"), 0 * times + [[0, 1]], "at time 0"),
    ):
        with pytest.raises(InvalidConfig, match=said):
            task.fitted(target)
    with pytest.raises(InvalidConfig, match="before `fitted`"):
        Task("x", "survival-bins", event="e").outputs  # noqa: B018


@pytest.mark.parametrize(
    ("task", "row"),
    [(CLASSES, (3, 0)), (CLASSES, (0.5, 0)), (GRADES, (-1, 0)), (NUMBER, (math.inf, 0)),
     (SURVIVAL, (-1, 1)), (SURVIVAL, (1, 2)), (BINS, (1, math.nan))],
)  # fmt: skip
def test_labels_that_mean_nothing(task: Task, row: tuple[float, float]) -> None:
    with pytest.raises(InvalidConfig, match=f"task '{task.name}': row 1 has"):
        task.known(np.array([[math.nan, 0], row]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x", "regression"), "kind: classes"),
        (("x", "classes", ("a",)), "at least 2"),
        (("x", "ordinal", ("a", "a")), "different"),
        (("x", "number", ("a", "b")), "has no classes"),
        (("x", "survival"), "column of its event"),
        (("x", "number", (), "dead"), "has no event"),
        (("x", "survival", (), "dead", (1.0,)), "has no limits"),
        (("x", "survival-bins", (), "dead", (2.0, 1.0)), "must rise"),
        (("x", "number", (), "", (), 0.0, 0.0), "spread"),
        (("a\nb", "number"), "printed"),
    ],
)
def test_tasks_that_mean_nothing(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        Task(*arguments)  # type: ignore[arg-type]


def test_tasks_as_json() -> None:
    content = orjson.loads(orjson.dumps(task_records(ALL)))
    assert tuple(Task.parse(one) for one in content) == ALL
    for wrong in ({"name": "x"}, {"name": 1, "kind": "number"}, {**content[0], "more": 1},
                  {**content[2], "mean": "0"}, {**content[0], "classes": 3}):  # fmt: skip
        with pytest.raises(InvalidConfig, match="not a task"):
            Task.parse(wrong)
