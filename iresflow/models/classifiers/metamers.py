"""Inverses and metamers of invertible classifiers, with what was measured of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final
from warnings import warn

import torch
from torch import Tensor

from iresflow.errors import InversionWarning, callers_level
from iresflow.models.inversion import RESIDUAL, FlowInverse
from iresflow.tensors import wide_norm

__all__ = ["ClassifierInverse", "Metamers", "measured_metamers", "warn_off_range"]


@final
@dataclass(frozen=True)
class ClassifierInverse:
    """x from latents, for B samples.

    Attributes:
        value: x, ``(B, *shape)``, without the padded channels.
        distance: How far these are from the zeros that padding puts there, ``(B,)``, Euclidean.
            Where it is above the errors of the inverse, the latent is that of no x at all.
        padded: The inverse in all channels, with its certified and measured errors.
    """

    value: Tensor
    distance: Tensor
    padded: FlowInverse

    @staticmethod
    def of_padded(padded: FlowInverse, channels: int) -> "ClassifierInverse":
        """The first channels of an inverse in all of them."""
        rest = padded.value[:, channels:]
        return ClassifierInverse(padded.value[:, :channels], wide_norm(rest), padded)


def warn_off_range(inverse: ClassifierInverse, blocks: int) -> None:
    """Says so where latents are those of no x.

    Arguments:
        inverse: Whose.
        blocks: How many have an error in it.

    Warns:
        InversionWarning: the padded channels of an inverse are not zero.
    """
    entries = inverse.padded.value[0].numel() if len(inverse.value) else 1
    allowed = torch.maximum(
        inverse.padded.block_error * blocks,
        torch.full_like(inverse.distance, RESIDUAL * entries**0.5),
    )
    off = inverse.distance > allowed
    if bool(off.any()):
        warn(
            f"{int(off.sum())} of {len(off)} latents are those of no x: their inverses are up to "
            f"{float(inverse.distance.max()):.3g} from zero on the padded channels, which are cut "
            "off. invert(z).distance has the number of each",
            InversionWarning,
            stacklevel=callers_level(),
        )


@final
@dataclass(frozen=True)
class Metamers:
    """Samples that were made to have the logits of one sample and the nuisance of another.

    Attributes:
        images: ``(B, *shape)``; images of a trained model, but not always in pixel range.
        residual: Distance ``(B,)`` of the latents that they are mapped to from the wanted ones,
            measured in the widest type of float.
        logit_error: The largest difference ``(B,)`` of any of their logits from the wanted one.
        same_decision: Whether their largest logit is the wanted one's, ``(B,)`` booleans.
        outside: By how much their pixels leave [0, 1] at most, ``(B,)``; 0 where they don't, and
            of vectors, which have no range.
        distance: As of `ClassifierInverse`; above 0 with padding alone, and then the reason of the
            residual.
    """

    images: Tensor
    residual: Tensor
    logit_error: Tensor
    same_decision: Tensor
    outside: Tensor
    distance: Tensor


@torch.no_grad()
def measured_metamers(
    inverse: ClassifierInverse,
    wanted: Tensor,
    transform: Callable[[Tensor], Tensor],
    classes: int,
    clip: bool,
) -> Metamers:
    """The inverses of latents as metamers, sent through the network once more.

    Arguments:
        inverse: Of the wanted latents ``(B, D)``.
        wanted: Whose first entries are the logits.
        transform: Of the classifier.
        classes: Number of logits.
        clip: Whether entries are clipped to [0, 1] first.
    """
    images = inverse.value
    flat = images.flatten(1)
    outside = torch.maximum(-flat, flat - 1).amax(1).clamp_min(0)
    if images.ndim == 2:
        outside = torch.zeros_like(outside)
    if clip:
        images = images.clamp(0, 1)
    target = wanted.double()
    got = transform(images.double())
    return Metamers(
        images,
        wide_norm(got - target),
        (got - target)[:, :classes].abs().amax(1),
        got[:, :classes].argmax(1) == wanted[:, :classes].argmax(1),
        outside,
        inverse.distance,
    )
