"""How fast the fixed-point iteration inverts a flow (thesis, figure 4.4)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import numpy as np
import torch
from torch import Tensor

from iresflow.lipschitz import NormalizedLayer
from iresflow.models.certified import CertifiedModel
from iresflow.models.iteration import counted_inverses
from iresflow.tensors import norm_per_sample

__all__ = ["InversionCurve", "inversion_curve", "with_coefficient"]


M = TypeVar("M", bound=CertifiedModel)


@final
@dataclass(frozen=True)
class InversionCurve:
    """Errors of an inverse by k fixed-point iterations in every block, for K values of k.

    Attributes:
        coeff: The limit of each layer's norm.
        iterations: The values of k, ``(K,)``.
        median, largest: Of the flow's reconstruction errors over the samples, ``(K,)``: root mean
            square over the entries of one sample, in units of what the blocks take (after the
            data map).
        block: The largest error of any block alone over all samples, ``(K,)``, as a share of the
            first step of its iteration.
        bound: What no block exceeds in that, ``(K,)``: L^k / (1 - L) with the largest certified L
            (thesis, Lemma 4.5).
    """

    coeff: float
    iterations: np.ndarray
    median: np.ndarray
    largest: np.ndarray
    block: np.ndarray
    bound: np.ndarray


def with_coefficient(flow: M, coeff: float) -> M:
    """A copy in eval mode in which no layer's norm exceeds ``coeff``: weights are scaled down.

    What is above the limit is divided down to it, what is below stays: not the model that training
    with that coefficient would give.

    Raises:
        ValueError: coeff is not in (0, 1).
    """
    if not 0 < coeff < 1:
        raise ValueError(f"coeff must lie strictly between 0 and 1, got {coeff}")
    scaled = copy.deepcopy(flow).eval()
    for _, block in scaled.blocks():
        for layer in block.branch.layers:
            if isinstance(layer, NormalizedLayer):
                layer.coeff = min(layer.coeff, coeff)
    # Where norms are enforced already the new limit holds at once, without new bounds.
    if not scaled.certify():
        scaled.enforce()
    return scaled


@torch.no_grad()
def inversion_curve(
    flow: CertifiedModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    coeff: float,
    iterations: Sequence[int],
) -> InversionCurve:
    """Sends samples to the latent and back by plain fixed-point iterations, counted.

    Arguments:
        flow: The model; its copy of that coefficient is measured, in float64.
        x: ``(B, *shape)``.
        context: ``(B, context_dim)`` or None.
        coeff: Limit of each layer's norm, at most that of the model.
        iterations: Numbers k of iterations in each block.

    Raises:
        ValueError: coeff is not in (0, 1), or an iteration number is negative.
    """
    if min(iterations) < 0:
        raise ValueError(f"iterations must be 0 or more, got {tuple(iterations)}")
    scaled = with_coefficient(flow, coeff)
    largest = scaled.certify().largest
    scaled = scaled.double()
    context = None if context is None else context.double()
    inputs = scaled.data_map.transform(x.double())
    block = _block_errors(scaled, inputs, context, max(iterations))
    counters = counted_inverses(scaled.bijection)
    z = scaled.bijection.transform(inputs, context)
    errors = []
    for k in iterations:
        for counter in counters:
            counter.iterations = k
        back = scaled.bijection.inverse(z, context)
        errors.append(norm_per_sample(back - inputs) / inputs[0].numel() ** 0.5)
    stacked = torch.stack(errors).double().cpu().numpy()
    counts = np.asarray(iterations)
    return InversionCurve(
        coeff,
        counts,
        median=np.median(stacked, axis=1),
        largest=stacked.max(axis=1),
        block=block[counts],
        bound=largest ** counts.astype(float) / (1 - largest),
    )


def _block_errors(
    flow: CertifiedModel, inputs: Tensor, context: Tensor | None, count: int
) -> np.ndarray:
    """The largest relative errors ``(count + 1,)`` of any block's own iterations."""
    largest = np.zeros(count + 1)

    def measure(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        # The method `forward`, since a call of the module would come back here.
        truth = arguments[0]
        y = truth + module.forward(truth, context)
        x, first = y, y
        for k in range(count + 1):
            error = norm_per_sample(x - truth)
            x = y - module.forward(x, context)
            first = norm_per_sample(x - y) if k == 0 else first
            # A first step of 0 ends at the solution.
            share = (error / first.clamp_min(torch.finfo(y.dtype).tiny)).max()
            largest[k] = max(largest[k], float(share))

    hooks = [b.branch.register_forward_pre_hook(measure) for _, b in flow.blocks()]
    try:
        flow.bijection.transform(inputs, context)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
