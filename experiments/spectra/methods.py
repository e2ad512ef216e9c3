"""The methods that are compared, and how long their networks are trained."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Self

from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from iresflow.spectra import IsotopeNet, ResidualNet
from iresflow.training.sections import Section

__all__ = ["NETWORKS", "PLAIN", "Training", "isotope_net", "require_known", "residual_net"]


def require_known(kind: str, names: Collection[str], known: Collection[str]) -> None:
    """Raises a ValueError where one of some names is not among those of its kind."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown {kind} {unknown[0]!r}; choose from {', '.join(known)}")


@dataclass(kw_only=True)
class Training(Section):
    """How the networks are trained, in all experiments alike."""

    isotope_epochs: int = 60
    """Passes over the training spectra, IsotopeNet."""
    residual_epochs: int = 10
    """The same, ResidualNet."""
    batch_size: int = 32
    """Spectra in a step."""
    learning_rate: float = 2e-3
    """Of Adam."""
    shift: float = 0.9
    """Standard deviation in bins of random shifts of the spectra, anew in each step. 0.9 bins are
    as large as the errors of the simulated mass scales: 71 ppm at 2,000 Da."""

    def enough(self, spectra: int, *, isotope: int, residual: int) -> Self:
        """The same training, with more passes where there are few spectra.

        Arguments:
            spectra: To train on.
            isotope: How many spectra IsotopeNet sees at least, each of them once in each pass.
            residual: The same, ResidualNet.
        """
        return replace(
            self,
            isotope_epochs=max(self.isotope_epochs, isotope // spectra),
            residual_epochs=max(self.residual_epochs, residual // spectra),
        )


def isotope_net(training: Training, seed: int, **changed: object) -> IsotopeNet:
    """IsotopeNet, or a variant of it."""
    return IsotopeNet(
        epochs=training.isotope_epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        shift=training.shift,
        random_state=seed,
        **changed,
    )


def residual_net(training: Training, seed: int) -> ResidualNet:
    """ResidualNet."""
    return ResidualNet(
        epochs=training.residual_epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        shift=training.shift,
        random_state=seed,
    )


NETWORKS: Mapping[str, Callable[[Training, int], BaseEstimator]] = {
    "ResidualNet": residual_net,
    "IsotopeNet": isotope_net,
}

# Beside those of the thesis: what needs no training to speak of.
PLAIN: Mapping[str, Callable[[], BaseEstimator]] = {
    "nearest neighbour": lambda: KNeighborsClassifier(1),
    "linear": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
}
