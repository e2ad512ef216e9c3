"""Dense layers and convolutions with a bounded operator norm."""

from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from iresflow.lipschitz.bounds.axes import Reading
from iresflow.lipschitz.bounds.banded import banded_bound, banded_cost
from iresflow.lipschitz.bounds.base import Bound
from iresflow.lipschitz.bounds.localized import localized_norm
from iresflow.lipschitz.bounds.matrix import matrix_norm
from iresflow.lipschitz.bounds.symbol import symbol_norm
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.convolution import convolve_and_back, gram_of_windows
from iresflow.lipschitz.layers.estimates import lanczos, power_iteration
from iresflow.lipschitz.layers.form import Alone, Form
from iresflow.lipschitz.layers.normalization import Bidiagonalization, Normalization
from iresflow.lipschitz.layers.operator import Operator
from iresflow.lipschitz.layers.padding import (
    CircularPadding,
    Grid,
    Padding,
    ReflectPadding,
    ZeroPadding,
)
from iresflow.tensors import linear

__all__ = ["NormalizedConv2d", "NormalizedDense"]

BANDED_ALWAYS = 1e9
"""Floating-point operations that a factorisation may cost where the DFT is not even tried."""

BANDED_LIMIT = 2e10
"""Most that it may cost, about a second: it replaces bounds by the DFT that may be loose."""

LOOSE_LIMIT = 2e11
"""The same where the DFT ignores a stride or allows for mirrored pixels: up to twice the norm."""

TWIST_LIMIT = 5e10
"""Most operations on Gram matrices for which several twists of the grid are compared."""

TRIED = 10
"""Power iterations for the estimate that tells whether the DFT's bound is tight enough."""

MET = 1.005
"""Ratio of a bound to the estimate below it at which the bound is tight enough."""


@final
class NormalizedDense(NormalizedLayer):
    """A dense layer ``(B, n) -> (B, m)``.

    Arguments:
        inputs, outputs: n and m.
        coeff: The norm's upper limit, in (0, 1).
        normalization: What training divides the weight by; `Bidiagonalization` by default.
        form: What acts of the normalised weight; `Alone` by default.
    """

    plain = True
    transposes = True

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        coeff: float,
        normalization: Normalization | None = None,
        form: Form | None = None,
    ) -> None:
        weight = torch.empty(outputs, inputs)
        nn.init.kaiming_uniform_(weight, a=5**0.5)
        normalization = normalization or Bidiagonalization()
        super().__init__(weight, outputs, (outputs,), coeff, normalization, form or Alone())

    def operator(self, weight: Tensor, bias: Tensor | None = None) -> Operator:
        return partial(linear, weight=weight, bias=bias)

    def adjoint(self, weight: Tensor) -> Operator:
        return partial(linear, weight=weight.mT)

    def weight_gradient(self, x: Tensor, u: Tensor) -> Tensor:
        return u.mT @ x

    def smooth_bound(self, weight: Tensor) -> Tensor:
        return matrix_norm(weight)[0]

    def tight_bound(self, weight: Tensor, left: Tensor) -> Bound:
        del left
        upper, lower = matrix_norm(weight.detach())
        return Bound(float(upper), lower, "gram")

    def taps(self) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones(1, 1, 1, dtype=torch.float64)
        return self.weight[:, :, None, None], one, one


