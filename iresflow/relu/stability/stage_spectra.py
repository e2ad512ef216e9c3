"""The singular values of all stages of a linearisation, in one pass.

Everything after a stage sees its matrix A only through the rows that are on. Where these are
fewer, r, than the directions that are moved, c, A is L Q with orthonormal rows in Q ``(r, c)``,
and whatever follows has the same non-zero singular values with L in the place of A. So r
directions go on from there, and those that are lost count as zeros without a tolerance.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from iresflow.errors import SpectrumError
from iresflow.relu.ranks import Spectrum, roots_of_gram, singular_values
from iresflow.relu.stability.local_map import LocalMap, Stage

__all__ = ["extreme_singular_values", "stage_spectra"]

DENSE = 2000
"""Singular values up to which all of them are computed, where two are asked for.

That takes seconds at most, where Lanczos iterations for a small one may have no end.
"""

ENTRIES = 2**27
"""Of the largest matrix for that: 1 GiB."""


def stage_spectra(
    local: LocalMap, first: Spectrum | None = None
) -> Iterator[tuple[Stage, Spectrum]]:
    """The singular values of each stage: those of `LocalMap.matrices`, several times faster.

    Arguments:
        local: The linearisation, c of whose entries are moved.
        first: The spectrum of the first stage, if it is known already: it is the same everywhere.

    Yields:
        Each stage with its min(m, c) singular values, from the input on.
    """
    moved, pixels = local.directions(), True
    for number, (stage, part) in enumerate(local.parts()):
        moved = part.forward(moved)
        on = part.slopes != 0 if stage.activated else torch.ones(stage.size, dtype=torch.bool)
        if int(on.sum()) < len(moved):
            moved, pixels = _reduced(moved, on), False
        if number == 0 and first is not None:
            yield stage, first
            continue
        found = _values(moved, on, tuple(part.layer.affine.out_shape) if pixels else ())
        size = min(stage.size, len(local.columns))
        yield stage, Spectrum(torch.cat([found, found.new_zeros(size - len(found))]))


def _reduced(moved: Tensor, on: Tensor) -> Tensor:
    """As many directions as units are on, with the same singular values, ``(r, m)``."""
    _, triangle = torch.linalg.qr(moved[:, on], mode="r")
    fewer = moved.new_zeros(len(triangle), moved.shape[1])
    fewer[:, on] = triangle
    return fewer


def _values(moved: Tensor, on: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The singular values of ``(c, m)``, falling, without those of entries that nothing sees."""
    gram = _gram(moved, shape)
    seen = gram.diagonal() > 0
    if not bool(seen.any()):
        return moved.new_zeros(0)
    found = roots_of_gram(gram[seen][:, seen].numpy())
    if found is None:
        return singular_values(moved[seen][:, on]).values
    return torch.from_numpy(found)


def _gram(moved: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inner products of the directions ``(c, m)``, in outputs of that shape.

    Of images line by line, because a line sees few pixels of the input in the first layers.
    """
    if len(shape) != 3:
        return moved @ moved.mT
    gram = moved.new_zeros(len(moved), len(moved))
    for line in moved.unflatten(1, shape).unbind(2):
        part = line.flatten(1)
        seeing = part.count_nonzero(1).nonzero()[:, 0]
        part = part[seeing]
        gram[seeing[:, None], seeing] += part @ part.mT
    return gram


def extreme_singular_values(
    local: LocalMap, stage: Stage, *, tolerance: float = 1e-6, iterations: int = 20_000
) -> tuple[float, float]:
    """The smallest and the largest singular value of a stage.

    The smallest one is of the shorter side of the matrix without the units that are off: 0 says
    that the stage is locally invariant to a direction, or has redundant units. From the matrix
    where its shorter side is at most `DENSE` and 1 GiB holds it; above, by Lanczos iterations,
    which form products only. There small values take many, and those below 1e-6 of the largest
    are not told from 0.

    Arguments:
        local: The linearisation.
        stage: Where.
        tolerance: Of the iterations, relative to the largest.
        iterations: At most.

    Raises:
        SpectrumError: no convergence.
    """
    rows = torch.arange(stage.size)
    if stage.activated and bool(local.slopes[stage.layer].any()):
        rows = local.slopes[stage.layer].nonzero()[:, 0]
    shape = (len(rows), len(local.columns))
    if min(shape) <= DENSE and shape[0] * shape[1] <= ENTRIES:
        values = singular_values(local.matrix(stage)[rows]).values
        return float(values[-1]), float(values[0])

    def forward(v: Tensor) -> Tensor:
        return local.product(v[None], stage)[0, rows]

    def backward(u: Tensor) -> Tensor:
        full = u.new_zeros(1, stage.size)
        full[0, rows] = u
        return local.adjoint(full, stage)[0]

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
            f"Lanczos iterations for {stage} did not converge ({error}); allow more, or a "
            "larger tolerance"
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
