r"""Linear layers whose operator norm is held below a coefficient by construction.

The weight that acts is :math:`\tilde W = W \min(1, c / \sigma)` (thesis, eq. 4.9), computed in
every forward pass. In training :math:`\sigma` is what the layer's `Normalization` says of the norm
of W, and the gradient flows through it; in eval mode it is the buffer ``sigma``, so that nothing
is computed anew. `NormalizedLayer.enforce` sets that buffer to a rigorous upper bound of the norm:
from then on the layer's certified bound is at most c.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from iresflow.lipschitz.bounds import (
    Bound,
    LipschitzMap,
    fourier_norm,
    gram_norm,
    matrix_norm,
)

__all__ = [
    "NORMALIZATIONS",
    "Certified",
    "Normalization",
    "NormalizedConv2d",
    "NormalizedDense",
    "NormalizedLayer",
    "PowerIteration",
]

SETTLING_ITERATIONS = 50
"""Power iterations where the vectors start cold, or where the estimate is to be reported."""

GRAM_LIMIT = 1024
"""Largest dimension whose Gram matrix is materialised for a tight bound; above it, the DFT."""


class Normalization(ABC):
    """What training divides a layer's weight by."""

    @abstractmethod
    def norm(self, layer: "NormalizedLayer") -> Tensor:
        """The norm for a training step, a scalar that is differentiable in the weight."""

    @abstractmethod
    def settled_norm(self, layer: "NormalizedLayer") -> Tensor:
        """The norm for eval mode, when training is left."""

    @abstractmethod
    def certified_norm(self, layer: "NormalizedLayer") -> float:
        """A rigorous upper bound of the norm, as close as may be to what training divided by."""


@final
@dataclass(frozen=True)
class PowerIteration(Normalization):
    """Warm-started power iteration on the operator (thesis, section 4.2.1): cheap, from below.

    The optimiser grows the directions that the iteration has not found yet, so the true norm runs
    ahead of the estimate by a percent or two.

    Arguments:
        iterations: In each training step; five in the code of the i-ResNet paper.
    """

    iterations: int = 5

    def norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.estimate(layer.weight, self.iterations)

    def settled_norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.estimate(layer.weight, SETTLING_ITERATIONS, keep=False)

    def certified_norm(self, layer: "NormalizedLayer") -> float:
        return layer.tightest_norm(layer.weight)[0]


@final
@dataclass(frozen=True)
class Certified(Normalization):
    """The rigorous upper bound itself, in every step: what is trained is what is certified.

    Its cost is that of `fourier_norm` and `matrix_norm`: small where one side has few channels.
    """

    def norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.smooth_norm(layer.weight)

    def settled_norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.smooth_norm(layer.weight)

    def certified_norm(self, layer: "NormalizedLayer") -> float:
        return float(layer.smooth_norm(layer.weight))


NORMALIZATIONS: dict[str, Normalization] = {
    "certified": Certified(),
    "power-iteration": PowerIteration(),
}
"""The normalisations by the names that configurations use."""


