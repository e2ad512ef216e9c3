"""A flow in the clothes of torch.distributions."""

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

if TYPE_CHECKING:
    from iresflow.models.flow import Flow

__all__ = ["FlowDistribution"]


@final
class FlowDistribution(Distribution):
    """One density of a flow, with ``event_shape`` the shape of its samples.

    Arguments:
        flow: The flow.
        context: ``(context_dim,)`` or ``(1, context_dim)``, for a conditional flow.
    """

    has_rsample = False

    def __init__(self, flow: "Flow", context: Tensor | None = None) -> None:
        self._flow = flow
        self._context = None if context is None else context.reshape(1, -1)
        super().__init__(event_shape=torch.Size(flow.shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of ``(*batch, *event_shape)``, shape ``(*batch,)``."""
        batch = value.shape[: value.ndim - len(self.event_shape)]
        flat = value.reshape(-1, *self.event_shape)
        context = None if self._context is None else self._context.expand(len(flat), -1)
        return self._flow.log_prob(flat, context).reshape(batch)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Samples of shape ``(*sample_shape, *event_shape)``."""
        size = torch.Size(sample_shape)
        x = self._flow.sample(size.numel(), self._context)
        return x.reshape(*size, *self.event_shape)
