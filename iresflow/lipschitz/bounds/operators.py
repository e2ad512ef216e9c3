"""Linear layers of PyTorch as operators: any stride, dilation, groups and padding."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import product
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from iresflow.ambient import own_arithmetic
from iresflow.lipschitz.bounds.axes import Reading, Spectrum, tap_matrices
from iresflow.lipschitz.bounds.banded import taps_bound, taps_cost
from iresflow.lipschitz.bounds.base import EPS, Bound, scaled
from iresflow.lipschitz.bounds.localized import localized_norm
from iresflow.lipschitz.bounds.matrix import matrix_norm
from iresflow.lipschitz.bounds.symbol import symbol_norm
from iresflow.lipschitz.layers.estimates import lanczos, normalized
from iresflow.lipschitz.layers.linear import (
    BANDED_ALWAYS,
    BANDED_LIMIT,
    LOOSE_LIMIT,
    MET,
    TWIST_LIMIT,
)
from iresflow.lipschitz.layers.operator import Operator, OperatorFamily
from iresflow.lipschitz.layers.padding import Grid

__all__ = ["ModuleOperator"]

DENSE = (512, 2**21)
"""Least side and entries of the largest matrices that are written out."""

TAPS = 2**12
"""Pixels of an axis times taps, at most, where each pair of pixels is looked at."""


@final
@dataclass(frozen=True)
class ModuleOperator(OperatorFamily):
    r"""The linear part of a module, on images ``(N, C, H, W)``.

    Sequences are images of height 1, vectors images of one pixel. A transposed convolution is the
    adjoint of a convolution; that is what the attributes say.

    Attributes:
        shape: Of the module's weight.
        rows, columns: What the convolution reads along both axes.
        groups: Of its channels.
        transposed: Whether the module is its adjoint.
    """

    shape: torch.Size
    rows: Reading
    columns: Reading
    groups: int = 1
    transposed: bool = False

    # What it does to images.

    def start(self, like: Tensor) -> Tensor:
        """A fixed random unit vector of the range, of a tensor's type and device."""
        generator = torch.Generator().manual_seed(0)
        if self.transposed:
            shape = (self.shape[1] * self.groups, self.rows.size, self.columns.size)
        else:
            shape = (self.shape[0], self.rows.outputs, self.columns.outputs)
        vector = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return normalized(vector).to(like)

    def operator(self, weight: Tensor, bias: Tensor | None = None) -> Operator:
        act = partial(self._back if self.transposed else self._act, self._kernel(weight))
        return act if bias is None else lambda x: act(x) + bias.view(-1, 1, 1)

    def adjoint(self, weight: Tensor) -> Operator:
        return partial(self._act if self.transposed else self._back, self._kernel(weight))

    def weight_gradient(self, x: Tensor, u: Tensor) -> Tensor:
        image, result = (u, x) if self.transposed else (x, u)
        shape = (*self.shape[:2], self.rows.taps, self.columns.taps)
        wide = self._extend(image)
        return conv2d_weight(wide, shape, result, **self._options).view(self.shape)

    @cached_property
    def _options(self) -> dict[str, Any]:
        axes = (self.rows, self.columns)
        return {
            "stride": tuple(axis.stride for axis in axes),
            "dilation": tuple(axis.dilation for axis in axes),
            "groups": self.groups,
        }

    def _kernel(self, weight: Tensor) -> Tensor:
        return weight.view(*self.shape[:2], self.rows.taps, self.columns.taps)

    def _act(self, kernel: Tensor, x: Tensor) -> Tensor:
        return F.conv2d(self._extend(x), kernel, **self._options)

    def _back(self, kernel: Tensor, u: Tensor) -> Tensor:
        channels = self.shape[1] * self.groups
        sizes = (self.rows.size, self.columns.size)
        image = u.new_zeros(len(u), channels, *sizes)
        pull: Any = torch.func.vjp(self._extend, image)
        wide, retract = pull
        gradient: Tensor = retract(conv2d_input(wide.shape, kernel, u, **self._options))[0]
        return gradient

    def _extend(self, x: Tensor) -> Tensor:
        amounts = [n for axis in (self.columns, self.rows) for n in (axis.before, axis.after)]
        modes = {axis.mode for axis in (self.rows, self.columns)} - {"zeros"}
        return F.pad(x, amounts, mode=modes.pop() if modes else "constant")

    # Bounds.

    def smooth_bound(self, weight: Tensor) -> Tensor:
        return torch.stack([self._fourier(kernel) for kernel in self.kernels(weight)]).amax()

    def tight_bound(self, weight: Tensor, left: Tensor) -> Bound:
        with own_arithmetic(), torch.no_grad():
            weight = weight.detach().cpu().double()
            left = left.cpu().to(weight, copy=True)
            lower = cache(lambda: float(lanczos(self, weight, left)))
            # The groups are independent: most need no more than the cheap bound.
            cheap = [(float(self._fourier(kernel)), kernel) for kernel in self.kernels(weight)]
            best = Bound(0.0, 0.0, "gram")
            for upper, kernel in sorted(cheap, key=lambda pair: -pair[0]):
                if upper <= best.upper:
                    break
                best = _larger(best, self._bound(kernel, upper, lower))
            return best

    def kernels(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The kernels of the groups."""
        return self._kernel(weight).chunk(self.groups)

    @cached_property
    def _spectra(self) -> tuple[Spectrum, Spectrum]:
        return self.rows.spectrum(), self.columns.spectrum()

    @property
    def _gain(self) -> float:
        rows, columns = self._spectra
        return rows.gain * columns.gain * (1 + 1e-15)

    def _fourier(self, kernel: Tensor) -> Tensor:
        """The bound by the symbol, of any size of image; differentiable."""
        if kernel[0, 0].numel() == 1:
            return matrix_norm(kernel.flatten(1))[0] * self._gain
        rows, columns = self._spectra
        kernel = columns.phases(rows.phases(kernel.mT).mT)
        grids: tuple[Grid, ...] = tuple(product(rows.twists(), columns.twists()))
        work = rows.size * columns.size * min(kernel.shape[:2]) ** 3
        return symbol_norm(kernel, grids[: max(1, int(TWIST_LIMIT // work))])[0] * self._gain

    def _bound(self, kernel: Tensor, upper: float, lower: Callable[[], float]) -> Bound:
        """The tightest bound of a group that is affordable.

        Arguments:
            kernel: Of the group.
            upper: Its bound by the symbol.
            lower: An estimate of the whole operator's norm.
        """
        method = "fourier" if self._gain < 1 + 1e-12 else "extended"
        best = Bound(0.0, 0.0, "gram")
        for rows, columns in self.blocks:
            bound = _dense(kernel, rows, columns) or self.banded(
                kernel, rows, columns, upper, lower
            )
            if bound is None:
                near = self._localized(kernel) if method == "extended" else None
                if near is not None and near < upper:
                    return Bound(near, lower(), "localized")
                return Bound(upper, lower(), method)
            best = _larger(best, bound)
        return best if best.upper <= upper else Bound(upper, best.estimate, method)

    def _localized(self, kernel: Tensor) -> float | None:
        """The bound of a group from a smaller image, or None where there is no such bound."""
        axes = (self.rows, self.columns)
        if any(a.mode == "circular" or a.stride > 1 or a.dilation > 1 for a in axes):
            return None
        return localized_norm(kernel, self.rows, self.columns, BANDED_LIMIT, LOOSE_LIMIT)

    @cached_property
    def blocks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """What is independent of each other: the parts of the rows with those of the columns."""
        return list(product(self.rows.parts(), self.columns.parts()))

    def banded(
        self,
        kernel: Tensor,
        rows: np.ndarray,
        columns: np.ndarray,
        upper: float,
        lower: Callable[[], float],
    ) -> Bound | None:
        """The bound by a factorisation, or None where that of the symbol will do, or has to."""
        if max(max(len(p), int(p.max()) + 1) * p.shape[1] for p in (rows, columns)) > TAPS:
            return None
        matrices = tap_matrices(rows), tap_matrices(columns)
        cost = taps_cost(kernel, *matrices)
        if cost > BANDED_ALWAYS:
            limit = BANDED_LIMIT if self._gain < 1 + 1e-12 else LOOSE_LIMIT
            if cost > limit or upper <= MET * lower():
                return None
        return taps_bound(kernel, *matrices)


def _dense(kernel: Tensor, rows: np.ndarray, columns: np.ndarray) -> Bound | None:
    """The bound by the whole matrix, or None where it is large.

    Up to k l taps add up to an entry, which is then off by k l eps times the sum of their absolute
    values.
    """
    many, few, *sides = kernel.shape
    outputs = many * len(rows) * len(columns)
    inputs = few * (int(rows.max()) + 1) * (int(columns.max()) + 1)
    pointwise = outputs * inputs == many * few
    if not pointwise and (min(outputs, inputs) > DENSE[0] or outputs * inputs > DENSE[1]):
        return None
    kernel, power = scaled(kernel)
    if power == 0.0:
        return Bound(0.0, 0.0, "gram")
    matrices = tap_matrices(rows), tap_matrices(columns)
    entries = "aoy,ipx,dcai->dopcyx"
    matrix = torch.einsum(entries, *matrices, kernel).reshape(outputs, inputs)
    absolute = torch.einsum(entries, *matrices, kernel.abs())
    slack = 2 * sides[0] * sides[1] * EPS * float(torch.linalg.vector_norm(absolute))
    upper, lower = matrix_norm(matrix)
    return Bound(
        (float(upper) + slack) * (1 + 4 * EPS) * power, max(lower - slack, 0.0) * power, "gram"
    )


def _larger(a: Bound, b: Bound) -> Bound:
    """The bound of two independent operators together."""
    top = a if a.upper >= b.upper else b
    return Bound(top.upper, max(a.estimate, b.estimate), top.method)
