"""What is common to networks on spectra as scikit-learn estimators: training and prediction."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor, nn

from iresflow.spectra.checks import Floats, require_grid, require_same_grid, require_spectra
from iresflow.spectra.objective import WeightedCrossEntropy
from iresflow.spectra.storage import Stored
from iresflow.training.build import resolve_device
from iresflow.training.fitting import fit
from iresflow.training.objectives.classification import predict

__all__ = ["ClassifierOfSpectra", "NetworkClassifier", "labelled_spectra", "tensor_of"]


def labelled_spectra(X: ArrayLike, y: ArrayLike) -> tuple[Floats, np.ndarray, np.ndarray]:
    """Spectra ``(N, bins)``, class numbers ``(N,)``, and the classes in order.

    Raises:
        ValueError: spectra or labels that aren't such, different lengths, or one class alone.
    """
    spectra = require_spectra(X)
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    labels = column_or_1d(y, warn=True)
    check_classification_targets(labels)
    if len(labels) != len(spectra):
        raise ValueError(f"{len(spectra)} spectra and {len(labels)} labels")
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"all {len(labels)} spectra are of one class, {classes[0]}: a classifier learns from "
            "two classes at least"
        )
    return spectra, numbers, classes


def tensor_of(spectra: Floats, dtype: torch.dtype) -> Tensor:
    """Spectra as a tensor of a type, on the CPU."""
    return torch.from_numpy(np.require(spectra, requirements=["C", "W"])).to(dtype)


class ClassifierOfSpectra(Stored, ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier of arrays of spectra ``(spectra, bins)``, none below 0."""

    classes_: np.ndarray
    n_features_in_: int

    @abstractmethod
    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities ``(spectra, classes)``, in the order of ``classes_``."""

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most likely class of each spectrum ``(spectra,)``.

        Raises:
            ValueError: as `predict_proba`.
        """
        best = self.predict_proba(X).argmax(1)  # first: it says so if nothing is fitted
        found: np.ndarray = self.classes_[best]
        return found

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 (a class of newer versions)
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


@dataclass(frozen=True)
class _Split:
    """Rows to train on and rows to choose by; none of the latter where nothing is held out."""

    train: np.ndarray
    held: np.ndarray


class NetworkClassifier(ClassifierOfSpectra):
    """A network that is trained by `iresflow.fit`.

    Subclasses have the network's parameters and those named below.

    Attributes:
        classes_: The classes in order.
        n_features_in_: Bins of the spectra.
        grid_: The grid of fitting, as floats, or None.
        network_: The trained network, in eval mode.
        history_: What was logged in training: mappings with a ``step`` each.
        steps_: Steps of training that were done.
    """

    grid: ArrayLike | None
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    validation: float | int | None
    patience: int | None
    class_weight: Mapping[Any, float] | str | None
    device: str
    verbose: bool
    random_state: int | np.random.RandomState | None

    @abstractmethod
    def _network(self, bins: int, classes: int, grid: Floats | None) -> nn.Module:
        """A new network from ``(B, bins)`` to logits ``(B, classes)``."""

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Trains a new network.

        Arguments:
            X: ``(spectra, bins)``, 0 or more.
            y: Labels ``(spectra,)``.
            groups: Which core, patient or array each spectrum is of ``(spectra,)``: those of one
                are held out together or not at all. Without it, single spectra are held out.

        Raises:
            ValueError: data, a grid or parameters that don't fit; see `require_spectra`.
            NonFiniteError: a loss or gradient is not finite.
        """
        spectra, numbers, classes = labelled_spectra(X, y)
        grid = None if self.grid is None else require_grid(self.grid, spectra.shape[1])
        device = resolve_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        split = self._split(numbers, groups, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network(spectra.shape[1], len(classes), grid).to(device)
        values = tensor_of(spectra, torch.get_default_dtype())
        labels = torch.from_numpy(numbers)
        held = None
        if len(split.held):
            held = values[split.held], labels[split.held]
        fitted = fit(
            network,
            values[split.train],
            labels[split.train],
            validation=held,
            objective=WeightedCrossEntropy(self._weights(classes, numbers[split.train])),
            seed=seed,
            bar=bool(self.verbose),
            title=type(self).__name__,
            **self._options(len(split.train), len(split.held)),
        )
        self.classes_, self.n_features_in_ = classes, spectra.shape[1]
        self.grid_, self.network_ = grid, network
        self.history_, self.steps_ = fitted.history, fitted.steps
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Logits ``(spectra, classes)``; of two classes, the second's less the first's.

        Raises:
            ValueError: spectra of another number of bins, or as `require_spectra`; or ``grid`` is
                another one than at fitting.
        """
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities ``(spectra, classes)``, in the order of ``classes_``.

        Raises:
            ValueError: as `decision_function`.
        """
        found: Floats = self._logits(X).softmax(1).numpy()
        return found

    def _logits(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        require_same_grid(self.grid, self.grid_)
        spectra = require_spectra(X, self.n_features_in_, by=self)
        dtype = next(self.network_.parameters()).dtype
        return predict(self.network_, tensor_of(spectra, dtype), 256).cpu()

    def _fitted(self) -> dict[str, Any]:
        fitted = super()._fitted()
        return {**fitted, "network_": dict(fitted["network_"].state_dict())}

    def _restore(self, fitted: Mapping[str, Any]) -> None:
        state = fitted["network_"]
        super()._restore({name: v for name, v in fitted.items() if name != "network_"})
        with torch.random.fork_rng(devices=[]):
            network = self._network(self.n_features_in_, len(self.classes_), self.grid_)
        dtype = next(value.dtype for value in state.values() if value.is_floating_point())
        network.to(dtype).load_state_dict(state)
        self.network_ = network.eval()

    def _weights(self, classes: np.ndarray, numbers: np.ndarray) -> tuple[float, ...]:
        """Of the classes; their mean over the samples that are trained on is 1."""
        weights = np.ones(len(classes))
        present = np.unique(numbers)
        named = self.class_weight
        if isinstance(named, Mapping):
            named = {
                int(np.flatnonzero(classes == k)[0]): v
                for k, v in named.items()
                if k in classes[present]
            }
        weights[present] = compute_class_weight(named, classes=present, y=numbers)
        return tuple(float(w) for w in weights / weights[numbers].mean())

    def _split(self, numbers: np.ndarray, groups: ArrayLike | None, seed: int) -> _Split:
        rows = np.arange(len(numbers))
        if not self.validation:
            return _Split(rows, rows[:0])
        cut = StratifiedShuffleSplit if groups is None else GroupShuffleSplit
        train, held = next(
            cut(n_splits=1, test_size=self.validation, random_state=seed).split(
                rows, numbers, groups
            )
        )
        return _Split(train, held)

    def _options(self, samples: int, held: int) -> dict[str, Any]:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value < 1 or value != int(value):
                raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
        if self.patience is not None and not held:
            raise ValueError("patience counts validations: pass validation=0.1 or so as well")
        batch_size = min(int(self.batch_size), samples)
        per_epoch = samples // batch_size
        steps = int(self.epochs) * per_epoch
        return {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "warmup_steps": min(100, steps // 10),
            # The running means of BatchNorm are those of the weights now, not of their average.
            "ema_decay": 0.0,
            "validate_every": per_epoch if held else steps,
            "validation_samples": max(held, 1),
            "patience": self.patience,
            "log_every": per_epoch,
        }
