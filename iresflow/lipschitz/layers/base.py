r"""The base of linear layers whose operator norm is held below a coefficient by construction.

The weight that acts is :math:`\tilde W = W \min(1, c / \sigma)` (thesis, eq. 4.9), computed in
every forward pass. In training :math:`\sigma` is what the layer's `Normalization` says of the norm
of W, and the gradient flows through it; in eval mode it is the buffer ``sigma``, so that nothing
is computed anew. `NormalizedLayer.enforce` sets that buffer to a rigorous upper bound of the norm:
from then on the layer's certified bound is at most c.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from iresflow.lipschitz.bounds.base import Bound, LipschitzMap
from iresflow.lipschitz.bounds.induced import entry_bounds
from iresflow.lipschitz.layers.normalization import SETTLING_ITERATIONS, Normalization
from iresflow.lipschitz.passes.native.norm import native_norm, native_norms

__all__ = ["NormalizedLayer", "Operator", "broadcast_bias"]

Operator = Callable[[Tensor], Tensor]
"""A linear (or affine) map of batches."""


class NormalizedLayer(nn.Module, LipschitzMap, ABC):
    """A linear layer ``x -> A x + b`` with a bounded operator norm.

    Attributes:
        amplification: Upper bound of the norm of what extends the input before the weight acts.
        plain: Whether it is a matrix, or a convolution with zero padding and stride 1.

    Arguments:
        weight: The initial raw weight.
        outputs: The number of bias entries.
        left_shape: Shape of one vector of the operator's range, for the power iteration.
        coeff: The norm's upper limit c, in (0, 1).
        normalization: What training divides the weight by.

    Raises:
        ValueError: coeff is not in (0, 1).
    """

    amplification: float = 1.0
    plain: bool = False

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
        self._bounds: tuple[tuple[int, float], dict[tuple[float, float], Bound]] | None = None
        self._enforced: int | None = None
        with torch.no_grad():
            self.estimate(self.weight, SETTLING_ITERATIONS)  # so that training starts warm
        self.settle()

    # The operator, for any weight of the layer's shape.

    @abstractmethod
    def operator(self, weight: Tensor, bias: Tensor | None = None) -> Operator:
        """A, plus a bias ``(D,)`` where one is given, prepared for many batches ``(N, ...)``."""

    @abstractmethod
    def adjoint(self, weight: Tensor) -> Operator:
        """The adjoint of A, likewise. Its results are new tensors, which may be overwritten."""

    @abstractmethod
    def weight_gradient(self, x: Tensor, u: Tensor) -> Tensor:
        """Gradient of the sum of ``u * (A x)`` with respect to the weight."""

    @abstractmethod
    def smooth_norm(self, weight: Tensor) -> Tensor:
        """A rigorous upper bound of the operator norm, a float64 scalar with a gradient."""

    @abstractmethod
    def tightest_bound(self, weight: Tensor) -> Bound:
        """The tightest rigorous bound of the operator norm that is affordable."""

    @abstractmethod
    def taps(self) -> tuple[Tensor, Tensor, Tensor]:
        """The raw weight as a kernel ``(D, C, k, k)``, and its taps along both axes of an image.

        See `iresflow.lipschitz.bounds.induced.entry_bounds`.
        """

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
        return self.operator(self.normalized_weight(), self.bias)(x)

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
    def raw_bound(self) -> Bound:
        """Certified bound of the raw weight's norm.

        It is computed anew only when the weight has changed (told by its bytes, since a version
        counter misses writes through ``.data``).
        """
        key = self._weight_key()
        if self._certificate is None or self._certificate[0] != key:
            self._certificate = (key, self.tightest_bound(self.weight))
        return self._certificate[1]

    @torch.no_grad()
    def bound(self, domain: float = 2.0, codomain: float = 2.0) -> Bound:
        """Certified bound of the layer as eval mode applies it, from one p-norm to another.

        Arguments:
            domain, codomain: Of `NORMS`.
        """
        return self.bounds()[domain, codomain]

    @torch.no_grad()
    def bounds(self) -> dict[tuple[float, float], Bound]:
        """Certified bounds of the layer as eval mode applies it, by norms of domain and range."""
        scale = float(self._scale(self.sigma))
        raw, key = self.raw_bound(), (self._certificate[0] if self._certificate else 0, scale)
        if self._bounds is None or self._bounds[0] != key:
            upper = (raw.upper + self._rounding()) * scale * (1 + 1e-15)
            spectral = Bound(upper, raw.estimate * scale, raw.method)
            self._bounds = (key, {(2.0, 2.0): spectral, **self._induced_bounds(spectral, scale)})
        return self._bounds[1]

    def _induced_bounds(self, spectral: Bound, scale: float) -> dict[tuple[float, float], Bound]:
        kernel, rows, columns = self.taps()
        inputs = kernel.shape[1] * rows.shape[2] * columns.shape[2]
        outputs = kernel.shape[0] * rows.shape[1] * columns.shape[1]
        # |x|_2 <= root of n |x|_inf and |y|_1 <= root of m |y|_2 bound what has no formula.
        wide, tall = math.sqrt(inputs) * (1 + 1e-15), math.sqrt(outputs) * (1 + 1e-15)
        factors = {(math.inf, 2.0): wide, (2.0, 1.0): tall, (math.inf, 1.0): wide * tall}
        # Each entry is off by the type's eps at most where the weight is scaled.
        growth = scale * (1 + torch.finfo(self.weight.dtype).eps) * (1 + 1e-15)
        bounds = {}
        for pair, value in entry_bounds(kernel, rows, columns).items():
            if pair in factors:
                upper = min(value * growth, spectral.upper * factors[pair] * (1 + 1e-15))
                bounds[pair] = Bound(upper, spectral.estimate, "entries")
            else:
                bounds[pair] = Bound(value * growth, value * scale, "entries")
        return bounds

    def estimate(self, weight: Tensor, iterations: int, *, keep: bool = True) -> Tensor:
        """The norm by power iteration, from below, differentiable in the weight.

        Arguments:
            weight: Of the layer's shape.
            iterations: With the operator and its adjoint, from where the last call ended.
            keep: Whether the next call starts from where this one ends.
        """
        frozen = weight.detach()
        with torch.no_grad():
            multiply, adjoint = self.operator(frozen), self.adjoint(frozen)
            left = self.left.unsqueeze(0)
            for _ in range(iterations - 1):
                left = _normalized(multiply(adjoint(left)))
            right = _normalized(adjoint(left))
        return self._stretch(weight, right, keep)

    def bidiagonal_estimate(self, weight: Tensor, *, keep: bool = True) -> Tensor:
        r"""The norm by two steps of Golub and Kahan's bidiagonalisation; otherwise as `estimate`.

        From the left vector u, :math:`A^\top u` and :math:`A^\top A A^\top u` span a space of
        right vectors; in its orthonormal basis, A is a lower triangle of two columns, whose
        largest singular vector is known in closed form (Golub and Kahan, 1965).
        """
        if keep and self.plain and native_norms(weight) and self.left.dtype == weight.dtype:
            return native_norm(weight, self.left)
        frozen = weight.detach()
        with torch.no_grad():
            multiply, adjoint = self.operator(frozen), self.adjoint(frozen)
            left = self.left.unsqueeze(0)
            first = adjoint(left)
            upper = torch.linalg.vector_norm(first)
            first = first / upper.clamp_min(_tiny(upper))
            beside = multiply(first) - upper * left
            below = torch.linalg.vector_norm(beside)
            beside = beside / below.clamp_min(_tiny(below))
            second = adjoint(beside)
            # Where the first vector was right already, the rest is rounding, along the first too.
            second = second - (first * second).sum() * first
            lower = torch.linalg.vector_norm(second)
            second = second / lower.clamp_min(_tiny(lower))
            # The top eigenvector of [[upper, below], [0, lower]] times its transpose.
            angle = torch.atan2(2 * below * lower, upper**2 + below**2 - lower**2) / 2
            right = _normalized(angle.cos() * first + angle.sin() * second)
        return self._stretch(weight, right, keep)

    def _stretch(self, weight: Tensor, right: Tensor, keep: bool) -> Tensor:
        """The norm of A times a unit vector, with A's gradient; the image is the next start."""
        image = self.operator(weight)(right)
        left = _normalized(image.detach())
        if keep:
            # From the zero vector, that of a zero weight, the iteration would never come back.
            left_or_old = torch.where(left.any(), left.squeeze(0), self.left)
            self.left.copy_(left_or_old)
        return (left * image).sum()

    def _weight_key(self) -> int:
        data = self.weight.detach().cpu().contiguous().flatten()
        return hash(data.view(torch.uint8).numpy().tobytes())

    def _scale(self, sigma: Tensor) -> Tensor:
        return self.coeff / sigma.clamp_min(self.coeff)

    def _rounding(self) -> float:
        """Upper bound of the norm of what rounding adds when the weight is scaled.

        Each entry of the product is off by eps at most, and the norm of a convolution is at most
        the sum of its taps' Frobenius norms times the norm of what extends the image.
        """
        taps = self.weight.detach().double().reshape(*self.weight.shape[:2], -1)
        taps = torch.linalg.vector_norm(taps, dim=(0, 1))
        return torch.finfo(self.weight.dtype).eps * float(taps.sum()) * self.amplification

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, coeff={self.coeff}, {self.normalization}"


def broadcast_bias(bias: Tensor, ndim: int) -> Tensor:
    """A bias ``(C,)``, or one for each sample ``(B, C)``, shaped to add to ``ndim`` dimensions."""
    return bias.reshape(*bias.shape, *[1] * (ndim - 2))


def _normalized(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x).clamp_min(_tiny(x))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
