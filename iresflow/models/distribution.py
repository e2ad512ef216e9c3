"""A flow in the clothes of torch.distributions."""

from typing import Protocol, Self, final

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from iresflow.bijections import Bijection
from iresflow.models.densities import BaseDensity
from iresflow.tensors import transformed

__all__ = ["FlowDistribution", "FlowTransform"]


class _Flow(Protocol):
    """What is asked of an `iresflow.models.Flow`, whose module builds on this one."""

    shape: tuple[int, ...]
    data_map: Bijection
    base: BaseDensity
    context_shape: tuple[int, ...]

    @property
    def base_dim(self) -> int: ...

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, check: bool = True
    ) -> tuple[Tensor, Tensor]: ...

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor: ...

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor: ...

    def rsample(self, n: int, context: Tensor | None = None) -> Tensor: ...


@final
class FlowDistribution(Distribution):
    """The density of a flow, with ``event_shape`` the shape of its samples.

    Outside of its support the density is 0 and ``log_prob`` minus infinity, where `Flow.log_prob`
    refuses its input: so an iteration that steps out of the unit cube is told so and goes on.

    Arguments:
        flow: The flow.
        context: ``(*batch_shape, *context_shape)`` for a conditional flow, else None.
        validate_args: Whether ``log_prob`` refuses what lies outside of the support, as torch's
            own distributions do if asked to check.
    """

    has_rsample = True

    def __init__(
        self, flow: _Flow, context: Tensor | None = None, validate_args: bool = False
    ) -> None:
        self.flow = flow
        self.context = context
        batch_shape = _batch_of(context, flow.context_shape)
        super().__init__(batch_shape, torch.Size(flow.shape), validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        if self.context is None:
            return {}
        dims = len(self.flow.context_shape)
        return {"context": constraints.independent(constraints.real, dims)}

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.flow.data_map.domain, len(self.event_shape))

    @property
    def transform(self) -> "FlowTransform":
        """The map from samples to flat latents ``(*batch, D)``; its ``inv`` samples."""
        return FlowTransform(self.flow, self.context)

    def expand(  # type: ignore[override]
        self, batch_shape: torch.Size | tuple[int, ...], _instance: None = None
    ) -> "FlowDistribution":
        """The same density for a larger batch of contexts; without a context, of samples."""
        shape, context = torch.Size(batch_shape), self.context
        _broadcast(self.batch_shape, shape, shape)
        if context is not None:
            context = context.expand(*shape, *self.flow.context_shape)
        new = FlowDistribution(self.flow, context, self._validate_args)
        new._batch_shape = shape
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of ``(*sample_shape, *batch_shape, *event_shape)``.

        Both are broadcast; the result has the shape ``(*sample_shape, *batch_shape)``.

        Raises:
            ValueError: another event shape, no floats, or NaN.
        """
        if self._validate_args:
            self._validate_sample(value)
        known = (self.batch_shape, self.context, self.flow.context_shape)
        shape, flat, context = _rows(value, self.event_shape, *known)
        if len(flat) == 0:
            return flat.new_zeros(shape)
        if not transformed() and bool(flat.isnan().any()):
            raise ValueError("the input holds NaN")
        inside = self.support.check(flat.detach()) & flat.detach().flatten(1).isfinite().all(1)
        within = inside.reshape(-1, *[1] * len(self.event_shape))
        # Any point inside will do: where rows lie outside, what it gives is not looked at.
        flat = torch.where(within, flat, 0.5)
        z, log_det = self.flow.forward(flat, context, check=False)
        log_prob = self.flow.base.log_prob(z, context) + log_det
        return torch.where(inside, log_prob, -torch.inf).reshape(shape)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        """Samples ``(*sample_shape, *batch_shape, *event_shape)``, see `Flow.rsample`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        context = self.context
        if context is not None:
            event = self.flow.context_shape
            context = context.expand(*shape, *event).reshape(-1, *event)
        x = self.flow.rsample(shape.numel(), context)
        return x.reshape(*shape, *self.event_shape)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({type(self.flow).__name__}, batch_shape: "
            f"{tuple(self.batch_shape)}, event_shape: {tuple(self.event_shape)})"
        )