class NormalizedLayer(nn.Module, LipschitzMap, ABC):
    """A linear layer ``x -> A x + b`` with a bounded operator norm.

    Arguments:
        weight: The initial raw weight.
        outputs: The number of bias entries.
        left_shape: Shape of one vector of the operator's range, for the power iteration.
        coeff: The norm's upper limit c, in (0, 1).
        normalization: What training divides the weight by.

    Raises:
        ValueError: coeff is not in (0, 1).
    """

    def __init__(
        self,
        weight: Tensor,
        outputs: int,
        left_shape: tuple[int, ...],
        coeff: float,
        normalization: Normalization,
    ) -> None:
        super().__init__()
        if not 0 < coeff < 1:
            raise ValueError(
                f"coeff must lie strictly between 0 and 1, got {coeff}: a branch whose layers "
                "reach norm 1 need not be contractive, so its block need not be invertible"
            )
        self.coeff = coeff
        self.normalization = normalization
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.left: Tensor
        self.sigma: Tensor
        self.register_buffer("left", _normalized(torch.randn(left_shape)))
        self.register_buffer("sigma", torch.ones(()))
        self._certificate: tuple[int, Bound] | None = None
        self._enforced: int | None = None
        with torch.no_grad():
            self.estimate(self.weight, SETTLING_ITERATIONS)  # so that training starts warm
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
    def smooth_norm(self, weight: Tensor) -> Tensor:
        """A rigorous upper bound of the operator norm, a float64 scalar with a gradient."""

    @abstractmethod
    def tightest_norm(self, weight: Tensor) -> tuple[float, str]:
        """The tightest rigorous upper bound that is affordable, and its method."""

    # Normalisation.

    def normalized_weight(self) -> Tensor:
        """The weight that acts, with its norm held at c; attached to the graph.

        The norm is computed anew where training does: in training mode with gradients on.
        """
        sigma = self.sigma
        if self.training and torch.is_grad_enabled():
            sigma = self.normalization.norm(self).to(self.weight.dtype)
            self.sigma.copy_(sigma.detach())
            self._enforced = None
        return self.weight * self._scale(sigma)

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
        """Brings the stored norm up to date with the weight, unless it is enforced already."""
        if self._enforced != self._weight_key():
            self.sigma.copy_(self.normalization.settled_norm(self))

    @torch.no_grad()
    def enforce(self) -> None:
        """Stores a certified norm of the raw weight: the layer's bound is at most c from then on.

        The raw weight, which training moves, stays as it is.
        """
        upper = self.normalization.certified_norm(self) + self._rounding()
        self.sigma.fill_(upper * (1 + 16 * torch.finfo(self.sigma.dtype).eps))
        self._enforced = self._weight_key()

    @torch.no_grad()
    def bound(self) -> Bound:
        """Certified bound of the layer as eval mode applies it.

        The norm of the raw weight is computed anew only when the weight has changed (told by its
        bytes, since a version counter misses writes through ``.data``).
        """
        key = self._weight_key()
        if self._certificate is None or self._certificate[0] != key:
            upper, method = self.tightest_norm(self.weight)
            estimate = float(self.estimate(self.weight, SETTLING_ITERATIONS, keep=False))
            self._certificate = (key, Bound(upper, estimate, method))
        raw, scale = self._certificate[1], float(self._scale(self.sigma))
        upper = (raw.upper + self._rounding()) * scale * (1 + 1e-15)
        return Bound(upper, raw.estimate * scale, raw.method)

    def estimate(self, weight: Tensor, iterations: int, *, keep: bool = True) -> Tensor:
        """The norm by power iteration, from below, differentiable in the weight.

        Arguments:
            weight: Of the layer's shape.
            iterations: With the operator and its adjoint, from where the last call ended.
            keep: Whether the next call starts from where this one ends.
        """
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
            # From the zero vector, that of a zero weight, the iteration would never come back.
            left_or_old = torch.where(left.any(), left.squeeze(0), self.left)
            self.left.copy_(left_or_old)
        return (left * image).sum()

    def _weight_key(self) -> int:
        return hash(self.weight.detach().cpu().numpy().tobytes())

    def _scale(self, sigma: Tensor) -> Tensor:
        return (self.coeff / sigma.clamp_min(_tiny(sigma))).clamp(max=1)

    def _rounding(self) -> float:
        """Upper bound of the norm of what rounding adds when the weight is scaled.

        Each entry of the product is off by eps at most, and the norm of a convolution is at most
        the sum of its taps' Frobenius norms.
        """
        taps = self.weight.detach().double().reshape(*self.weight.shape[:2], -1)
        taps = torch.linalg.vector_norm(taps, dim=(0, 1))
        return torch.finfo(self.weight.dtype).eps * float(taps.sum())

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, coeff={self.coeff}, {self.normalization}"


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


def broadcast_bias(bias: Tensor, ndim: int) -> Tensor:
    """A bias ``(C,)``, or one for each sample ``(B, C)``, shaped to add to ``ndim`` dimensions."""
    return bias.reshape(*bias.shape, *[1] * (ndim - 2))


def _normalized(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x).clamp_min(_tiny(x))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
