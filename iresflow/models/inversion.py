r"""The inverse of a whole flow: certified by blocks, measured as a whole, refined where due.

Each block is certified to a tolerance. Through the flow these errors compose to a worst case, in
which every block amplifies what comes before by :math:`1 / (1 - L)` (thesis, Lemma 4.6); for a
deep flow it is far above what happens. So what happens is measured: F is run on the result, in the
widest float, and compared with the latent. A sample whose residual is above the tolerance is
inverted again with tighter blocks, and the whole raises if that does not help.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import final
from warnings import warn

import torch
from torch import Tensor

from iresflow.ambient import full_precision
from iresflow.bijections import Accuracy, Bijection, Inverse
from iresflow.bijections.inverse import require_finite
from iresflow.errors import InversionError, InversionWarning, callers_level
from iresflow.tensors import wide_norm, widest

__all__ = ["FlowInverse", "invert_flow", "residual_tolerance"]

RESIDUAL = 1e-5
"""The residual that is accepted unless a smaller one is asked for, root mean square over the
dimensions of the latent: a hundred thousandth of a normal base density's standard deviation."""

SWEEPS = 4
"""Inversions of a sample before failure: each is tighter, and the last goes to all digits."""

MARGIN = 0.1
"""A residual moves about in proportion to the blocks' errors: the share of the tolerance that the
next sweep aims at."""

MEASURED = 32
"""Samples that are mapped forward at a time: their hidden layers in float64 fit a cache."""


