"""IsotopeNet (thesis, table 7.2) as a scikit-learn estimator."""

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from iresflow.spectra.checks import Floats
from iresflow.spectra.estimators.network import NetworkClassifier
from iresflow.spectra.networks.filters import Filters
from iresflow.spectra.networks.isotope import IsotopeNetwork

__all__ = ["IsotopeNet"]


@final
class IsotopeNet(NetworkClassifier):
    """A network whose features are of the size of isotope patterns (thesis, table 7.2).

    The defaults are those of the thesis where it names them (tables 7.2 and A.2, task LP); see
    `iresflow.spectra.networks.isotope` for the kernel of the locally connected layer.

    Arguments:
        grid: Masses of the bins ``(bins,)`` in daltons, for arrays, which don't have them. Filters
            in daltons and names of masses need them.
        filters: The convolutional part: `BinFilters`, the default, or `PhysicalFilters`.
        local_kernel: Kernel size of the locally connected layer, odd; 0 for no such layer.
        dropout: Share of features that are lost before it, in training.
        epochs: Passes over the training spectra.
        batch_size: Spectra in a step of training.
        learning_rate: Of Adam; it rises at first, and falls over the last three tenths.
        weight_decay: The factor of the weights that is added to their gradient.
        shift: Standard deviation, in bins, of random shifts along the bins that each spectrum gets
            each time it is seen in training, as by errors of the mass scale.
        validation: Spectra that are held out of those of ``fit``, a count or a share: the weights
            with the best score on them are left. None for none, and the last weights.
        patience: Epochs without a better score after which training ends; None for never.
        class_weight: A weight for each class, ``"balanced"``, or None, as in scikit-learn.
        device: Where to train: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        verbose: Whether to show a progress bar.
        random_state: Seed of all that is random.
    """

    def __init__(
        self,
        *,
        grid: ArrayLike | None = None,
        filters: Filters | None = None,
        local_kernel: int = 5,
        dropout: float = 0.3,
        epochs: int = 30,
        batch_size: int = 256,
        learning_rate: float = 5e-4,
        weight_decay: float = 0.01,
        shift: float = 0.0,
        validation: float | int | None = None,
        patience: int | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        device: str = "cpu",
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.grid = grid
        self.filters = filters
        self.local_kernel = local_kernel
        self.dropout = dropout
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
        return IsotopeNetwork(bins, classes, grid, self.filters, self.local_kernel, self.dropout)
