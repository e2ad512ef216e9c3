"""Which masses a network on spectra uses: gradients of its scores, averaged over spectra.

A mass is where it is in all spectra, unlike an edge in images, so gradients can be averaged
(thesis, section 7.5; Behrmann et al., 2018).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.signal import find_peaks
from sklearn.utils.validation import check_is_fitted

from iresflow.spectra.checks import Floats, require_grid, require_same_grid, require_spectra
from iresflow.spectra.collection import grid_of
from iresflow.spectra.estimators.network import NetworkClassifier, tensor_of
from iresflow.spectra.estimators.objective import SCORED
from iresflow.spectra.parameters import require_count, require_kind, require_positive
from iresflow.spectra.patterns import ISOTOPE_DISTANCE

__all__ = ["SensitiveMass", "SensitivityMap", "sensitivity_map"]


@final
@dataclass(frozen=True)
class SensitiveMass:
    """A mass at which a map has a peak.

    Attributes:
        mass: In daltons.
        value: Of the map there.
        name: Of the known molecule that it belongs to, or an empty string.
    """

    mass: float
    value: float
    name: str


@final
@dataclass(frozen=True, eq=False)
class SensitivityMap:
    """The mean gradient of a class' score with respect to the intensities of spectra.

    Attributes:
        label: The class.
        masses: Of the bins ``(bins,)``, in daltons.
        values: ``(bins,)``, by how much the score grows for each unit of intensity.
        errors: ``(bins,)``, their standard errors as means over spectra; NaN for a single one.
        spectra: How many were averaged over.
    """

    label: object
    masses: Floats
    values: Floats
    errors: Floats
    spectra: int

    def peaks(
        self,
        count: int = 10,
        names: Mapping[str, float] | None = None,
        *,
        tolerance: float = 0.5,
        isotopes: int = 5,
    ) -> list[SensitiveMass]:
        """The masses where the map is farthest from 0, the farthest first.

        Arguments:
            count: How many at most; only local maxima of the absolute value count.
            names: The masses in daltons of molecules that are known, by name.
            tolerance: Daltons by which a peak may be beside a molecule's mass.
            isotopes: Peaks of a molecule's pattern after the first that bear its name, too.

        Raises:
            ValueError: a number that is out of its range, or names that are no masses by name.
        """
        names = {} if names is None else names
        require_count(count=count)
        require_count(0, isotopes=isotopes)
        require_positive(tolerance=tolerance)
        require_kind(Mapping, names=names)
        require_positive(**{f"names[{name!r}]": mass for name, mass in names.items()})
        size = np.abs(self.values)
        found, _ = find_peaks(np.concatenate([[0.0], size, [0.0]]))
        places = found - 1  # of the bins; the zeros let the first and last one be peaks
        best = places[np.argsort(-size[places], kind="stable")][:count]
        return [
            SensitiveMass(
                float(self.masses[place]),
                float(self.values[place]),
                _name_of(float(self.masses[place]), names, tolerance, isotopes),
            )
            for place in best
        ]


def sensitivity_map(
    model: NetworkClassifier,
    X: ArrayLike,
    label: object,
    grid: ArrayLike | None = None,
) -> SensitivityMap:
    """Which masses make a network say a class.

    The score of a class is its logit less the mean of all logits: what the softmax makes of logits
    does not change if one number is added to all.

    Arguments:
        model: Fitted, with a network.
        X: Spectra ``(spectra, bins)`` to average over, such as those of the class, as the network
            gets them.
        label: The class.
        grid: Masses of the bins ``(bins,)`` in daltons, of a model that has none; None for the
            model's own.

    Raises:
        ValueError: no network, an unknown class, spectra of another number of bins or on another
            grid than at fitting, or no grid.
    """
    require_kind(NetworkClassifier, model=model)
    check_is_fitted(model)
    spectra = require_spectra(X, model.n_features_in_, by=model)
    require_same_grid(grid_of(X, model.grid), model.grid_)
    grid = model.grid_ if grid is None else grid
    if grid is None:
        raise ValueError("a map needs the masses of the bins, and the model has none: grid=...")
    masses = require_grid(grid, spectra.shape[1])
    if model.grid_ is not None:
        require_same_grid(masses, model.grid_)
    places = np.flatnonzero(model.classes_ == label)
    if len(places) != 1:
        raise ValueError(f"no class {label!r}; there are {', '.join(map(str, model.classes_))}")
    total, squares = np.zeros(len(masses)), np.zeros(len(masses))
    for gradient in _gradients(model.network_, spectra, int(places[0])):
        total += gradient.sum(0)
        squares += (gradient**2).sum(0)
    count = len(spectra)
    values = total / count
    errors = np.full_like(values, np.nan)
    if count > 1:
        variance = np.maximum(squares / count - values**2, 0) * count / (count - 1)
        errors = np.sqrt(variance / count)
    return SensitivityMap(label, masses, values, errors, count)


def _gradients(network: torch.nn.Module, spectra: Floats, place: int) -> Iterator[Floats]:
    """The gradients of a class' score at some spectra at a time, in float64."""
    weight = next(network.parameters())
    for first in range(0, len(spectra), SCORED):
        part = tensor_of(spectra[first : first + SCORED], weight.dtype)
        x = part.to(weight.device).requires_grad_()
        logits = network(x)
        score = (logits[:, place] - logits.mean(1)).sum()
        yield torch.autograd.grad(score, x)[0].double().cpu().numpy()


def _name_of(mass: float, names: Mapping[str, float], tolerance: float, isotopes: int) -> str:
    """The molecule with the nearest peak within the tolerance, or an empty string."""
    distances = {
        name: np.abs(own + ISOTOPE_DISTANCE * np.arange(isotopes + 1) - mass).min()
        for name, own in names.items()
    }
    nearest = min(distances, key=lambda name: distances[name], default="")
    return nearest if nearest and distances[nearest] <= tolerance else ""
