"""A tile's class from its embedding, with probabilities that mean what they say.

    linear   multinomial logistic regression; its strength is chosen by cross-validation inside
    mlp      one hidden layer, stopped early on a part held out

One temperature divides all logits (Guo et al. 2017, arXiv:1706.04599). It is fitted on logits of
tiles that the network giving them had not seen, so it never changes which class is the most
probable, only how sure of it one may be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.durable import replace_file
from coverslip.errors import InvalidConfig, RecipeMismatch, printable
from coverslip.heads.recipe import HeadRecipe, head_content, read_recipe, read_weights

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Split = tuple[Integers, Integers]
Layer = tuple[Floats, Floats]
"""Weight [out, in] and bias [out]."""

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisation tried for the linear classifier, the most regularised first."""
TEMPERATURES = (0.05, 100.0)
BINS = 15
"""Of confidence, as Guo et al. measure the calibration error."""
LEAST_SPREAD = 0.1
"""Of the median spread: a number that hardly any tile in training had would else weigh without
bounds in a tile that has it."""
MOST_CLASSES = 254
"""Maps hold classes in a byte, and 255 where there is no tile."""
SAME_MPP = 0.02
"""Share by which pixel sizes may differ: scanners write 0.2527 for 0.25."""


@dataclass(frozen=True, slots=True)
class EmbeddingSource:
    """What made embeddings, and of what: a classifier understands no others.

    encoder          name, as in stores
    dim              numbers an embedding
    recipe_sha256    of the encoder's recipe; weights_sha256 of its checkpoint
    mpp, tile_px     µm per px of the tiles, and their side in such px
    stain            sha256 of the profile to whose colours tiles were brought; empty for none
    """

    encoder: str
    dim: int
    recipe_sha256: str
    weights_sha256: str
    mpp: float
    tile_px: int
    stain: str = ""

    def difference(self, other: EmbeddingSource) -> str:
        """What of `other` is not as it is here; empty where its embeddings mean the same."""
        for name in ("encoder", "dim", "weights_sha256", "recipe_sha256", "stain"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                words = name.replace("_sha256", "").replace("recipe", "a recipe of")
                return f"{words} {_short(theirs)}, not {_short(ours)}"
        if self.tile_px != other.tile_px or abs(other.mpp / self.mpp - 1) > SAME_MPP:
            return (
                f"tiles of {other.tile_px} px at {other.mpp:g} µm, not of {self.tile_px} px at "
                f"{self.mpp:g} µm"
            )
        return ""


@dataclass(frozen=True, eq=False)
class TileExamples:
    """Tiles with a class each.

    embeddings   float32 [N, D]
    labels       int64 [N], numbers of `classes`; every class has at least two
    classes      names
    source       what made the embeddings
    groups       int64 [N]: tiles of one group (a patient, a slide) are never on both sides of a
                 split; None where every tile stands for itself
    data         what they are, in words
    """

    embeddings: Floats
    labels: Integers
    classes: tuple[str, ...]
    source: EmbeddingSource
    groups: Integers | None = None
    data: str = ""

    def __post_init__(self) -> None:
        count = len(self.embeddings)
        if self.embeddings.shape != (count, self.source.dim) or self.labels.shape != (count,):
            raise ValueError(
                f"embeddings [N, {self.source.dim}] and labels [N] are wanted, got "
                f"{self.embeddings.shape} and {self.labels.shape}"
            )
        if self.groups is not None and self.groups.shape != (count,):
            raise ValueError(f"{count} tiles, but groups {self.groups.shape}")
        if not 2 <= len(self.classes) <= MOST_CLASSES:
            raise InvalidConfig(f"2 to {MOST_CLASSES} classes are wanted, got {len(self.classes)}")
        tiles = np.bincount(self.labels, minlength=len(self.classes))
        if tiles.min() < 2:
            rare = self.classes[int(tiles.argmin())]
            raise InvalidConfig(f"class {rare!r} has {tiles.min()} tiles; at least 2 are needed")
        if self.groups is not None and len(np.unique(self.groups)) < 2:
            raise InvalidConfig("at least two groups are needed to hold one out, got 1")


@dataclass(frozen=True, slots=True)
class TileTraining:
    """How a tile classifier is trained.

    kind       "linear" or "mlp"
    balanced   every class counts alike, also in the probabilities, however many tiles it has;
               else a class is as probable as it is frequent in training
    folds      of cross-validation, as far as there are groups or tiles for them
    hidden     width of the hidden layer; dropout behind it
    epochs     at most; patience: epochs without a better loss on the part held out
    seed       of folds and weights
    """

    kind: Literal["linear", "mlp"] = "linear"
    balanced: bool = False
    folds: int = 5
    hidden: int = 128
    dropout: float = 0.25
    epochs: int = 200
    patience: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "mlp"):
            raise InvalidConfig(f"kind: linear or mlp, got {self.kind!r}")
        if self.folds < 2:
            raise InvalidConfig(f"folds must be at least 2, got {self.folds}")


