"""Seconds for a training step, ours and the published reference's, in the same process.

The reference is the residual flow of ``normflows`` (``pip install normflows``), whose blocks are
the code of the Residual Flow paper. Both have the same blocks, channels, batch, ActNorm, squeeze,
Adam, and five power iterations a layer and step. Steps alternate, so that both meet the same
machine.

    python benchmarks/step.py                   MNIST, digits and CIFAR shapes
    python benchmarks/step.py --only digits --repeats 30
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import iresflow
from iresflow.logdet import LogDetEstimator


@dataclass(frozen=True)
class Shape:
    """An architecture and its batch."""

    image: tuple[int, int, int]
    blocks: tuple[int, ...]
    hidden: int
    batch: int


SHAPES = {
    "mnist": Shape((1, 28, 28), (4, 4, 4), 64, 64),
    "digits": Shape((1, 8, 8), (4, 4), 32, 64),
    "cifar": Shape((3, 32, 32), (4, 4, 4), 128, 16),
}

Step = Callable[[], None]


def ours(shape: Shape, log_det: LogDetEstimator, images: Tensor) -> Step:
    flow = iresflow.ImageFlow(
        shape.image, shape.blocks, shape.hidden, levels=256, log_det=log_det, factor_out=False
    )
    flow.initialize(images)
    flow.train()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss = -flow.log_prob(images).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def reference(shape: Shape, terms: int | None, images: Tensor) -> Step:
    import normflows as nf

    layers: list[nn.Module] = []
    channels = shape.image[0]
    for level, blocks in enumerate(shape.blocks):
        if level:
            layers.append(_Squeeze())
            channels *= 4
        side = shape.image[1] // 2**level
        for _ in range(blocks):
            net = nf.nets.LipschitzCNN(
                [channels, shape.hidden, shape.hidden, channels],
                [3, 1, 3],
                lipschitz_const=0.98,
                max_lipschitz_iter=5,
                init_zeros=False,
            )
            layers.append(nf.flows.ActNorm((channels, side, side)))
            layers.append(nf.flows.Residual(net, n_dist="poisson", lamb=2.0, n_power_series=terms))
    model = nn.ModuleList(layers).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    alpha = 0.05

    def step() -> None:
        s = alpha + (1 - 2 * alpha) * images
        z = s.log() - (1 - s).log()
        log_det = 0
        for layer in layers:
            if isinstance(layer, _Squeeze):
                z = F.pixel_unshuffle(z, 2)
            else:
                z, term = layer.inverse(z)
                log_det = log_det + term
        loss = (z.square().flatten(1).sum(1) / 2 - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        nf.utils.update_lipschitz(model, n_iterations=5)

    return step


class _Squeeze(nn.Module):
    pass
