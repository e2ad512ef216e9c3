"""Dense layers and convolutions with a bounded operator norm."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from iresflow.lipschitz.bounds import fourier_norm, gram_norm, matrix_norm
from iresflow.lipschitz.normalization import Normalization, PowerIteration
from iresflow.lipschitz.normalized import NormalizedLayer

__all__ = ["NormalizedConv2d", "NormalizedDense"]

GRAM_LIMIT = 1024
"""Largest dimension whose Gram matrix is materialised for a tight bound; above it, the DFT."""


@final
class NormalizedDense(NormalizedLayer):
    """A dense layer ``(B, n) -> (B, m)``.

    Arguments:
        inputs, outputs: n and m.
        coeff: The norm's upper limit, in (0, 1).
        normalization: What training divides the weight by; `PowerIteration` by default.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        coeff: float,
        normalization: Normalization | None = None,
    ) -> None:
        weight = torch.empty(outputs, inputs)
        nn.init.kaiming_uniform_(weight, a=5**0.5)
        super().__init__(weight, outputs, (outputs,), coeff, normalization or PowerIteration())

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def adjoint_kernel(self, weight: Tensor) -> Tensor:
        return weight.mT

    def multiply_adjoint(self, u: Tensor, kernel: Tensor) -> Tensor:
        return F.linear(u, kernel)

    def weight_gradient(self, x: Tensor, u: Tensor) -> Tensor:
        return u.mT @ x

    def smooth_norm(self, weight: Tensor) -> Tensor:
        return matrix_norm(weight)

    def tightest_norm(self, weight: Tensor) -> tuple[float, str]:
        return float(matrix_norm(weight.detach())), "svd"


@final
class NormalizedConv2d(NormalizedLayer):
    """A zero-padded convolution ``(B, C, H, W) -> (B, D, H', W')``.

    Its norm is that of the operator on images of the given size, not of the kernel reshaped to a
    matrix (thesis, section 4.2.1).

    Arguments:
        inputs, outputs: Channels C and D.
        kernel_size: Odd side of the kernel, in pixels.
        image_size: H and W.
        stride: Of the convolution. The padding is ``kernel_size // 2``.
        coeff: The norm's upper limit, in (0, 1).
        normalization: What training divides the weight by; `PowerIteration` by default.

    Raises:
        ValueError: the kernel size is even, or coeff is not in (0, 1).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        image_size: tuple[int, int],
        *,
        stride: int = 1,
        coeff: float,
        normalization: Normalization | None = None,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.kernel_size = kernel_size
        self.image_size = image_size
        self.stride = stride
        self.padding = kernel_size // 2
        self.pointwise = kernel_size == 1 and stride == 1
        weight = torch.empty(outputs, inputs, kernel_size, kernel_size)
        nn.init.kaiming_uniform_(weight, a=5**0.5)
        # A 1 x 1 convolution is the same matrix at each pixel: one pixel has its norm.
        self.iteration_size = (1, 1) if self.pointwise else image_size
        range_size = tuple((n - 1) // stride + 1 for n in self.iteration_size)
        left_shape = (outputs, *range_size)
        super().__init__(weight, outputs, left_shape, coeff, normalization or PowerIteration())

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    def adjoint_kernel(self, weight: Tensor) -> Tensor:
        if self.stride > 1:
            return weight
        # With stride 1 the adjoint is itself a convolution, by the flipped and transposed kernel;
        # on a CPU that is faster than a transposed convolution.
        return weight.transpose(0, 1).flip(2, 3).contiguous()

    def multiply_adjoint(self, u: Tensor, kernel: Tensor) -> Tensor:
        if self.stride > 1:
            # Only the power iteration and the bounds come here: both at the layer's own size.
            size = (u.shape[0], kernel.shape[1], *self.image_size)
            return conv2d_input(size, kernel, u, stride=self.stride, padding=self.padding)
        return F.conv2d(u, kernel, padding=self.padding)

    def weight_gradient(self, x: Tensor, u: Tensor) -> Tensor:
        shape = self.weight.shape
        return conv2d_weight(x, shape, u, stride=self.stride, padding=self.padding)

    def smooth_norm(self, weight: Tensor) -> Tensor:
        if self.pointwise:
            return matrix_norm(weight.flatten(1))
        return fourier_norm(weight, self.image_size)

    def tightest_norm(self, weight: Tensor) -> tuple[float, str]:
        weight = weight.detach()
        upper = float(self.smooth_norm(weight))
        if self.pointwise:
            return upper, "svd"
        pixels = self.image_size[0] * self.image_size[1]
        inputs, outputs = weight.shape[1] * pixels, self.left.numel()
        if min(inputs, outputs) > GRAM_LIMIT:
            return upper, "fourier"
        return min(upper, self._gram_norm(weight, inputs <= outputs)), "gram"

    def _gram_norm(self, weight: Tensor, on_inputs: bool) -> float:
        weight = weight.to("cpu", torch.float64)
        kernel = self.adjoint_kernel(weight)
        shape = (weight.shape[1], *self.image_size) if on_inputs else tuple(self.left.shape)

        def product(rows: Tensor) -> Tensor:
            images = rows.view(-1, *shape)
            if on_inputs:
                images = self.multiply_adjoint(self.multiply(images, weight), kernel)
            else:
                images = self.multiply(self.multiply_adjoint(images, kernel), weight)
            return images.flatten(1)

        inner = weight.numel() // min(weight.shape[:2])
        size = shape[0] * shape[1] * shape[2]
        return gram_norm(product, size, inner * self.kernel_size**2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, image_size={self.image_size}, stride={self.stride}"
