"""ResidualNet (thesis, table A.1) as a scikit-learn estimator."""

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from iresflow.spectra.checks import Floats
from iresflow.spectra.estimators.network import NetworkClassifier
from iresflow.spectra.networks.residual import ResidualNetwork

__all__ = ["ResidualNet"]


@final
class ResidualNet(NetworkClassifier):
    """A deep residual network as for images (thesis, table A.1): what IsotopeNet is compared with.

    Arguments:
        grid: Masses of the bins ``(bins,)`` in daltons, for arrays, which don't have them.
        epochs: Passes over the training spectra.
        batch_size: Spectra in a step of training.
        learning_rate: Of Adam; it rises at first, and falls over the last three tenths.
        weight_decay: The factor of the weights that is added to their gradient.
        shift: As of `IsotopeNet`.
        validation: As of `IsotopeNet`.
        patience: As of `IsotopeNet`.
        class_weight: As of `IsotopeNet`.
        device: As of `IsotopeNet`.
        verbose: Whether to show a progress bar.
        random_state: Seed of all that is random.
    """

    def __init__(
        self,
        *,
        grid: ArrayLike | None = None,
        epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float = 5e-4,
        weight_decay: float = 0.001,
        shift: float = 0.0,
        validation: float | int | None = None,
        patience: int | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        device: str = "cpu",
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.grid = grid
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.shift = shift
        self.validation = validation
        self.patience = patience
        self.class_weight = class_weight
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def _network(self, bins: int, classes: int, grid: Floats | None) -> nn.Module:
        return ResidualNetwork(bins, classes)
