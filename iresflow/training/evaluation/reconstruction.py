"""Samples of a split through a trained model to the latent and back."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.ambient import full_precision
from iresflow.bijections import Accuracy
from iresflow.models import Flow, FlowInverse, ImageFlow
from iresflow.training.loop.batches import Samples
from iresflow.training.objectives.contexts import batch_of

__all__ = ["RECONSTRUCTED", "Reconstruction", "reconstruct"]

BATCH = 250
"""Samples at a time."""

RECONSTRUCTED = 1000
"""Samples of a split that are sent through the inverse for a report, at most."""


@final
@dataclass(frozen=True)
class Reconstruction:
    """How exactly data comes back through latent and inverse.

    Attributes:
        originals: The x that were sent, ``(B, *event)``.
        inverse: What came back, with its certified and measured errors.
    """

    originals: Tensor
    inverse: FlowInverse

    @property
    def values(self) -> Tensor:
        """The reconstructed x, ``(B, *event)``."""
        return self.inverse.value

    @property
    def largest_error(self) -> float:
        """The largest absolute difference of any entry, in units of x."""
        return float((self.values - self.originals).abs().max())

    def __str__(self) -> str:
        return (
            f"largest reconstruction error {self.largest_error:.1e} in x over "
            f"{len(self.values)} samples, certified block error "
            f"{float(self.inverse.block_error.max()):.1e}, measured latent residual "
            f"{float(self.inverse.residual.max()):.1e}"
        )


@torch.no_grad()
@full_precision()
def reconstruct(
    flow: Flow,
    split: Samples,
    *,
    count: int,
    seed: int = 0,
    tol: float | None = None,
) -> Reconstruction:
    """Sends the first ``count`` samples of a split to the latent and back.

    Errors: as `Flow.invert`.
    """
    device = next(flow.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    originals, inverses = [], []
    count = min(count, len(split))
    for first in range(0, count, BATCH):
        x, context = batch_of(flow, split, first, min(BATCH, count - first))
        if isinstance(flow, ImageFlow):
            x = flow.dequantize(x, generator)
        z = flow.transform(x, context)
        originals.append(x)
        inverses.append(flow.invert(z, context, None if tol is None else Accuracy(tol)))
    return Reconstruction(torch.cat(originals), FlowInverse.concatenate(inverses))
