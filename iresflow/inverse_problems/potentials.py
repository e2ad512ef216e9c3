"""What a prior of images is: a negative log-density, its gradient, and its proximal map."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from iresflow.inverse_problems.descent import Evaluation, ProjectedQuasiNewton
from iresflow.inverse_problems.domains import Domain
from iresflow.tensors import norm_per_sample, per_sample, sum_per_sample

__all__ = ["Potential"]


class Potential(nn.Module, ABC):
    r"""The negative log-density of images in nats, as optimisers want it.

    It is a fixed function: deterministic, each image on its own, the same in training mode. The
    derivatives of its gradient are refused, but where every log-determinant is exact.

    Outside of the `domain` its value is that of the nearest image P(x) of the domain, plus
    :math:`\tfrac{c}{2} |x - P(x)|^2` with the curvature c of `outside`. So an iterate that leaves
    [0, 1] is drawn back, and ends nothing.

    The methods have the names and the first arguments that priors have in the library deepinv,
    whose optimisers take it as it is. They pass a parameter of the prior, ``g_param``: there is
    none here, and it is left alone.

    Arguments:
        domain: Units and range of the images.
        outside: Curvature c in nats for each squared unit, above 0.
        descent: How `prox` finds a minimum.

    Raises:
        ValueError: a curvature that is not positive.
    """

    explicit_prior = True
    """That it has a value: deepinv's optimisers ask."""

    def __init__(self, domain: Domain, outside: float, descent: ProjectedQuasiNewton) -> None:
        super().__init__()
        if not outside > 0:
            raise ValueError(f"the curvature outside must be positive, got {outside}")
        self.domain = domain
        self.outside = float(outside)
        self.descent = descent

    @abstractmethod
    def require_images(self, x: Tensor) -> None:
        """Raises a ValueError where these are no images of this prior."""

    @abstractmethod
    def negative_log_density(self, x: Tensor) -> Tensor:
        """``(B,)`` nats of images ``(B, C, H, W)`` in the domain, differentiable."""

    def fn(self, x: Tensor, g_param: object = None) -> Tensor:
        """The negative log-density of images ``(B, C, H, W)`` in nats, ``(B,)``, differentiable.

        Raises:
            ValueError: images of another shape or type, or with NaN or infinity.
        """
        self.require_images(x)
        inside = self.domain.project(x)
        return self.negative_log_density(inside) + self.beyond(x, inside)

    def beyond(self, x: Tensor, inside: Tensor) -> Tensor:
        """The parabola of images x whose nearest ones of the domain are ``inside``, ``(B,)``."""
        return self.outside / 2 * sum_per_sample((x - inside).square())

    def forward(self, x: Tensor, g_param: object = None, *, reduce: object = None) -> Tensor:
        """The same as `fn`; some of deepinv's optimisers ask with ``reduce=``, left alone too."""
        return self.fn(x, g_param)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`fn` and its gradient, ``(B,)`` and ``(B, C, H, W)``, without a graph."""
        self.require_images(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.fn(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    def grad(self, x: Tensor, g_param: object = None) -> Tensor:
        """The gradient of `fn` at images ``(B, C, H, W)``, without a graph.

        Raises:
            ValueError: as `fn`.
        """
        return self.value_and_gradient(x)[1]

    def prox(self, x: Tensor, g_param: object = None, *, gamma: float | Tensor = 1.0) -> Tensor:
        r"""A minimiser z of :math:`\gamma f(z) + \tfrac12 |z - x|^2` in the domain.

        f need not be convex: it is the local minimum that a descent from x (or from the nearest
        image of the domain) leads to, as exact as `descent` says.

        Arguments:
            x: ``(B, C, H, W)``; may lie outside of the domain.
            g_param: Left alone.
            gamma: Above 0; one number, or one for each image, ``(B,)`` or ``(B, 1, 1, 1)``.

        Raises:
            ValueError: as `fn`, a gamma that is not positive or of another number, or an image
                whose density is 0.
        """
        self.require_images(x)
        x = x.detach()
        weight = torch.as_tensor(gamma, dtype=x.dtype, device=x.device).detach().reshape(-1)
        if not bool(((weight > 0) & weight.isfinite()).all()):
            raise ValueError(f"gamma must be positive, got {gamma}")
        if len(weight) not in (1, len(x)):
            raise ValueError(f"gamma is one number or {len(x)} of them, got {len(weight)}")
        weight = weight.expand(len(x))

        def sum_of_both(z: Tensor, index: Tensor) -> Evaluation:
            value, gradient = self.value_and_gradient(z)
            away, inverse = z - x[index], 1 / weight[index]
            distance = inverse / 2 * sum_per_sample(away.square())
            pull = per_sample(inverse, away) * away
            return Evaluation(
                value + distance,
                gradient + pull,
                value.abs() + distance,
                norm_per_sample(gradient) + norm_per_sample(pull),
            )

        return self.descent.minimize(sum_of_both, x, self.domain.project).point

    def train(self, mode: bool = True) -> Self:
        """Leaves all as it is: a prior has no training mode."""
        return self