@final
class NormalizedConv2d(NormalizedLayer):
    """A convolution ``(B, C, H, W) -> (B, D, H', W')``, padded by ``kernel_size // 2`` pixels.

    Its norm is that of the operator on images of the given size, not of the kernel reshaped to a
    matrix (thesis, section 4.2.1).

    Arguments:
        inputs, outputs: Channels C and D.
        kernel_size: Odd side of the kernel, in pixels.
        image_size: H and W.
        stride: Of the convolution.
        padding: What it reads beyond the border; `ZeroPadding` by default.
        coeff: The norm's upper limit, in (0, 1).
        normalization: What training divides the weight by; `Bidiagonalization` by default.
        form: What acts of the normalised weight; `Alone` by default.

    Raises:
        ValueError: the kernel size is even, coeff is not in (0, 1), or the image is too small for
            the padding.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        image_size: tuple[int, int],
        *,
        stride: int = 1,
        padding: Padding | None = None,
        coeff: float,
        normalization: Normalization | None = None,
        form: Form | None = None,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.padding = padding or ZeroPadding()
        self.padding.check(image_size, kernel_size // 2)
        self.kernel_size = kernel_size
        self.image_size = image_size
        self.stride = stride
        self.amplification = self.padding.amplification(image_size, kernel_size)
        self.pointwise = kernel_size == 1 and stride == 1
        self.plain = stride == 1 and (kernel_size == 1 or type(self.padding) is ZeroPadding)
        self.transposes = self.plain or (stride == 1 and type(self.padding) is CircularPadding)
        weight = torch.empty(outputs, inputs, kernel_size, kernel_size)
        nn.init.kaiming_uniform_(weight, a=5**0.5)
        # A 1 x 1 convolution is the same matrix at each pixel: one pixel has its norm.
        self.iteration_size = (1, 1) if self.pointwise else image_size
        range_size = tuple((n - 1) // stride + 1 for n in self.iteration_size)
        left_shape = (outputs, *range_size)
        normalization = normalization or Bidiagonalization()
        super().__init__(weight, outputs, left_shape, coeff, normalization, form or Alone())

    def operator(self, weight: Tensor, bias: Tensor | None = None) -> Operator:
        return self.padding.operator(weight, self.stride, bias)

    def adjoint(self, weight: Tensor) -> Operator:
        if self.stride > 1:
            # Only the power iteration comes here, at the layer's own size.
            return partial(
                self.padding.strided_adjoint,
                weight=weight,
                image_size=self.image_size,
                stride=self.stride,
            )
        # With stride 1 the adjoint is itself a convolution, by the flipped and transposed kernel;
        # on a CPU that is faster than a transposed convolution.
        return self.padding.adjoint(weight.transpose(0, 1).flip(2, 3).contiguous())

    def gram(self, weight: Tensor, domain: bool) -> Operator:
        kernel = weight if domain else weight.transpose(0, 1).flip(2, 3)
        few = kernel[0].numel() <= len(kernel)  # products where the windows are, not the channels
        if self.plain and self.kernel_size > 1 and few:
            return partial(convolve_and_back, gram=gram_of_windows(kernel), side=self.kernel_size)
        return super().gram(weight, domain)

    def weight_gradient(self, x: Tensor, u: Tensor) -> Tensor:
        shape = torch.Size((u.shape[1], x.shape[1], *self.weight.shape[2:]))
        return self.padding.weight_gradient(x, u, shape, self.stride)

    def smooth_bound(self, weight: Tensor) -> Tensor:
        if self.pointwise:
            return matrix_norm(weight.flatten(1))[0]
        return symbol_norm(weight, self._grids(2))[0] * self.amplification

    def tight_bound(self, weight: Tensor, left: Tensor) -> Bound:
        weight, left = weight.detach(), left.to(weight.dtype, copy=True)
        if self.pointwise:
            norm, lower = matrix_norm(weight.flatten(1))
            return Bound(float(norm), lower, "gram")
        if isinstance(self.padding, CircularPadding) and self.stride == 1:
            norm, lower = symbol_norm(weight, self._grids(1))
            return Bound(float(norm), lower, "fourier")
        upper = float(symbol_norm(weight, self._grids(4))[0]) * self.amplification
        cost = banded_cost(weight, self.image_size, self.stride, self.padding)
        if cost <= BANDED_ALWAYS:
            return self._banded_bound(weight, left, upper)
        estimate = float(power_iteration(self, weight, left, TRIED))
        if upper <= MET * estimate:
            return Bound(upper, estimate, "fourier")
        loose = self.stride > 1 or self.amplification > 1
        if cost <= (LOOSE_LIMIT if loose else BANDED_LIMIT):
            return self._banded_bound(weight, left, upper)
        estimate = float(lanczos(self, weight, left))
        if self.stride == 1 and isinstance(self.padding, ReflectPadding):
            near = localized_norm(weight, *self._readings(), BANDED_LIMIT, LOOSE_LIMIT)
            if near is not None and near < upper:
                return Bound(near, estimate, "localized")
        return Bound(upper, estimate, "fourier")

    def _readings(self) -> tuple[Reading, Reading]:
        """What a convolution of mirrored images reads along both axes, with stride 1."""
        margin = self.kernel_size // 2
        rows, columns = (
            Reading(n, self.kernel_size, before=margin, after=margin, mode="reflect")
            for n in self.image_size
        )
        return rows, columns

    def _banded_bound(self, weight: Tensor, left: Tensor, fourier: float) -> Bound:
        """The tighter of a factorisation's bound and that by the DFT, which may be exact."""
        bound = banded_bound(weight, self.image_size, self.stride, self.padding)
        if bound is None:
            return Bound(fourier, float(lanczos(self, weight, left)), "fourier")
        if fourier < bound.upper:
            return Bound(fourier, bound.estimate, "fourier")
        return bound

    def taps(self) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = (
            self.padding.taps(n, self.kernel_size, self.stride) for n in self.image_size
        )
        return self.weight, rows, columns

    def _grids(self, most: int) -> tuple[Grid, ...]:
        grids = self.padding.grids(self.image_size, self.kernel_size)[:most]
        work = sum(rows.size * columns.size for rows, columns in grids)
        # Where there is much to do, the image is large, and all twists are tight.
        if most == 1 or work * min(self.weight.shape[:2]) ** 3 <= TWIST_LIMIT:
            return grids
        return self._grids(most // 2)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, image_size={self.image_size}, stride={self.stride}, "
            f"padding={self.padding}"
        )
