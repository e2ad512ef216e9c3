"""The singular values of a network near some inputs, stage by stage.

Zero singular values are directions that the network is invariant to, locally; small ones are
directions that are nearly lost. The condition number is that of the non-zero ones.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor, nn

from iresflow.errors import SpectrumError
from iresflow.relu.networks.linearize import NetworkLinearization, linearize
from iresflow.relu.networks.stages import Stage
from iresflow.relu.ranks import Spectrum, singular_values

__all__ = ["StageSpectra", "extreme_singular_values", "image_window", "measure_stages"]

DENSE = 2000
"""Singular values up to which all of them are computed, where two are asked for.

That takes seconds at most, where Lanczos iterations for a small one may have no end.
"""

ENTRIES = 2**27
"""Of the largest matrix for that: 1 GiB."""


@final
@dataclass(frozen=True, eq=False)
class StageSpectra:
    """Singular values of a stage's Jacobians at S samples.

    Attributes:
        stage: The place in the network.
        active: Rows of each Jacobian that are not zero, S numbers: units that are on, and that the
            moved entries reach.
        spectra: Singular values at each sample.
    """

    stage: Stage
    active: tuple[int, ...]
    spectra: tuple[Spectrum, ...]

    def median(self) -> Tensor:
        """The median over samples of each singular value, falling; zeros included.

        Of an even number the lower one: the mean of a zero and a value would be neither.
        """
        return torch.stack([spectrum.values for spectrum in self.spectra]).median(0).values

    def median_of(self, measure: Callable[[Spectrum], float]) -> float:
        """The median over samples of a number, without those that are NaN; NaN of none."""
        found = torch.tensor([measure(one) for one in self.spectra], dtype=torch.float64)
        known = found[~found.isnan()]
        return float(known.quantile(0.5)) if len(known) else float("nan")


def measure_stages(
    module: nn.Module, samples: Iterable[Tensor], columns: Tensor | None = None
) -> list[StageSpectra]:
    """Singular values up to each stage of a network.

    Arguments:
        module: Any module that `linearize` takes.
        samples: Inputs ``(*in_shape)``, such as a tensor ``(S, *in_shape)``.
        columns: Entries of the flat input that are moved, such as `image_window`; None for all.

    Errors: see `linearize`.
    """
    found = [
        linearize(module, x[None]).each_stage(
            lambda stage, matrix: (stage, int(matrix.any(1).sum()), singular_values(matrix)),
            columns,
        )
        for x in samples
    ]
    return [
        StageSpectra(each[0][0], tuple(a for _, a, _ in each), tuple(s for _, _, s in each))
        for each in zip(*found, strict=True)
    ]


def image_window(shape: tuple[int, ...], side: int) -> Tensor:
    """The flat entries of the central square of images (C, H, W), all channels, ``(c,)``.

    Raises:
        ValueError: not the shape of images, or a window that is larger than they are.
    """
    if len(shape) != 3 or not 1 <= side <= min(shape[1:]):
        raise ValueError(f"a window of side {side} of images of shape {shape}; it must fit inside")
    channels, height, width = shape
    numbers = torch.arange(channels * height * width).reshape(shape)
    top, left = (height - side) // 2, (width - side) // 2
    return numbers[:, top : top + side, left : left + side].flatten()


def extreme_singular_values(
    local: NetworkLinearization, *, tolerance: float = 1e-6, iterations: int = 20_000
) -> tuple[float, float]:
    """The smallest and the largest singular value of a network at one point.

    The smallest one is of the shorter side of the Jacobian without its rows of zeros, which are
    those of units that are off: 0 says that the network is locally invariant to a direction, or
    has redundant units. From the matrix where its shorter side is at most `DENSE` and 1 GiB holds
    it; above, by Lanczos iterations, which form products only. There small values take many, and
    those below 1e-6 of the largest are not told from 0.

    Arguments:
        local: The linearisation; `NetworkLinearization.at` gives that of a stage.
        tolerance: Of the iterations, relative to the largest.
        iterations: At most.

    Raises:
        SpectrumError: no convergence.
        ValueError: several points.
    """
    if len(local.point) != 1:
        raise ValueError(f"there are {len(local.point)} points; allowed is one")
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(local.point.shape, generator=generator, dtype=torch.float64)
    # A row has product 0 with a random direction if it is zero, and else with probability 0.
    rows = local.jvp(probe[None]).flatten().nonzero()[:, 0]
    shape = (len(rows), local.point.numel())
    if not len(rows):
        return 0.0, 0.0
    if min(shape) <= DENSE and shape[0] * shape[1] <= ENTRIES:
        values = singular_values(local.matrix()[0][rows]).values
        return float(values[-1]), float(values[0])

    def forward(v: Tensor) -> Tensor:
        return local.jvp(v.view(1, *local.point.shape)).flatten()[rows]

    def backward(u: Tensor) -> Tensor:
        full = u.new_zeros(local.value.numel())
        full[rows] = u
        return local.vjp(full.view(1, *local.value.shape)).flatten()

    def gram(v: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.ravel(v))
        return (forward(backward(x)) if shape[0] <= shape[1] else backward(forward(x))).numpy()

    size = min(shape)
    try:
        top = _largest_eigenvalue(gram, size, tolerance, iterations)
        # From above: where the smallest is 0, an iteration for it may end at the next one.
        gap = _largest_eigenvalue(
            lambda v: top * np.ravel(v) - gram(v), size, tolerance**2, iterations
        )
    except ArpackError as error:
        raise SpectrumError(
            f"Lanczos iterations did not converge ({error}); allow more, or a larger tolerance"
        ) from None
    return max(top - gap, 0.0) ** 0.5, top**0.5


def _largest_eigenvalue(
    product: Callable[[np.ndarray], np.ndarray], size: int, tolerance: float, iterations: int
) -> float:
    """Of a symmetric matrix, by its products ``(n,)`` to ``(n,)``."""
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    found = eigsh(
        operator, 1, which="LA", v0=start, tol=tolerance, maxiter=iterations,
        return_eigenvectors=False,
    )  # fmt: skip
    return float(found[0])
