"""Priors to compare with: total variation, and deepinv's PatchNR."""

import math
from typing import Any, final

import torch
from torch import Tensor

from iresflow.extras import import_extra
from iresflow.inverse_problems import Domain, PatchPrior, Potential, ProjectedQuasiNewton
from iresflow.tensors import sum_per_sample

__all__ = ["PatchNR", "TotalVariation", "train_patchnr"]

SMOOTH = 0.01
"""Below such a slope, total variation is rounded off."""


@final
class TotalVariation(Potential):
    r"""The sum over pixels of :math:`\sqrt{|\nabla x|^2 + 0.01^2}`, in images in [0, 1].

    The slope is of forward differences, of all channels together (Bresson and Chan, 2008); the
    constant makes it differentiable.

    Arguments:
        weight: What it is multiplied by, in nats.
    """

    def __init__(self, weight: float) -> None:
        super().__init__(Domain(0.0, 1.0), 1e3, ProjectedQuasiNewton())
        self.weight = weight

    def require_images(self, x: Tensor) -> None:
        if x.ndim != 4:
            raise ValueError(f"images are (B, C, H, W), got {tuple(x.shape)}")

    def negative_log_density(self, x: Tensor) -> Tensor:
        down = torch.diff(x, dim=2, append=x[:, :, -1:])
        right = torch.diff(x, dim=3, append=x[:, :, :, -1:])
        slope = (down.square() + right.square()).sum(1) + SMOOTH**2
        return self.weight * sum_per_sample(slope.sqrt() - SMOOTH)


@final
class PatchNR(Potential):
    """deepinv's flow of patches, on the patches of another prior and summed as they are.

    Arguments:
        flow: A ``deepinv.optim.PatchNR``.
        like: Which patches.
    """

    def __init__(self, flow: Any, like: PatchPrior) -> None:  # noqa: ANN401 (no types there)
        super().__init__(Domain(0.0, 1.0), 1e3, ProjectedQuasiNewton())
        self.flow = flow.eval().requires_grad_(False)
        self.like = like

    def require_images(self, x: Tensor) -> None:
        self.like.require_images(x)

    def negative_log_density(self, x: Tensor) -> Tensor:
        patches = self.like.extract(x).flatten(2)
        dim = patches.shape[2]
        # deepinv leaves the constant of the normal density out.
        each = self.flow.fn(patches) + dim / 2 * math.log(2 * math.pi)
        return math.prod(x.shape[1:]) / dim * each.mean(1)


def train_patchnr(patches: Tensor, channels: int, side: int, steps: int, seed: int) -> Any:  # noqa: ANN401
    """deepinv's PatchNR at its defaults, trained by maximum likelihood on patches ``(N, D)``.

    With Adam and a learning rate that falls from 1e-3 to 0 as a cosine.

    Raises:
        MissingLibraryError: deepinv is not installed.
    """
    deepinv = import_extra("deepinv", "inverse")
    torch.manual_seed(seed)
    flow = deepinv.optim.PatchNR(patch_size=side, channels=channels)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = patches[torch.randint(len(patches), (256,), generator=generator)]
        optimizer.zero_grad()
        flow.fn(batch[None]).mean().backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return flow.eval()
