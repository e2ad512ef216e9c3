"""Error bounds of layer-wise inversion: Lemma 2 and Theorem 3 of its supplement, evaluated.

The constants of Assumptions 2 and 3 are computed for the rows that are active, from below: what
the bounds say is proven as far as their conditions hold, and `ErrorBound.holds` tells that.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from iresflow.relu.inversion.network_inversion import NetworkInversion
from iresflow.relu.inversion.preactivation_ranges import observed_ranges
from iresflow.relu.networks.affine import as_array
from iresflow.relu.networks.network import Layer, Network
from iresflow.relu.programs import Program, solve
from iresflow.relu.ranks import singular_values

__all__ = ["ErrorBound", "bound_error", "error_bounds", "infinity_constant", "norm_constant"]


@final
@dataclass(frozen=True)
class ErrorBound:
    """How far the input found of one layer is from the true one, at most.

    Attributes:
        order: Of the norm, infinity or 1.
        noise: Norm of the noise of the observation that is assumed.
        constant: c with ``|A_I a| >= c |a|`` for all a, on the active rows I; 0 where their rank
            is not full.
        lemma: 2 noise / c (Lemma 2), known before the program is solved; infinite for c = 0.
        posterior: (misfit + noise) / c, of the solution found; never more than that by much.
        holds: Whether the conditions are met: the threshold is at least the noise, so that no row
            was taken for active that is not.
    """

    order: float
    noise: float
    constant: float
    lemma: float
    posterior: float
    holds: bool


def norm_constant(matrix: Tensor | np.ndarray, order: float) -> float:
    """A c > 0 with ``|A a| >= c |a|`` for all a, in the norm of that order, or 0.

    One over the norm of the pseudo-inverse, which is a left inverse:
    |a| = |A^+ A a| <= |A^+| |A a|.

    Arguments:
        matrix: A, ``(m, k)``.
        order: Infinity or 1.

    Raises:
        ValueError: another order, or values that are not finite.
    """
    matrix = _checked(matrix)
    if order not in (1, np.inf):
        raise ValueError(f"order is {order}; allowed are 1 and infinity")
    if singular_values(matrix).spans(matrix.shape[1]) != "yes":
        return 0.0
    return float(1 / np.linalg.norm(np.linalg.pinv(matrix), order))


def infinity_constant(matrix: Tensor | np.ndarray) -> float:
    """The largest such c for the l-infinity norm, by k linear programs.

    It is one over the smallest norm of a left inverse, and of that each row can be chosen apart:
    row i has the smallest l1 norm of all l with A^T l = e_i.

    Arguments:
        matrix: A, ``(m, k)``.

    Raises:
        ValueError: values that are not finite.
        LinearProgramError: the solver ended without an answer.
    """
    matrix = _checked(matrix)
    if norm_constant(matrix, np.inf) == 0:
        return 0.0
    rows, size = matrix.shape
    split = sparse.csr_array(np.hstack([matrix.T, -matrix.T]))
    largest = 0.0
    for i in range(size):
        unit = np.zeros(size)
        unit[i] = 1.0
        solved = solve(Program(np.ones(2 * rows), split, unit, unit, 0.0))
        largest = max(largest, solved.value)
    return 1 / largest


def bound_error(
    matrix: Tensor | np.ndarray,
    *,
    order: float,
    noise: float,
    misfit: float,
    epsilon: float,
    exact: bool = False,
) -> ErrorBound:
    """Lemma 2 for one layer.

    Arguments:
        matrix: The active rows of the layer, each times the slope of its piece, ``(m, k)``.
        order: Infinity or 1.
        noise: Norm of the noise.
        misfit: Norm of the misfit of the active rows at the solution.
        epsilon: The threshold that decided which rows are active.
        exact: Whether to compute the best constant by linear programs; only for infinity.

    Raises:
        ValueError: a negative or not finite number, or as `norm_constant`.
    """
    for name, value in (("noise", noise), ("misfit", misfit), ("epsilon", epsilon)):
        if not value >= 0:
            raise ValueError(f"{name} is {value}; allowed is 0 or more")
    if exact and order != np.inf:
        raise ValueError(f"the exact constant is known for infinity only, not for order {order}")
    constant = infinity_constant(matrix) if exact else norm_constant(matrix, order)
    return ErrorBound(
        order,
        noise,
        constant,
        2 * noise / constant if constant > 0 else np.inf,
        (misfit + noise) / constant if constant > 0 else np.inf,
        bool(noise <= epsilon and constant > 0),
    )


def error_bounds(
    network: Network,
    inversion: NetworkInversion,
    noise: float,
    *,
    order: float = np.inf,
    exact: bool = False,
) -> tuple[ErrorBound, ...]:
    """Theorem 3: the bounds of Lemma 2 from the last layer backwards, each the noise of the next.

    Arguments:
        network: That was inverted.
        inversion: By `InfinityNorm` for order infinity, by `OneNorm` for order 1.
        noise: Norm of the noise of the observation.
        order: Infinity or 1.
        exact: Whether to compute the best constants by linear programs; only for infinity.

    Returns:
        A bound for each layer of ``inversion.layers``; the last one is that of the code. It is
        proven if ``holds`` of all.

    Raises:
        ValueError: as `bound_error`.
    """
    bounds: list[ErrorBound] = []
    for layer, found, observation in zip(
        reversed(network.layers), inversion.layers, inversion.observations, strict=False
    ):
        if found.z is None:
            break
        matrix, misfit = _active(layer, found.z, found.epsilon, observation, order)
        bound = bound_error(
            matrix, order=order, noise=noise, misfit=misfit, epsilon=found.epsilon, exact=exact
        )
        bounds.append(bound)
        noise = min(bound.lemma, bound.posterior)
    return tuple(bounds)


def _active(
    layer: Layer, z: Tensor, epsilon: float, observation: Tensor, order: float
) -> tuple[Tensor, float]:
    """The active rows times the slopes of their pieces, and the norm of their misfit."""
    bias, x = layer.affine.bias.numpy(), observation.numpy()
    ranges = observed_ranges(bias, layer.slope, x, epsilon)
    rows, rates = layer.affine.matrix()[ranges.active], ranges.low_rate[ranges.active]
    misfit = (rows @ z.numpy() - ranges.low[ranges.active]) / rates
    scaled = (rows.toarray() if sparse.issparse(rows) else rows) / rates[:, None]
    return torch.from_numpy(scaled), float(np.linalg.norm(misfit, order)) if len(misfit) else 0.0


def _checked(matrix: Tensor | np.ndarray) -> np.ndarray:
    found = as_array(matrix, "the matrix", 2)
    if found.shape[1] == 0:
        raise ValueError(f"the matrix has shape {found.shape}; allowed is (m, k), k >= 1")
    return found
