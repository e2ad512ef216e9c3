"""The largest bias with which a ReLU layer keeps its input: Monte Carlo bias estimation.

Signs as in the paper: the layer is max(0, W x - alpha), its bias is minus alpha, and a *smaller*
alpha leaves more rows active.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from iresflow.relu.frames.active_rows import active_rows, checked_points, checked_weight
from iresflow.relu.networks.network import Layer

__all__ = [
    "BiasEstimate",
    "InjectivityPenalty",
    "estimate_bias",
    "maximal_bias",
    "share_of_biases",
    "share_of_points",
]


@final
@dataclass(frozen=True, eq=False)
class BiasEstimate:
    """What Monte Carlo bias estimation found.

    Attributes:
        alpha: alpha*, ``(m,)``; infinite for rows that were never among the n largest.
        samples: Number of points drawn.
        unchanged: How many of them came after the last change of alpha*.
        converged: Whether that is as many as the stopping rule asks for.
    """

    alpha: Tensor
    samples: int
    unchanged: int
    converged: bool


def maximal_bias(layer: Layer, x: Tensor) -> Tensor:
    """alpha*(X), the largest bias that keeps n rows active at all given points (Theorem 3.1).

    At each point the n largest coefficients <x, w_j> stay active if alpha_j is at most each of
    them; the minimum over the points keeps them at all. For a W that is full spark, it is then
    alpha-rectifying on X for every alpha <= alpha*(X), entry by entry.

    Arguments:
        layer: A ReLU layer with m >= n; its own bias plays no part.
        x: Points ``(B, n)``.

    Returns:
        alpha*, ``(m,)`` float64; infinite where a row is never among the n largest.

    Raises:
        ValueError: m < n, so no alpha is enough, or as `active_rows`.
    """
    weight = _redundant(layer)
    return _pointwise_bias(weight, checked_points(x, weight.shape[1])).amin(0)


def estimate_bias(
    layer: Layer,
    data: Tensor,
    *,
    sigma: float,
    patience: int,
    batch_size: int = 256,
    max_samples: int = 1_000_000,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> BiasEstimate:
    """Monte Carlo bias estimation with randomised smoothing (Algorithm 1).

    Points are drawn uniformly from the data, with Gaussian noise added; alpha* of all of them is
    kept until it has not changed for ``patience`` points. The paper's algorithm starts from
    -infinity, from where a minimum never moves; its section 3.2 starts from +infinity, as here.
    It draws one point a step, this one a batch, so it stops after a batch: at most one batch
    later, which can only make alpha* smaller, that is, safer.

    Arguments:
        layer: A ReLU layer with m >= n; its own bias plays no part.
        data: Training points ``(M, n)``.
        sigma: Standard deviation of the noise (the paper writes N(0, sigma I)), 0 for none.
        patience: s, the number of points for which alpha* has to stay the same.
        batch_size: Points a step.
        max_samples: Stop there without convergence.
        generator: Of the points and the noise; by default torch's global one.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: as `maximal_bias`, or another argument out of range.
    """
    weight = _redundant(layer)
    data = checked_points(data, weight.shape[1])
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; allowed is 0 or more")
    limits = {"patience": patience, "batch_size": batch_size, "max_samples": max_samples}
    for name, value in limits.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed is 1 or more")
    alpha = weight.new_full((len(weight),), torch.inf)
    drawn = last_change = 0
    with tqdm(
        total=patience, desc="bias", unit="point", disable=None if progress else True
    ) as bar:
        while drawn < max_samples and drawn - last_change < patience:
            count = min(batch_size, max_samples - drawn)
            index = torch.randint(len(data), (count,), generator=generator)
            noise = torch.randn(count, data.shape[1], generator=generator, dtype=torch.float64)
            values, places = _pointwise_bias(weight, data[index] + sigma * noise).min(0)
            lower = values < alpha
            if bool(lower.any()):
                # The last point of the batch that lowered any entry for good.
                last_change = drawn + int(places[lower].max()) + 1
                alpha = torch.minimum(alpha, values)
            drawn += count
            bar.n = min(patience, drawn - last_change)
            bar.set_postfix_str(f"{drawn} drawn")
    unchanged = drawn - last_change
    return BiasEstimate(alpha, drawn, unchanged, unchanged >= patience)


def share_of_points(layer: Layer, x: Tensor) -> float:
    """The naive measure of section 4.1: share of points with at least n active rows.

    Full spark makes each of them reconstructible (Lemma 2.9); `frame_bounds` measures the rank
    instead. Arguments and errors: as `active_rows`.
    """
    return float((active_rows(layer, x).sum(1) >= layer.affine.in_size).double().mean())


def share_of_biases(alpha: Tensor, alpha_star: Tensor) -> float:
    """The second measure of section 4.1: share of entries with alpha_i <= alpha*_i.

    Raises:
        ValueError: shapes that differ, or NaN.
    """
    if alpha.shape != alpha_star.shape or alpha.dim() != 1:
        raise ValueError(
            f"alpha has shape {tuple(alpha.shape)}, alpha* {tuple(alpha_star.shape)}; allowed "
            "is (m,) for both"
        )
    if bool(torch.isnan(alpha).any() | torch.isnan(alpha_star).any()):
        raise ValueError("alpha or alpha* holds NaN")
    return float((alpha <= alpha_star).double().mean())


@final
class InjectivityPenalty(nn.Module):
    """rho_inj(alpha), the 2-norm of what alpha exceeds alpha* by (section 4.2), to be trained on.

    alpha* is a constant of the penalty: call `update` now and then, since it belongs to the
    weights that it was estimated with; it is float64, whatever the layer is. At alpha <= alpha*
    value and gradient are 0.

    Arguments:
        units: m, the number of rows of the layer.

    >>> penalty = InjectivityPenalty(2)
    >>> penalty.update(torch.tensor([0.0, 1.0]))
    >>> round(float(penalty(torch.tensor([3.0, -5.0]))), 3)
    3.0
    """

    alpha_star: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        if units < 1:
            raise ValueError(f"units is {units}; allowed is 1 or more")
        unlimited = torch.full((units,), torch.inf, dtype=torch.float64)
        self.register_buffer("alpha_star", unlimited)

    def update(self, alpha_star: Tensor) -> None:
        """Sets alpha* ``(m,)``; until then it is infinite, and nothing is penalised.

        Raises:
            ValueError: another shape, or NaN.
        """
        if alpha_star.shape != self.alpha_star.shape or bool(torch.isnan(alpha_star).any()):
            raise ValueError(
                f"alpha* has shape {tuple(alpha_star.shape)} or holds NaN; allowed is "
                f"{tuple(self.alpha_star.shape)}, infinities included"
            )
        self.alpha_star.copy_(alpha_star.detach())

    def forward(self, alpha: Tensor) -> Tensor:
        """The penalty of alpha ``(m,)``, a scalar: of a layer, alpha is minus its bias."""
        if alpha.shape != self.alpha_star.shape:
            raise ValueError(
                f"alpha has shape {tuple(alpha.shape)}; allowed is {tuple(self.alpha_star.shape)}"
            )
        excess = (alpha.double() - self.alpha_star).clamp(min=0)
        return torch.linalg.vector_norm(excess).to(alpha.dtype)


def _pointwise_bias(weight: Tensor, x: Tensor) -> Tensor:
    """alpha(x) of eq. (6) for each point, ``(B, m)``."""
    coefficients = x @ weight.mT
    values, index = coefficients.topk(weight.shape[1], dim=1, sorted=False)
    return torch.full_like(coefficients, torch.inf).scatter_(1, index, values)


def _redundant(layer: Layer) -> Tensor:
    weight = checked_weight(layer)
    if weight.shape[0] < weight.shape[1]:
        raise ValueError(
            f"W has {weight.shape[0]} rows for {weight.shape[1]} dimensions: fewer can't "
            "determine a point, whatever the bias"
        )
    return weight