@dataclass(frozen=True, slots=True)
class TileFigures:
    """How well tiles were told whose groups had no part in the training, nor in the temperature.

    tiles, groups, folds    groups 0: every tile stood for itself
    balanced_accuracy       mean of `recall`, which goes by class
    log_loss, ece           calibrated, and `uncalibrated_...` with a temperature of 1; the expected
                            calibration error is that of the most probable class
    unseen                  tiles of a class that no other fold had: missed, and in neither of these
    confusion               [truth][guess] tiles
    """

    tiles: int
    groups: int
    folds: int
    balanced_accuracy: float
    recall: dict[str, float]
    log_loss: float
    uncalibrated_log_loss: float
    ece: float
    uncalibrated_ece: float
    unseen: int
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class TileNetwork:
    """mean, spread float32 [D] of what it was trained on; layers with rectifiers in between."""

    mean: Floats
    spread: Floats
    layers: tuple[Layer, ...]

    def logits(self, embeddings: npt.NDArray[Any]) -> Floats:
        """[N, D] -> float32 [N, C]; -inf for a class it was never shown."""
        x = (np.asarray(embeddings, np.float32) - self.mean) / self.spread
        for number, (weight, bias) in enumerate(self.layers):
            x = (np.maximum(x, 0) if number else x) @ weight.T + bias
        return np.asarray(x, np.float32)


