"""Flows that are linear, so that their densities are normal, with their moments."""

from dataclasses import dataclass

import torch
from helpers import perturb
from torch import Tensor

from iresflow import ImageFlow, VectorFlow
from iresflow.models import Flow


def image_flow(shape=(1, 4, 4), **settings) -> ImageFlow:
    """Three blocks of one convolution each, without an activation."""
    flow = ImageFlow(
        shape,
        (3,),
        [],
        kernels=(3,),
        activate_input=False,
        alpha=0,
        **{"levels": 16, "coeff": 0.7, **settings},
    )
    flow.initialize(0.5 + 0.15 * torch.randn(500, *shape).clamp(-3, 3))
    return perturb(flow, 0.05)


def vector_flow(dim: int, **settings) -> VectorFlow:
    flow = VectorFlow(dim, 3, [], activate_input=False, coeff=0.7, **settings)
    flow.initialize(0.5 + 0.15 * torch.randn(500, dim))
    return perturb(flow, 0.1)


@dataclass
class Normal:
    """The normal density of a linear flow in flat coordinates of its images."""

    mean: Tensor
    precision: Tensor

    @classmethod
    def of(cls, flow: Flow, scale: float = 1.0, offset: float = 0.0) -> "Normal":
        """That of images which the flow is told as ``scale * x + offset``, from its affine map."""
        dim = torch.Size(flow.shape).numel()
        corners = torch.cat([torch.zeros(1, dim), torch.eye(dim)])
        with torch.no_grad():
            # Near the middle, where any image flow looks at images.
            spread = 0.3 * (corners - 0.5) + 0.5
            z = flow.transform((scale * spread + offset).reshape(-1, *flow.shape))
        matrix = (z[1:] - z[0]).mT / 0.3
        at_zero = z[0] - matrix @ spread[0]
        weights = (-2 * flow.base.log_std.detach()).exp()
        mean = torch.linalg.solve(matrix, flow.base.mean.detach() - at_zero)
        return cls(mean, matrix.mT @ (weights[:, None] * matrix))

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.distributions.MultivariateNormal(
            self.mean, precision_matrix=self.precision
        ).log_prob(x.flatten(1))

    def posterior(self, matrix: Tensor, y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """Mean ``(B, D)`` and precision ``(D, D)``, given ``y = matrix x + noise * n``."""
        precision = self.precision + matrix.mT @ matrix / noise**2
        right = self.precision @ self.mean + y.flatten(1) @ matrix / noise**2
        return torch.linalg.solve(precision, right.mT).mT, precision
