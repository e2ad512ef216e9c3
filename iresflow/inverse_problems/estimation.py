"""The most probable image, given a noisy linear measurement and a prior (thesis, section 5.6)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.inverse_problems.descent import Evaluation, Function, ProjectedQuasiNewton
from iresflow.inverse_problems.flow_prior import FlowPrior
from iresflow.inverse_problems.operators import LinearOperator
from iresflow.inverse_problems.potentials import Potential
from iresflow.inverse_problems.variables import ImageVariable, LatentVariable, Variable
from iresflow.models import Flow
from iresflow.tensors import norm_per_sample, per_sample, sum_per_sample

__all__ = ["MapEstimate", "first_guess", "map_estimate", "negative_log_posterior"]

VARIABLES: Mapping[str, Callable[[Potential], Variable]] = {
    "image": ImageVariable,
    "latent": LatentVariable,
}
"""What a search moves, by name."""

DESCENT = ProjectedQuasiNewton()


@final
@dataclass(frozen=True)
class MapEstimate:
    """Images that a search for the most probable ones has found.

    Attributes:
        images: ``(B, C, H, W)``.
        objective: ``(B,)`` nats, up to a constant: minus the log-posterior at the image, or at its
            latent where that was searched.
        misfit: ``(B,)``, the norm of A x - y, in units of what the noise is expected to have: near
            1 where the measurement is explained to within its noise.
        criterion: ``(B,)``: the norm of the objective's gradient, without what the domain's ends
            hold back, relative to those of data term and prior, which cancel at a mode.
        converged: ``(B,)`` booleans, whether that is at most the tolerance; else the steps have
            ended, or none led down any more.
        iterations, evaluations: ``(B,)``, steps taken, and values with gradients computed.
    """

    images: Tensor
    objective: Tensor
    misfit: Tensor
    criterion: Tensor
    converged: Tensor
    iterations: Tensor
    evaluations: Tensor


def map_estimate(
    operator: LinearOperator,
    y: Tensor,
    prior: Potential | Flow,
    noise: float,
    where: str | Callable[[Potential], Variable] = "image",
    *,
    start: Tensor | None = None,
    descent: ProjectedQuasiNewton = DESCENT,
) -> MapEstimate:
    r"""A mode of the posterior :math:`p(x | y)` for :math:`y = A x + \sigma n`, n normal.

    In images, it minimises :math:`|A x - y|^2 / (2 \sigma^2) - \log p(x)` over the prior's domain;
    in latents, :math:`|A F^{-1}(z) - y|^2 / (2 \sigma^2) - \log p_Z(z)`. Neither is convex, so it
    is the local minimum that a descent from the start leads to. Each step keeps to the domain, and
    is taken only where the objective is finite and falls (`iresflow.inverse_problems.descent`).
    Each measurement is treated on its own, and in its own type of float: float64 finds a mode to
    more digits.

    Arguments:
        operator: A.
        y: Measurements ``(B, *measured)``, floats.
        prior: A `FlowPrior` or `PatchPrior`, or a flow, of which a `FlowPrior` is made.
        noise: The standard deviation sigma, above 0.
        where: ``image`` or ``latent``, or what makes a `Variable` of a prior.
        start: Images ``(B, C, H, W)`` to begin at; None for `first_guess`.
        descent: When the search ends: at a tolerance of the criterion, or after some steps.

    Raises:
        ValueError: measurements of another shape or with NaN, a sigma that is not positive, an
            unknown ``where``, something that is no prior, or a start without a finite density.
        InversionError: in latents, where an inverse missed its tolerance.
    """
    if not isinstance(operator, LinearOperator):
        raise ValueError(f"an operator is a LinearOperator, got {_kind(operator)}")
    prior = FlowPrior(prior) if isinstance(prior, Flow) else prior
    if not isinstance(prior, Potential):
        raise ValueError(f"a prior is a FlowPrior, a PatchPrior or a flow, got {_kind(prior)}")
    noise = _deviation(noise)
    if isinstance(where, str) and where not in VARIABLES:
        raise ValueError(f"where is one of {', '.join(VARIABLES)}, got {where!r}")
    variable = (VARIABLES[where] if isinstance(where, str) else where)(prior)
    function = negative_log_posterior(operator, y, variable, noise)
    if start is None:
        start = first_guess(operator, y, prior)
    elif not isinstance(start, Tensor):
        raise ValueError(f"images to start at are a tensor, got {_kind(start)}")
    elif len(start) != len(y):
        raise ValueError(f"{len(start)} images to start at, for {len(y)} measurements")
    begin = variable.of_images(start.detach().to(y))
    found = descent.minimize(function, begin, variable.project)
    with torch.no_grad():
        images = variable.images(found.point)
        residual = norm_per_sample(operator(images) - y)
    return MapEstimate(
        images,
        found.value,
        residual / (noise * y[0].numel() ** 0.5),
        found.criterion,
        found.converged,
        found.iterations,
        found.evaluations,
    )


def negative_log_posterior(
    operator: LinearOperator, y: Tensor, variable: Variable, noise: float
) -> Function:
    """Minus the log-posterior of coordinates in nats, up to a constant, with its gradient.

    Arguments:
        operator, y, noise: As of `map_estimate`.
        variable: The coordinates.

    Returns:
        A function of coordinates ``(N, *event)`` and the numbers ``(N,)`` of the measurements that
        they belong to.

    Raises:
        ValueError: measurements of another shape or with NaN, or a noise that is not positive.
    """
    _require_measurements(operator, y)
    noise = _deviation(noise)

    def evaluated(u: Tensor, index: Tensor) -> Evaluation:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            residual = operator(variable.images(u)) - y[index]
            data = sum_per_sample(residual.square()) / (2 * noise**2)
            (of_data,) = torch.autograd.grad(data.sum(), u)
            prior = variable.negative_log_density(u)
            (of_prior,) = torch.autograd.grad(prior.sum(), u)
        return Evaluation(
            (data + prior).detach(),
            of_data + of_prior,
            (data + prior.abs()).detach(),
            norm_per_sample(of_data) + norm_per_sample(of_prior),
        )

    return evaluated


@torch.no_grad()
def first_guess(operator: LinearOperator, y: Tensor, prior: Potential) -> Tensor:
    """Images ``(B, C, H, W)`` to begin a search at.

    From the middle of the prior's domain, one step along the adjoint of what is missing, of the
    best length. Where the operator is a mask or a mean, that is the image nearest to grey which
    explains the measurement.

    Raises:
        ValueError: measurements of another shape or with NaN.
    """
    _require_measurements(operator, y)
    grey = y.new_full((len(y), *operator.shape), prior.domain.middle)
    missing = operator.adjoint(y - operator(grey))
    # Of any size: squares of large measurements overflow where the guess does not.
    largest = missing.flatten(1).abs().amax(1).clamp_min(torch.finfo(y.dtype).tiny)
    unit = missing / per_sample(largest, missing)
    seen = sum_per_sample(operator(unit).square())
    square = sum_per_sample(unit.square())
    length = torch.where(seen > 0, square / seen, 0)
    return prior.domain.project(grey + length.reshape(-1, *[1] * len(operator.shape)) * missing)


def _kind(value: object) -> str:
    return type(value).__name__


def _deviation(noise: float) -> float:
    try:
        value = math.nan if isinstance(noise, str) else float(noise)
    except (TypeError, ValueError, RuntimeError):  # of what is no number, or several
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"noise is a standard deviation above 0, got {noise!r}")
    return value


def _require_measurements(operator: LinearOperator, y: Tensor) -> None:
    if not isinstance(y, Tensor):
        raise ValueError(f"measurements are a tensor, got {_kind(y)}")
    if y.ndim != len(operator.measured) + 1 or tuple(y.shape[1:]) != operator.measured:
        raise ValueError(
            f"measurements have the shape (B, {', '.join(map(str, operator.measured))}), got "
            f"{tuple(y.shape)}"
        )
    if len(y) == 0:
        raise ValueError("no measurement to explain: the batch is empty")
    if not y.is_floating_point():
        raise ValueError(f"measurements are floats, got {y.dtype}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("the measurements hold NaN or infinity")
