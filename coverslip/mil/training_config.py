"""Settings of a training of slide-level models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coverslip.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class MilConfig:
    """How a model is trained on one fold; fields of a TOML file.

    model           a name in `registry`; its arguments are a table in a TOML file
    epochs          at most
    bags_per_step   whose gradient a step follows. A Cox task compares the bags of a step with one
                    another: it wants several, and some events among them
    learning_rate   after the warm-up; it falls along half a cosine to a hundredth
    warm_up         share of the steps
    weight_decay    of AdamW
    patience        epochs without a better validation before it stops; 0 never stops early
    watch           what is better: a lower "loss", or a higher "score", the mean over tasks of
                    their main figure
    max_tiles       of a bag, drawn anew each epoch; 0 for all
    class_weights   all classes of a task count alike in its loss, however many bags they have
    precision       "float32"; "bfloat16", or "float16" on a GPU, under autocast
    seed            of everything drawn
    """

    model: str = "abmil"
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 50
    bags_per_step: int = 8
    learning_rate: float = 2e-4
    warm_up: float = 0.05
    weight_decay: float = 1e-4
    patience: int = 10
    watch: str = "loss"
    max_tiles: int = 0
    class_weights: bool = True
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"epochs": 1, "bags_per_step": 1, "patience": 0, "max_tiles": 0, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InvalidConfig(f"{name} must be at least {value}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise InvalidConfig(f"learning_rate must be in 0..1, got {self.learning_rate}")
        if not 0 <= self.warm_up < 1:
            raise InvalidConfig(f"warm_up must be at least 0, below 1, got {self.warm_up}")
        if not 0 <= self.weight_decay < float("inf"):
            raise InvalidConfig(f"weight_decay must be at least 0, got {self.weight_decay}")
        choices = {"watch": ("loss", "score"), "precision": ("float32", "bfloat16", "float16")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InvalidConfig(f"{name}: {' or '.join(known)}, got {getattr(self, name)!r}")
