r"""Linear layers whose operator norm is held below a coefficient by construction.

The weight that acts is :math:`\tilde W = W \min(1, c / \sigma)` (thesis, eq. 4.9), computed in
every forward pass. In training mode :math:`\sigma` is the norm by warm-started power iteration,
and the gradient flows through it; in eval mode it is the buffer ``sigma``, so that nothing is
iterated. `NormalizedLayer.enforce` sets that buffer to a rigorous upper bound of the norm of W:
from then on the layer's certified bound is c.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from iresflow.lipschitz.bounds import (
    Bound,
    LipschitzMap,
    fourier_bound,
    gram_bound,
    matrix_bound,
)

__all__ = ["NormalizedConv2d", "NormalizedDense", "NormalizedLayer"]

TRAINING_ITERATIONS = 5
"""Power iterations in a training step, warm-started (five in the code of the i-ResNet paper)."""

SETTLING_ITERATIONS = 50
"""Power iterations where the vectors start cold, or where the estimate is to be reported."""

GRAM_LIMIT = 1024
"""Largest dimension whose Gram matrix is materialised for a tight bound; above it, the DFT."""


class NormalizedLayer(nn.Module, LipschitzMap, ABC):
    """A linear layer ``x -> A x + b`` with a bounded operator norm.

    Arguments:
        weight: The initial raw weight.
        outputs: The number of bias entries.
        left_shape: Shape of one vector of the operator's range, for the power iteration.
        coeff: The norm's upper limit c, in (0, 1).

    Raises:
        ValueError: coeff is not in (0, 1).
    """

    def __init__(
        self, weight: Tensor, outputs: int, left_shape: tuple[int, ...], coeff: float
    ) -> None:
        super().__init__()
        if not 0 < coeff < 1:
            raise ValueError(
                f"coeff must lie strictly between 0 and 1, got {coeff}: a branch whose layers "
                "reach norm 1 need not be contractive, so its block need not be invertible"
            )
        self.coeff = coeff
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.left: Tensor
        self.sigma: Tensor
        self.register_buffer("left", _normalized(torch.randn(left_shape)))
        self.register_buffer("sigma", torch.ones(()))
        self._certificate: tuple[int, Bound] | None = None
        self.settle()

    # The operator, for any weight of the layer's shape.

    @abstractmethod
    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """A x for a batch ``(N, ...)``, without the bias."""

    @abstractmethod
    def adjoint_kernel(self, weight: Tensor) -> Tensor:
        """The weight in the form that `multiply_adjoint` takes, once for many products."""

    @abstractmethod
    def multiply_adjoint(self, u: Tensor, kernel: Tensor) -> Tensor:
        """The adjoint of A times a batch ``(N, ...)``; kernel from `adjoint_kernel`."""

    @abstractmethod
    def weight_gradient(self, x: Tensor, u: Tensor) -> Tensor:
        """Gradient of the sum of ``u * (A x)`` with respect to the weight."""

    @abstractmethod
    def _upper(self, weight: Tensor) -> tuple[float, str]:
        """A rigorous upper bound of the operator norm at this weight, and its method."""

    # Normalisation.

    def normalized_weight(self) -> Tensor:
        """The weight that acts, with its norm held at c; attached to the graph."""
        if self.training:
            sigma = self._iterate(self.weight, TRAINING_ITERATIONS)
            self.sigma.copy_(sigma.detach())
        else:
            sigma = self.sigma
        return self.weight * (self.coeff / sigma.clamp_min(_tiny(sigma))).clamp(max=1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.normalized_weight()
        return self.multiply(x, weight) + broadcast_bias(self.bias, x.ndim)

    def train(self, mode: bool = True) -> "NormalizedLayer":
        leaving_training = self.training and not mode
        super().train(mode)
        if leaving_training:
            # The optimiser has moved the weight since the last forward pass normalised it.
            self.settle()
        return self

    @torch.no_grad()
    def settle(self) -> None:
        """Runs the power iteration until it has settled, and stores its estimate."""
        self.sigma.copy_(self._iterate(self.weight, SETTLING_ITERATIONS))

    @torch.no_grad()
    def enforce(self) -> None:
        """Stores a certified norm of the raw weight in place of the estimate, if it exceeds c.

        A layer whose certified bound already is at most c keeps its weight as it is.
        """
        if self.bound().upper > self.coeff:
            upper, _ = self._upper(self.weight)
            # One part in 1e5 pays for the rounding of the float32 product weight * (c / sigma).
            self.sigma.fill_(upper * (1 + 1e-5))

    def bound(self) -> Bound:
        """Certified bound of the layer as eval mode applies it.

        It is computed anew only when the weight has changed (told by its bytes, since a version
        counter misses writes through ``.data``).
        """
        with torch.no_grad():
            scale = (self.coeff / self.sigma.clamp_min(_tiny(self.sigma))).clamp(max=1)
            weight = self.weight * scale
            key = hash(weight.cpu().numpy().tobytes())
            if self._certificate is None or self._certificate[0] != key:
                upper, method = self._upper(weight)
                estimate = float(self._iterate(weight, SETTLING_ITERATIONS, keep=False))
                self._certificate = (key, Bound(upper, estimate, method))
        return self._certificate[1]

    def _iterate(self, weight: Tensor, iterations: int, *, keep: bool = True) -> Tensor:
        """Power iteration: an estimate of the norm from below, differentiable in the weight."""
        frozen = weight.detach()
        kernel = self.adjoint_kernel(frozen)
        left = self.left.unsqueeze(0)
        with torch.no_grad():
            for step in range(iterations):
                right = _normalized(self.multiply_adjoint(left, kernel))
                if step < iterations - 1:
                    left = _normalized(self.multiply(right, frozen))
        image = self.multiply(right, weight)
        left = _normalized(image.detach())
        if keep:
            self.left.copy_(left.squeeze(0))
        return (left * image).sum()

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, coeff={self.coeff}"


@final
class NormalizedDense(NormalizedLayer):
    """A dense layer ``(B, n) -> (B, m)``.

    Arguments:
        inputs, outputs: n and m.
        coeff: The norm's upper limit, in (0, 1).
    """

    def __init__(self, inputs: int, outputs: int, *, coeff: float) -> None:
        weight = torch.empty(outputs, inputs)
        nn.init.kaiming_uniform_(weight, a=5**0.5)
        super().__init__(weight, outputs, (outputs,), coeff)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def adjoint_kernel(self, weight: Tensor) -> Tensor:
        return weight.mT

    def multiply_adjoint(self, u: Tensor, kernel: Tensor) -> Tensor:
        return F.linear(u, kernel)

    def weight_gradient(self, x: Tensor, u: Tensor) -> Tensor:
        return u.mT @ x

    def _upper(self, weight: Tensor) -> tuple[float, str]:
        return matrix_bound(weight), "svd"


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
        super().__init__(weight, outputs, (outputs, *range_size), coeff)

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

    def _upper(self, weight: Tensor) -> tuple[float, str]:
        if self.pointwise:
            return matrix_bound(weight.flatten(1)), "svd"
        pixels = self.image_size[0] * self.image_size[1]
        inputs, outputs = weight.shape[1] * pixels, self.left.numel()
        if min(inputs, outputs) <= GRAM_LIMIT:
            return self._gram_upper(weight, inputs <= outputs), "gram"
        return fourier_bound(weight, self.image_size), "fourier"

    def _gram_upper(self, weight: Tensor, on_inputs: bool) -> float:
        weight = weight.detach().to("cpu", torch.float64)
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
        return gram_bound(product, size, inner * self.kernel_size**2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, image_size={self.image_size}, stride={self.stride}"


def broadcast_bias(bias: Tensor, ndim: int) -> Tensor:
    """A bias ``(C,)``, or one for each sample ``(B, C)``, shaped to add to ``ndim`` dimensions."""
    return bias.reshape(*bias.shape, *[1] * (ndim - 2))


def _normalized(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x).clamp_min(_tiny(x))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
