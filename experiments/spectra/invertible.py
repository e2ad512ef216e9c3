"""A residual network on the bins of spectra that is invertible, and proven to be."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np
import torch
from torch import Tensor

from iresflow import InvertibleClassifier, Krylov, fit
from iresflow.logdet import LogDetEstimator
from iresflow.training.objectives.hybrid import Hybrid
from iresflow.training.sections import Section

__all__ = ["InvertibleNet", "InvertibleTraining"]


@dataclass(kw_only=True)
class InvertibleTraining(Section):
    """The invertible network on bins, and its training."""

    bins: int = 8
    """Neighbouring bins that are the channels at one place: 1.3 Da at 2,000 Da."""
    blocks: int = 2
    """Residual blocks."""
    hidden: int = 16
    """Channels inside of their branches."""
    steps: int = 150
    """Of training, with 32 spectra each."""
    learning_rate: float = 2e-3
    """Of its training."""
    weight: float = 1.0
    """Of the log-likelihood, in nats a bin, beside the cross entropy in nats."""


@final
class InvertibleNet:
    """An `InvertibleClassifier` with convolutions over the bins, trained for classes and density.

    A spectrum is taken as an image of height 1 whose channels are neighbouring bins: the squeeze
    of images, along masses. The last bins that fill no such group are left away. The read-out has
    weights for each mass, as the locally connected layer of IsotopeNet has.
    """

    def __init__(self, training: InvertibleTraining, seed: int) -> None:
        self.training = training
        self.seed = seed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.training!r}, {self.seed})"

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Trains a new network on spectra ``(N, bins)`` and their labels ``(N,)``."""
        training = self.training
        self.classes_, numbers = np.unique(y, return_inverse=True)
        x = self._images(X)
        torch.manual_seed(self.seed)
        self.network_ = InvertibleClassifier(
            x.shape[1:],
            len(self.classes_),
            (training.blocks,),
            training.hidden,
            pad=0,
            read_out="flat",
            kernels=(3, 1, 3),
        )
        objective = Hybrid.of(self.network_, training.weight)
        fit(
            self.network_,
            x,
            torch.from_numpy(numbers),
            objective=objective,
            validation=None,
            seed=self.seed,
            steps=training.steps,
            batch_size=min(32, len(x)),
            learning_rate=training.learning_rate,
            warmup_steps=min(20, training.steps // 5),
            title="InvertibleNet",
        )
        self.network_.eval()
        self.prior_ = objective.prior
        return self

    @torch.no_grad()
    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities ``(N, classes)``."""
        found: np.ndarray = self.network_(self._images(X)).double().softmax(1).numpy()
        return found

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most likely classes ``(N,)``."""
        found: np.ndarray = self.classes_[self.predict_proba(X).argmax(1)]
        return found

    @torch.no_grad()
    def log_prob(self, X: np.ndarray, log_det: LogDetEstimator | None = None) -> np.ndarray:
        """Log-densities ``(N,)`` of spectra, in nats; by ``Krylov(probes=2)`` if not told."""
        x = self._images(X).double()
        z, volume = self.network_.transform_and_log_det(x, log_det or Krylov(probes=2))
        found: np.ndarray = (self.prior_.log_prob(z) + volume).numpy()
        return found

    def _images(self, X: np.ndarray) -> Tensor:
        """Spectra ``(N, bins)`` as images ``(N, channels, 1, places)``."""
        each = self.training.bins
        places = X.shape[1] // each
        groups = X[:, : places * each].reshape(len(X), places, each)
        return torch.from_numpy(groups.transpose(0, 2, 1)[:, :, None].astype(np.float32))
