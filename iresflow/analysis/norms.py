"""The largest singular values of all layers (thesis, figure 4.2), and of the blocks' Jacobians."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.lanczos import LanczosProcess
from iresflow.linearization import Linearization
from iresflow.lipschitz import NormalizedLayer
from iresflow.logdet import LogDetEstimate
from iresflow.models import Flow
from iresflow.models.certified import CertifiedModel
from iresflow.streams import Stream
from iresflow.tensors import gaussian, norms, spread

__all__ = ["BlockNorm", "LayerNorm", "block_norms", "largest_singular_value", "layer_norms"]


@final
@dataclass(frozen=True)
class LayerNorm:
    """What is known of the operator norm of one layer, as eval mode applies it.

    Attributes:
        name: The layer's place in the model.
        depth: Its place in the branch, 0 for the first layer.
        coeff: The limit of its norm.
        certified: A proven upper bound of the norm.
        measured: The norm by Lanczos' method: from below, and as a rule to many digits.
    """

    name: str
    depth: int
    coeff: float
    certified: float
    measured: float


def layer_norms(flow: CertifiedModel) -> tuple[LayerNorm, ...]:
    """The norms of all normalised layers, in the order of the forward map.

    Errors: as `Flow.certify`.
    """
    flow.certify()  # names a layer without a known bound
    return tuple(
        LayerNorm(
            f"{name}.branch.layers.{depth}",
            depth,
            layer.coeff,
            layer.bound().upper,
            largest_singular_value(layer),
        )
        for name, block in flow.blocks()
        for depth, layer in enumerate(block.branch.layers)
        if isinstance(layer, NormalizedLayer)
    )


@final
@dataclass(frozen=True)
class BlockNorm:
    """How much of its range the branch g of one residual block uses, at B points.

    Attributes:
        name: The block's place in the model.
        certified: A proven upper bound of Lip(g).
        measured: The norm of the Jacobian of g at each point, ``(B,)``, from below.
    """

    name: str
    certified: float
    measured: Tensor


@torch.no_grad()
def block_norms(
    flow: Flow, x: Tensor, context: Tensor | None = None, steps: int = 50
) -> tuple[BlockNorm, ...]:
    """The norms of all residual blocks' Jacobians at the latents of points ``(B, *shape)``.

    Arguments:
        flow: In eval mode.
        x: Points, as `Flow.forward` takes them.
        context: ``(B, context_dim)``, for conditional flows.
        steps: Of the power iteration on the Jacobian's Gram matrix, from a common start.

    Errors: as `Flow.forward` and `Flow.certify`.
    """
    measured: list[Tensor] = []

    def measuring(linearization: Linearization, generator: Stream | None = None) -> LogDetEstimate:
        measured.append(_jacobian_norms(linearization, steps, generator))
        nothing = torch.zeros_like(measured[-1])
        return LogDetEstimate(nothing, nothing, nothing, nothing, nothing, nothing)

    flow.forward(x, context, measuring)
    return tuple(
        BlockNorm(block.name, block.bound.upper, norm)
        for block, norm in zip(flow.certify(), measured, strict=False)  # the map's come first
    )


def _jacobian_norms(jacobian: Linearization, steps: int, generator: Stream | None) -> Tensor:
    """The norm of the Jacobian at each point, ``(B,)``, by power iteration."""
    v = gaussian(1, jacobian.point, generator)
    norm = torch.zeros_like(v[0].flatten(1)[:, 0])
    for _ in range(steps):
        size = norms(v)
        image = jacobian.jvp(v / spread(size.clamp_min(torch.finfo(v.dtype).tiny), v))
        norm = torch.maximum(norm, norms(image)[0])
        v = jacobian.vjp(image)
    return norm


@torch.no_grad()
def largest_singular_value(layer: NormalizedLayer, steps: int = 60, seed: int = 0) -> float:
    """The operator norm of a layer in float64, from below, by Lanczos' method.

    The largest Ritz value of :math:`A A^\\top` in a Krylov space of at most ``steps``
    dimensions, with a basis that is kept orthogonal in full.

    Arguments:
        layer: In eval mode its weight is the one that acts.
        steps: Products with the operator and its adjoint.
        seed: Of the first vector.
    """
    weight = layer.normalized_weight().double()
    shape = (1, *layer.left.shape)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape, generator=generator, dtype=torch.float64).to(weight.device)
    process, gram = LanczosProcess(start, steps), layer.gram(weight, domain=False)
    for vector in process:
        process.take(gram(vector))
    return max(0.0, float(torch.linalg.eigvalsh(process.matrix)[-1])) ** 0.5
