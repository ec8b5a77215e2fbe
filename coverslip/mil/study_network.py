"""A model of bags beside what else is known of a patient: age, sex, stage."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from coverslip.mil.slide_model import SlideModel, SlideOutput


class StudyNetwork(nn.Module):
    """logits = the model's of the bag + a perceptron's of the covariates.

    model        of the bag
    covariates   how many numbers are known beside it; 0 has no perceptron
    hidden       width of the perceptron

    As the two are only added, a model's contributions and `covariate_logits` sum to the logits:
    the covariates are one more term beside the tiles.
    """

    def __init__(self, model: SlideModel, covariates: int = 0, hidden: int = 32) -> None:
        super().__init__()
        if covariates < 0:
            raise ValueError(f"covariates must be at least 0, got {covariates}")
        self.model, self.covariates, self.outputs = model, covariates, model.outputs
        self.beside = (
            nn.Sequential(
                nn.Linear(covariates, hidden), nn.ReLU(), nn.Linear(hidden, model.outputs)
            )
            if covariates
            else None
        )

    def forward(self, tiles: Tensor, covariates: Tensor | None = None) -> SlideOutput:
        """tiles (n, dim) float32; covariates (c) float32, None where the network has none.

        Contributions are the model's alone. Raises ValueError for other covariates than it has.
        """
        found: SlideOutput = self.model(tiles)
        return self._beside(found, covariates)

    def prepare(self, means: Callable[[], Tensor]) -> None:
        """What the model keeps of the bags it is trained on; see `SlideModel.prepare`."""
        self.model.prepare(means)

    def with_own_loss(
        self, tiles: Tensor, covariates: Tensor | None, label: int | None
    ) -> tuple[SlideOutput, Tensor]:
        """The same, and the model's own loss; see `SlideModel.with_own_loss`."""
        found, loss = self.model.with_own_loss(tiles, label)
        return self._beside(found, covariates), loss

    def covariate_logits(self, covariates: Tensor | None) -> Tensor:
        """(outputs): what the covariates (c) add to the logits; zeros where the network has none.

        Raises ValueError for other covariates than it has.
        """
        given = 0 if covariates is None else covariates.numel()
        if given != self.covariates or (covariates is not None and covariates.ndim != 1):
            shape = None if covariates is None else tuple(covariates.shape)
            raise ValueError(f"covariates must be ({self.covariates},), got {shape}")
        if self.beside is None or covariates is None:
            return next(self.model.parameters()).new_zeros(self.outputs)
        logits: Tensor = self.beside(covariates)
        return logits

    def _beside(self, found: SlideOutput, covariates: Tensor | None) -> SlideOutput:
        more = self.covariate_logits(covariates)
        return found._replace(logits=found.logits + more, streams=found.streams + more)
