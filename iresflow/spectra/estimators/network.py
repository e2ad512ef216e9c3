"""Networks on spectra as scikit-learn estimators: training and prediction."""

from abc import abstractmethod
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from iresflow.errors import NonFiniteError
from iresflow.spectra.checks import Floats, require_members, require_same_grid, require_spectra
from iresflow.spectra.collection import grid_of
from iresflow.spectra.estimators.classifier import (
    ClassifierOfSpectra,
    labelled_spectra,
    weights_of_classes,
)
from iresflow.spectra.estimators.objective import SCORED, WeightedCrossEntropy
from iresflow.spectra.parameters import (
    require_count,
    require_flag,
    require_kind,
    require_not_negative,
)
from iresflow.training.build import resolve_device
from iresflow.training.fitting import fit
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.classification import predict

__all__ = ["NetworkClassifier", "tensor_of"]


def tensor_of(spectra: Floats, dtype: torch.dtype) -> Tensor:
    """Spectra as a tensor of a type, on the CPU."""
    return torch.from_numpy(np.require(spectra, requirements=["C", "W"])).to(dtype)


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
    shift: float
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
            X: ``(spectra, bins)``, 0 or more: an array, or `Spectra`, whose grid is remembered.
            y: Labels ``(spectra,)``.
            groups: Which core, patient or array each spectrum is of ``(spectra,)``: those of one
                are held out together or not at all. Without it, single spectra are held out.

        Raises:
            ValueError: data, a grid or parameters that don't fit; see `require_spectra`.
            NonFiniteError: a loss or gradient is not finite.
        """
        spectra, numbers, classes = labelled_spectra(X, y)
        if groups is not None:
            (groups,) = require_members(len(spectra), groups=groups)
        require_count(epochs=self.epochs, batch_size=self.batch_size)
        require_not_negative(shift=self.shift)
        require_flag(verbose=self.verbose)
        require_kind((str, int, torch.device), device=self.device)
        _require_validation(self.validation, len(spectra))
        grid = grid_of(X, self.grid, spectra.shape[1])
        device = resolve_device(self.device)
        seed = _drawn_seed(self.random_state)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            network = self._network(spectra.shape[1], len(classes), grid).to(device)
        values = tensor_of(spectra, torch.get_default_dtype())
        train, held = self._parts(values, torch.from_numpy(numbers), groups, seed)
        assert train.labels is not None
        if len(lost := np.setdiff1d(numbers, train.labels.numpy())):
            raise ValueError(
                f"all spectra of class {classes[lost[0]]} are held out: hold fewer out, or make "
                "smaller groups"
            )
        weights = weights_of_classes(self.class_weight, classes, train.labels.numpy())
        fitted = fit(
            network,
            train.values,
            train.labels,
            validation=None if held is None else (held.values, held.labels),
            objective=WeightedCrossEntropy(tuple(weights.tolist()), float(self.shift)),
            seed=seed,
            bar=bool(self.verbose),
            title=type(self).__name__,
            **self._options(len(train), 0 if held is None else len(held)),
        )
        self.classes_, self.n_features_in_ = classes, spectra.shape[1]
        self.grid_, self.network_ = grid, network
        self.history_, self.steps_ = fitted.history, fitted.steps
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Logits ``(spectra, classes)``; of two classes, the second's less the first's.

        Raises:
            ValueError: spectra of another number of bins or on another grid than at fitting, or as
                `require_spectra`.
            NonFiniteError: the network gives NaN or infinity.
        """
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities ``(spectra, classes)``, in the order of ``classes_``.

        Raises:
            ValueError: as `decision_function`.
            NonFiniteError: as `decision_function`.
        """
        found: Floats = self._logits(X).softmax(1).numpy()
        return found

    def _logits(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        spectra = require_spectra(X, self.n_features_in_, by=self)
        require_same_grid(grid_of(X, self.grid), self.grid_)
        dtype = next(self.network_.parameters()).dtype
        logits = predict(self.network_, tensor_of(spectra, dtype), SCORED).cpu()
        if not bool(logits.isfinite().all()):
            raise NonFiniteError(
                "the network gives NaN or infinity: its weights are damaged, or the intensities "
                f"are far from those of fitting, up to {spectra.max():g}"
            )
        return logits

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

    def _parts(
        self, values: Tensor, labels: Tensor, groups: ArrayLike | None, seed: int
    ) -> tuple[Batch, Batch | None]:
        """The spectra to train on, and those to choose by or None."""
        if not self.validation:
            return Batch(values, labels), None
        cut = StratifiedShuffleSplit if groups is None else GroupShuffleSplit
        split = cut(n_splits=1, test_size=self.validation, random_state=seed)
        train, held = next(split.split(np.zeros(len(labels)), labels.numpy(), groups))
        whole = Batch(values, labels)
        return Batch.of(whole, torch.from_numpy(train)), Batch.of(whole, torch.from_numpy(held))

    def _options(self, samples: int, held: int) -> dict[str, Any]:
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


def _drawn_seed(random_state: object) -> int:
    """A seed for all that is random, from a parameter as scikit-learn has it."""
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError as error:
        raise ValueError(f"random_state: {error}") from None


def _require_validation(validation: object, spectra: int) -> None:
    """Raises a ValueError where what is held out is neither a share nor a count nor None."""
    if validation is None:
        return
    end = spectra if isinstance(validation, Integral) else 1
    if isinstance(validation, bool) or not (
        isinstance(validation, Real) and 0 <= float(validation) < end
    ):
        raise ValueError(
            f"validation is a share from 0 to 1, a count below that of the {spectra} spectra, or "
            f"None, got {validation!r}"
        )