@dataclass(frozen=True, eq=False)
class TileClassifier:
    """Embeddings in, probabilities out.

    recipe    task "tiles"; settings: temperature and `source`; training: settings and figures
    network   in its place
    """

    recipe: HeadRecipe
    network: TileNetwork

    @classmethod
    def fit(
        cls, examples: TileExamples, config: TileTraining, *, name: str, licence: str = ""
    ) -> TileClassifier:
        """Cross-validate, fit the temperature on what was held out, then train on all tiles.

        Raises InvalidConfig where the tiles cannot be split.
        """
        with _one_thread():
            held_out = _held_out(examples, config)
            network, strength = _trained(examples, np.arange(len(examples.labels)), config)
        weight = _weights(examples.labels, config.balanced)
        seen = held_out.seen
        temperature = fitted_temperature(held_out.logits[seen], examples.labels[seen], weight[seen])
        training = {
            **asdict(config),
            **({"strength": strength} if strength else {}),
            "figures": asdict(_figures(examples, held_out, weight)),
        }
        recipe = HeadRecipe(
            name=name,
            task="tiles",
            architecture=config.kind,
            arguments={
                "dim": examples.source.dim,
                **({"hidden": config.hidden} if config.kind == "mlp" else {}),
            },
            mpp=examples.source.mpp,
            classes=examples.classes,
            settings={"temperature": temperature, "source": asdict(examples.source)},
            licence=licence,
            data=examples.data,
            training=orjson.loads(orjson.dumps(training)),
        )
        return cls(recipe, network)

    @classmethod
    def load(cls, path: Path, source: EmbeddingSource | None = None) -> TileClassifier:
        """Of a file as `save` writes it.

        source   of the embeddings it is wanted for

        Raises InvalidConfig; RecipeMismatch where it was trained on embeddings of another source.
        """
        recipe = read_recipe(path)
        if recipe.task != "tiles":
            raise InvalidConfig(f"{path}: a head for {recipe.task}, no tile classifier")
        weights = read_weights(path)
        try:
            layers = tuple(
                (weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"])
                for i in range(2 if recipe.architecture == "mlp" else 1)
            )
            found = cls(recipe, TileNetwork(weights["mean"], weights["spread"], layers))
            wanted = (recipe.arguments["dim"], len(recipe.classes), found.temperature > 0)
            fits = (len(found.network.mean), len(layers[-1][1]), True) == wanted
            found.source.difference(found.source)
        except (KeyError, TypeError):
            fits = False
        if not fits:
            raise InvalidConfig(f"{path}: its weights do not fit its record")
        if source is not None:
            found.require(source, str(path))
        return found

    @cached_property
    def content(self) -> bytes:
        """The file."""
        weights = {"mean": self.network.mean, "spread": self.network.spread}
        for number, (weight, bias) in enumerate(self.network.layers):
            weights |= {f"layers.{number}.weight": weight, f"layers.{number}.bias": bias}
        return head_content(self.recipe, weights)

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.content).hexdigest()

    def save(self, path: Path) -> None:
        """One file, whole or not there."""
        replace_file(path, self.content)

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.recipe.classes

    @property
    def temperature(self) -> float:
        """What logits are divided by: above 1 where the network was too sure of itself."""
        return float(self.recipe.settings["temperature"])

    @cached_property
    def source(self) -> EmbeddingSource:
        """Whose embeddings it takes."""
        return EmbeddingSource(**self.recipe.settings["source"])

    @cached_property
    def figures(self) -> TileFigures:
        """Of its cross-validation."""
        return TileFigures(**self.recipe.training["figures"])

    def require(self, source: EmbeddingSource, where: str) -> None:
        """Raises RecipeMismatch, which begins with `where`, for embeddings of another source."""
        if which := self.source.difference(source):
            raise RecipeMismatch(
                f"{printable(where)}: the classifier {self.name} was trained on other embeddings: "
                f"here {which}\n"
                f"  it takes those of {self.source.encoder} (weights "
                f"{_short(self.source.weights_sha256)}), tiles of {self.source.tile_px} px at "
                f"{self.source.mpp:g} µm"
            )

    def logits(self, embeddings: npt.NDArray[Any]) -> Floats:
        """[N, D] -> float32 [N, C], before the temperature."""
        dim = self.recipe.arguments["dim"]
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ValueError(f"embeddings must be [N, {dim}], got {list(embeddings.shape)}")
        return self.network.logits(embeddings)

    def probabilities(self, embeddings: npt.NDArray[Any]) -> Floats:
        """[N, D] -> float32 [N, C]; rows sum to 1."""
        return softmax(self.logits(embeddings), self.temperature).astype(np.float32)