@final
@dataclass(frozen=True)
class FlowInverse:
    """A flow's inverse with what is proven and what was measured of its error, for B samples.

    All errors are Euclidean over a sample.

    Attributes:
        value: x, ``(B, *event)``.
        steps: Branch evaluations, and products with a branch's Jacobian, for each sample over all
            blocks and sweeps, ``(B,)``.
        block_error: Largest certified error of any one block's inverse, ``(B,)``, in the units of
            that block's input.
        floor: The largest error that any one block's rounding makes necessary, ``(B,)``: no
            smaller ``tol`` can be certified.
        rounding: Distance by which the result moved when it was rounded to the latent's type of
            float, before the data map's inverse, ``(B,)``; 0 for latents in float64.
        worst_case: Upper bound of the distance of x from the exact inverse of z, ``(B,)``: the
            certified errors of all maps, the data map and the rounding included, each amplified
            by the Lipschitz bounds of the maps after it. Proven, and for deep flows very loose.
        residual: The distance from z of the latent that the result is mapped to, ``(B,)``,
            measured in the widest type of float. It is that of the rounded result *before* the
            data map's inverse: a pixel next to 0 or 1 has a logit that no float can hold, which
            says nothing of the blocks.
        sweeps: Inversions that the residual took to meet its tolerance, ``(B,)``.
    """

    value: Tensor
    steps: Tensor
    block_error: Tensor
    floor: Tensor
    rounding: Tensor
    worst_case: Tensor
    residual: Tensor
    sweeps: Tensor

    @property
    def limit(self) -> Tensor:
        """The smallest ``tol`` that the types of float allow, ``(B,)``: floor and rounding."""
        return torch.maximum(self.floor, self.rounding)

    @staticmethod
    def concatenate(parts: Sequence["FlowInverse"]) -> "FlowInverse":
        """The inverses of several batches as one."""
        names = [field.name for field in fields(FlowInverse)]
        return FlowInverse(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


def residual_tolerance(accuracy: Accuracy, dim: int) -> float:
    """The largest Euclidean residual that is accepted in D dimensions."""
    if accuracy.residual is not None:
        return accuracy.residual
    return max(RESIDUAL * dim**0.5, accuracy.tol)


def invert_flow(
    bijection: Bijection,
    data_map: Bijection,
    z: Tensor,
    context: Tensor | None,
    accuracy: Accuracy,
) -> FlowInverse:
    """x from latents ``(B, D)``, in their type of float.

    Warns:
        InversionWarning: the residual meets its tolerance only before the result is rounded to
            the type of z.

    Raises:
        InversionError: a block missed its tolerance, or the residual did after `SWEEPS` sweeps, or
            the result is beyond the largest number of its type.
        NotContractiveError: a block has no certified Lipschitz bound below 1.
        NotInitializedError: ActNorm has not seen data.
    """
    with full_precision():
        target = z.to(widest(z.device))
        first = bijection.invert(target, context, accuracy)
        best, residual, sweeps = _swept(bijection, target, z.dtype, first, context, accuracy)
        # Refinement is a correction without a graph: a gradient is that of the first sweep, which
        # differs by no more than the blocks' errors.
        y = (first.value + (best.value - first.value).detach()).to(z.dtype)
        rounding = wide_norm(best.value - y)
        outer = data_map.invert(y)
        require_finite(outer.value)
    rounded = replace(best, value=y, bound=best.bound + rounding)
    return FlowInverse(
        value=outer.value,
        steps=best.steps,
        block_error=best.error,
        floor=best.floor,
        rounding=rounding,
        worst_case=outer.after(rounded).bound,
        residual=residual,
        sweeps=sweeps,
    )


@torch.no_grad()
def _swept(
    bijection: Bijection,
    target: Tensor,
    dtype: torch.dtype,
    first: Inverse,
    context: Tensor | None,
    accuracy: Accuracy,
) -> tuple[Inverse, Tensor, Tensor]:
    """The first sweep's inverse with its failing samples done again; residuals and sweeps."""
    tolerance = residual_tolerance(accuracy, target.shape[1])

    measure = partial(_residuals, bijection, context, target)
    everything = torch.arange(len(target), device=target.device)
    residual = measure(first.value.to(dtype).to(target.dtype), everything)
    sweeps = torch.ones_like(first.steps)
    # Written so that NaN fails.
    failing = everything[~(residual <= tolerance)]
    if len(failing) == 0:
        return first, residual, sweeps
    best, suspects, tol = _copied(first), failing, accuracy.tol
    for sweep in range(1, SWEEPS + 1):
        exact = measure(best.value[failing], failing)
        missed = ~(exact <= tolerance)
        failing, exact = failing[missed], exact[missed]
        if len(failing) == 0 or sweep == SWEEPS:
            break
        share = tolerance / float(exact.max())
        tol = 0.0 if sweep == SWEEPS - 1 else tol * min(MARGIN, MARGIN * share)
        rows = None if context is None else context[failing]
        again = bijection.invert(target[failing], rows, replace(accuracy, tol=tol))
        _replace_rows(best, failing, again)
        sweeps[failing] += 1
    if len(failing):
        raise InversionError(
            f"{len(failing)} of {len(target)} samples do not map back to their latent: residual "
            f"{float(exact.max()):.3g}, allowed {tolerance:.3g} in {target.shape[1]} dimensions, "
            f"after {SWEEPS} sweeps, the last with all digits of {target.dtype} and certified "
            f"block errors up to {float(best.error.max()):.3g}. Allow a larger residual "
            "(Accuracy(residual=...))"
        )
    rounded = best.value[suspects].to(dtype)
    require_finite(rounded)
    residual[suspects] = measure(rounded.to(target.dtype), suspects)
    if not bool(residual.isfinite().all()):
        raise InversionError(
            f"results that were rounded to {dtype} have latents beyond all floats"
        )
    if not bool((residual <= tolerance).all()):
        warn(
            f"rounding the result to {dtype} moves its latent by up to "
            f"{float(residual.max()):.3g}, above the allowed {tolerance:.3g}: pass z.double() for "
            "a result in float64",
            InversionWarning,
            stacklevel=callers_level(),
        )
    return best, residual, sweeps


def _residuals(
    bijection: Bijection, context: Tensor | None, target: Tensor, y: Tensor, index: Tensor
) -> Tensor:
    """Distances ``(N,)`` of F(y) from the latents of the samples with indices ``(N,)``."""
    residuals = []
    for part, rows in zip(y.split(MEASURED), index.split(MEASURED), strict=True):
        z = bijection.transform(part, None if context is None else context[rows])
        residuals.append(wide_norm(z - target[rows]))
    return torch.cat(residuals)


def _copied(inverse: Inverse) -> Inverse:
    """An inverse whose rows can be replaced, without its graph."""
    names = ("value", "steps", "error", "floor", "bound")
    return replace(inverse, **{name: getattr(inverse, name).detach().clone() for name in names})


def _replace_rows(inverse: Inverse, index: Tensor, again: Inverse) -> None:
    """Puts newer results for some samples in place; their steps add up."""
    inverse.steps[index] += again.steps
    inverse.value[index] = again.value
    for old, new in (
        (inverse.error, again.error),
        (inverse.floor, again.floor),
        (inverse.bound, again.bound),
    ):
        old[index] = new