@final
class FlowTransform(Transform):
    """A flow's map from x ``(*batch, *shape)`` to latents ``(*batch, D)``.

    Its inverse makes samples of a flow from those of any density on the latents:
    ``TransformedDistribution(base, flow.as_distribution().transform.inv)``.

    Arguments:
        flow: The flow.
        context: ``(*batch, *context_shape)`` for a conditional flow, else None.
        cache_size: 1 to remember the last pair of x and z, as torch's transforms do.
    """

    bijective = True

    def __init__(self, flow: _Flow, context: Tensor | None = None, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.flow = flow
        self.context = context
        self.domain = constraints.independent(flow.data_map.domain, len(flow.shape))
        self.codomain = constraints.independent(constraints.real, 1)

    def with_cache(self, cache_size: int = 1) -> Self:
        if cache_size == self._cache_size:
            return self
        return type(self)(self.flow, self.context, cache_size)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log-determinant of the forward map in nats, ``(*batch,)``; y is not looked at."""
        shape, flat, context = self._rows(x, self.flow.shape)
        if not transformed() and not bool(self.domain.check(flat.detach()).all()):
            raise ValueError(f"x lies outside of the domain {self.domain}")
        return self.flow.forward(flat, context, check=False)[1].reshape(shape)

    def forward_shape(self, shape: torch.Size | tuple[int, ...]) -> torch.Size:
        return self._moved(shape, self.flow.shape, (self.flow.base_dim,))

    def inverse_shape(self, shape: torch.Size | tuple[int, ...]) -> torch.Size:
        return self._moved(shape, (self.flow.base_dim,), self.flow.shape)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FlowTransform)
            and self.flow is other.flow
            and self.context is other.context
        )

    def __hash__(self) -> int:
        return hash((id(self.flow), id(self.context)))

    def _call(self, x: Tensor) -> Tensor:
        shape, flat, context = self._rows(x, self.flow.shape)
        return self.flow.transform(flat, context).reshape(*shape, self.flow.base_dim)

    def _inverse(self, y: Tensor) -> Tensor:
        shape, flat, context = self._rows(y, (self.flow.base_dim,))
        return self.flow.inverse(flat, context).reshape(*shape, *self.flow.shape)

    def _rows(
        self, value: Tensor, event: tuple[int, ...]
    ) -> tuple[torch.Size, Tensor, Tensor | None]:
        batch = _batch_of(self.context, self.flow.context_shape)
        return _rows(value, torch.Size(event), batch, self.context, self.flow.context_shape)

    def _moved(
        self, shape: torch.Size | tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...]
    ) -> torch.Size:
        cut = len(shape) - len(old)
        if cut < 0 or tuple(shape[cut:]) != tuple(old):
            raise ValueError(f"shapes end with {tuple(old)}, got {tuple(shape)}")
        batch = torch.Size(shape[:cut])
        if self.context is not None:
            contexts = _batch_of(self.context, self.flow.context_shape)
            batch = torch.broadcast_shapes(batch, contexts)
        return torch.Size((*batch, *new))


def _batch_of(context: Tensor | None, shape: tuple[int, ...]) -> torch.Size:
    """The batch of contexts of a shape; empty without any."""
    return torch.Size() if context is None else context.shape[: context.ndim - len(shape)]


def _rows(
    value: Tensor,
    event: torch.Size,
    batch: torch.Size,
    context: Tensor | None,
    context_shape: tuple[int, ...],
) -> tuple[torch.Size, Tensor, Tensor | None]:
    """The shape of a batch of events, the events one after another, and a context for each.

    Raises:
        ValueError: no floats, another event shape, or a batch that does not fit the contexts'.
    """
    cut = value.ndim - len(event)
    if cut < 0 or value.shape[cut:] != event or not value.is_floating_point():
        raise ValueError(
            f"values are floats of shape (*batch, {', '.join(map(str, event))}), got "
            f"{value.dtype} {tuple(value.shape)}"
        )
    shape = _broadcast(value.shape[:cut], batch)
    flat = value.expand(*shape, *event).reshape(-1, *event)
    if context is not None:
        context = context.expand(*shape, *context_shape).reshape(-1, *context_shape)
    return shape, flat, context


def _broadcast(one: torch.Size, other: torch.Size, due: torch.Size | None = None) -> torch.Size:
    """The shape that both broadcast to, which is the one that is due, or a ValueError."""
    try:
        shape = torch.broadcast_shapes(one, other)
    except RuntimeError:
        shape = None
    if shape is None or due not in (None, shape):
        raise ValueError(f"batches of shapes {tuple(one)} and {tuple(other)} don't fit each other")
    return shape
