"""A flow as a prior of images."""

import copy
import math
from typing import final

import torch
from torch import Tensor

from iresflow.inverse_problems.descent import ProjectedQuasiNewton
from iresflow.inverse_problems.domains import Domain
from iresflow.inverse_problems.potentials import Potential
from iresflow.logdet import DifferentiableSeries, Exact, ExactWhereSmall, LogDetEstimator
from iresflow.models import Flow

__all__ = ["FlowPrior"]

SERIES = ExactWhereSmall(DifferentiableSeries(terms=10, probes=2), limit=32, values=32)
"""The log-determinants of a prior: one function of x, whose gradient is its own."""

PROX = ProjectedQuasiNewton(tol=1e-5, iterations=300)
"""How a proximal map finds a minimum: more exactly than the algorithms that call it end."""


@final
class FlowPrior(Potential):
    """The negative log-density of a flow, for images of its size.

    It has a copy of the flow, in eval mode and without gradients of the parameters: what is done
    to the flow later changes nothing.

    Above 32 dimensions the log-determinants are estimated, with probes that all images share.
    Value and gradient are those of one and the same function, which is why `DifferentiableSeries`
    is the default and not the estimators of training: with those, a gradient is one of another
    function, and a line search ends where the two disagree. How far that function is from the
    log-density is told by `Flow.likelihood`, whose probes are others.

    Arguments:
        flow: An `ImageFlow`, or another flow on ``(C, H, W)`` or on vectors.
        context: Of conditional flows, one for all images, ``(1, context_dim)``.
        domain: Units and range of the images; None for `Domain.of`, floats in [0, 1] for an
            `ImageFlow`.
        log_det: The estimator of log-determinants; None for exact ones up to 32 dimensions, and
            a `DifferentiableSeries` above.
        outside: Curvature outside of the domain, see `Potential`.
        descent: How `prox` finds a minimum.

    Raises:
        ValueError: no flow, or a curvature that is not positive.

    Example:
        >>> from iresflow import ImageFlow
        >>> flow = ImageFlow((1, 4, 4), blocks=(1,), hidden=4)
        >>> flow.initialize(torch.rand(16, 1, 4, 4))
        >>> prior = FlowPrior(flow)
        >>> prior.fn(torch.rand(3, 1, 4, 4)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        flow: Flow,
        context: Tensor | None = None,
        *,
        domain: Domain | None = None,
        log_det: LogDetEstimator | None = None,
        outside: float = 1e3,
        descent: ProjectedQuasiNewton = PROX,
    ) -> None:
        if not isinstance(flow, Flow):
            raise ValueError(f"a FlowPrior is of a Flow, got {type(flow).__name__}")
        super().__init__(domain or Domain.of(flow), outside, descent)
        self.flow: Flow = copy.deepcopy(flow).eval().requires_grad_(False)
        exact = isinstance(flow.log_det, Exact)
        self.log_det = log_det or (flow.log_det if exact else SERIES)
        self.context: Tensor | None
        self.register_buffer("context", None if context is None else context.detach().clone())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.flow.shape

    def require_images(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape or x.ndim != len(self.shape) + 1:
            raise ValueError(
                f"this prior takes images of shape (B, {', '.join(map(str, self.shape))}), got "
                f"{tuple(x.shape)}"
            )
        if not x.is_floating_point():
            unit = f" in [{self.domain.low:g}, {self.domain.high:g}]"
            raise ValueError(f"a prior takes floats{unit}, got {x.dtype}")
        if not bool(torch.isfinite(x.detach()).all()):
            raise ValueError("the images hold NaN or infinity")

    def negative_log_density(self, x: Tensor) -> Tensor:
        log_prob = self.flow.log_prob(self.domain.to_flow(x), self.context, self.log_det)
        # Of the image itself: its units are others.
        return -log_prob - math.prod(self.shape) * math.log(self.domain.scale)