def softmax(logits: npt.NDArray[Any], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """[N, C] -> probabilities [N, C]; -inf is a probability of 0."""
    scaled = np.asarray(logits, np.float64) / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    found: npt.NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return found


def fitted_temperature(
    logits: npt.NDArray[Any], labels: Integers, weight: npt.NDArray[Any] | None = None
) -> float:
    """The temperature with the least log loss on [N, C] logits of tiles held out.

    weight   float [N] of each tile; all alike by default

    As in Platt's scaling, a share of 1 in N + 2 is taken from each label and spread over the
    classes: N tiles told right do not prove that none will ever be told wrong.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    weight = np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
    finite = np.isfinite(logits)
    target = finite / (finite.sum(axis=1, keepdims=True) * (len(labels) + 2))
    target[np.arange(len(labels)), labels] += 1 - 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        scaled = np.where(finite, np.asarray(logits, np.float64), 0) / np.exp(log_temperature)
        shifted = np.where(finite, scaled, -np.inf)
        top = shifted.max(axis=1, keepdims=True)
        total = top + np.log(np.exp(shifted - top).sum(axis=1, keepdims=True))
        return float(weight @ (target * (total - scaled)).sum(axis=1) / weight.sum())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def log_loss(
    probabilities: npt.NDArray[Any], labels: Integers, weight: npt.NDArray[Any] | None = None
) -> float:
    """Mean of -log p of the right class, natural; nan without tiles."""
    if not len(labels):
        return float("nan")
    right = probabilities[np.arange(len(labels)), labels]
    return float(np.average(-np.log(np.maximum(right, 1e-300)), weights=weight))


def calibration_error(
    probabilities: npt.NDArray[Any], labels: Integers, weight: npt.NDArray[Any] | None = None
) -> float:
    """Expected calibration error of the most probable class, in `BINS` even bins of confidence:
    how far, on average, confidence is from the share that is right. nan without tiles."""
    if not len(labels):
        return float("nan")
    weight = np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(bins, weights=weight * (right - confidence), minlength=BINS)
    return float(np.abs(gap).sum() / weight.sum())


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """Logits [N, C] of every tile from a network that had not seen its group; its fold [N]; and
    whether that network was shown the tile's class at all [N]."""

    logits: Floats
    fold: Integers
    seen: npt.NDArray[np.bool_]


def _held_out(examples: TileExamples, config: TileTraining) -> _HeldOut:
    count = len(examples.labels)
    logits = np.zeros((count, len(examples.classes)), np.float32)
    fold, seen = np.full(count, -1), np.zeros(count, np.bool_)
    splits = group_folds(examples.labels, examples.groups, config.folds, config.seed)
    if not splits:
        raise InvalidConfig("the tiles cannot be split so that every group stays together")
    for number, (train, test) in enumerate(splits):
        network, _ = _trained(examples, train, config)
        logits[test], fold[test] = network.logits(examples.embeddings[test]), number
        seen[test] = np.isin(examples.labels[test], examples.labels[train])
    return _HeldOut(logits, fold, seen)


def _figures(
    examples: TileExamples, held_out: _HeldOut, weight: npt.NDArray[np.float64]
) -> TileFigures:
    """Each fold is calibrated by the other folds' temperature, so that nothing is told twice."""
    labels, seen, count = examples.labels, held_out.seen, len(examples.classes)
    calibrated, plain = np.zeros((2, len(labels), count))
    folds = np.unique(held_out.fold)
    for number in folds:
        mine = held_out.fold == number
        others = ~mine & seen
        temperature = fitted_temperature(held_out.logits[others], labels[others], weight[others])
        calibrated[mine] = softmax(held_out.logits[mine], temperature)
        plain[mine] = softmax(held_out.logits[mine])
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, held_out.logits.argmax(axis=1)), 1)
    recall = confusion.diagonal() / confusion.sum(axis=1)
    asked = labels[seen], weight[seen]
    return TileFigures(
        tiles=len(labels),
        groups=0 if examples.groups is None else len(np.unique(examples.groups)),
        folds=len(folds),
        balanced_accuracy=float(recall.mean()),
        recall=dict(zip(examples.classes, recall.tolist(), strict=True)),
        log_loss=log_loss(calibrated[seen], *asked),
        uncalibrated_log_loss=log_loss(plain[seen], *asked),
        ece=calibration_error(calibrated[seen], *asked),
        uncalibrated_ece=calibration_error(plain[seen], *asked),
        unseen=int(np.count_nonzero(~seen)),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def group_folds(labels: Integers, groups: Integers | None, folds: int, seed: int) -> list[Split]:
    """(train, test) numbers of tiles, classes spread evenly, a group never on both sides.

    Fewer than `folds` where there are not as many groups, or tiles of the rarest class; none where
    nothing can be held out.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    _, tiles = np.unique(labels, return_counts=True)
    if groups is None:
        folds = min(folds, int(tiles.min()))
        kind = StratifiedKFold
    else:  # that a class has fewer tiles than folds does not matter here, but the library minds
        folds = min(folds, len(np.unique(groups)), max(2, int(tiles.min())))
        kind = StratifiedGroupKFold
    if folds < 2 or tiles.max() < 2:
        return []
    split = kind(folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    return [(train, test) for train, test in split if len(train) and len(test)]


def _weights(labels: Integers, balanced: bool) -> npt.NDArray[np.float64]:
    """[N], 1 on average."""
    if not balanced:
        return np.ones(len(labels))
    tiles = np.bincount(labels)
    return np.asarray(len(labels) / (np.count_nonzero(tiles) * tiles[labels]), np.float64)


def _trained(
    examples: TileExamples, chosen: Integers, config: TileTraining
) -> tuple[TileNetwork, float]:
    """A network trained on the chosen tiles, and the linear one's strength (else 0)."""
    part = examples.embeddings[chosen].astype(np.float32)
    mean, spread = part.mean(axis=0), part.std(axis=0)
    spread = np.maximum(spread, max(LEAST_SPREAD * float(np.median(spread)), 1e-6))
    x, labels = (part - mean) / spread, examples.labels[chosen]
    groups = None if examples.groups is None else examples.groups[chosen]
    count = len(examples.classes)
    if config.kind == "mlp":
        return TileNetwork(mean, spread, _mlp(x, labels, groups, count, config)), 0.0
    layer, strength = _linear(x, labels, groups, count, config)
    return TileNetwork(mean, spread, (layer,)), strength


def _linear(
    x: Floats, labels: Integers, groups: Integers | None, count: int, config: TileTraining
) -> tuple[Layer, float]:
    """In coordinates of the space that few tiles span, where nothing changes for a model whose
    weights are penalised by their length, and turned back."""
    basis: Floats | None = None
    if len(x) < x.shape[1]:
        basis = np.linalg.svd(x.astype(np.float64), full_matrices=False)[2].astype(np.float32)
        x = x @ basis.T
    strength = STRENGTHS[2]
    splits = group_folds(labels, groups, 3, config.seed) if np.bincount(labels).max() >= 3 else []
    if splits:
        strength = _best_strength(x, labels, splits, count, config)
    weight, bias = _logistic(x, labels, strength, count, config)
    return (weight if basis is None else weight @ basis, bias), strength


def _best_strength(
    x: Floats, labels: Integers, splits: list[Split], count: int, config: TileTraining
) -> float:
    """By log loss, on classes that both sides have."""
    losses = np.zeros(len(STRENGTHS))
    for train, test in splits:
        test = test[np.isin(labels[test], labels[train])]
        if not len(test):
            continue
        weight = _weights(labels, config.balanced)[test]
        for i, strength in enumerate(STRENGTHS):
            w, b = _logistic(x[train], labels[train], strength, count, config)
            losses[i] += log_loss(softmax(x[test] @ w.T + b), labels[test], weight)
    return STRENGTHS[int(losses.argmin())]


def _logistic(
    x: Floats, labels: Integers, strength: float, count: int, config: TileTraining
) -> Layer:
    from sklearn.linear_model import LogisticRegression

    weight = np.zeros((count, x.shape[1]), np.float32)
    bias = np.full(count, -np.inf, np.float32)
    present = np.unique(labels)
    bias[present] = 0
    if len(present) > 1:
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
        model.fit(x, labels, sample_weight=_weights(labels, config.balanced))
        told = present if len(present) > 2 else present[1:]  # of two, the second against the first
        weight[told], bias[told] = model.coef_, model.intercept_
    return weight, bias


def _mlp(
    x: Floats, labels: Integers, groups: Integers | None, count: int, config: TileTraining
) -> tuple[Layer, ...]:
    """Stopped early by the loss on about a sixth of the tiles; trained on the rest."""
    import torch
    from torch.nn.functional import cross_entropy

    splits = group_folds(labels, groups, 6, config.seed) or group_folds(labels, None, 6, 0)
    train, test = splits[0] if splits else (np.arange(len(x)), np.arange(len(x)))
    weight = torch.from_numpy(_weights(labels, config.balanced)).float()
    inputs, truth = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(labels)
    random = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of weights and dropout
        network = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], config.hidden),
            torch.nn.ReLU(),
            torch.nn.Dropout(config.dropout),
            torch.nn.Linear(config.hidden, count),
        )
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)

        def loss(rows: torch.Tensor) -> torch.Tensor:
            each = cross_entropy(network(inputs[rows]), truth[rows], reduction="none")
            return (each * weight[rows]).mean()

        best, since, kept = float("inf"), 0, network.state_dict()
        for _ in range(config.epochs):
            network.train()
            order = torch.from_numpy(train)[torch.randperm(len(train), generator=random)]
            for rows in torch.split(order, min(256, max(16, len(train) // 8))):
                optimiser.zero_grad(set_to_none=True)
                loss(rows).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            network.eval()
            with torch.inference_mode():
                now = float(loss(torch.from_numpy(test)))
            since += 1
            if now < best:
                best, since = now, 0
                kept = {k: v.clone() for k, v in network.state_dict().items()}
            if since >= config.patience:
                break
    first, last = ((kept[f"{i}.weight"].numpy(), kept[f"{i}.bias"].numpy()) for i in (0, 3))
    return first, last


@contextmanager
def _one_thread() -> Iterator[None]:
    """The matrices are small: threads would wait for one another, and change the last bits."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _short(value: object) -> str:
    return (str(value)[:12] if len(str(value)) == 64 else str(value)) or "none"
