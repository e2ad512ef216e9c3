"""What the objectives of all certified models have in common."""

from collections.abc import Callable

import torch
from torch import nn

from iresflow.bijections import ActNorm
from iresflow.models.certified import CertifiedModel
from iresflow.training.loop.batches import Batch, Samples, random_stream
from iresflow.training.objectives.base import Ready, stored

__all__ = ["certified_ready", "initialize_once"]


def certified_ready(model: CertifiedModel) -> Ready:
    """Enforces the certified norms; the certificate is stored with the weights.

    A model without limits is usable whatever its certificate says.
    """
    certificate = model.enforce()
    return Ready(
        {"model": stored(model), "certificate": certificate.to_dict()},
        {"certified/largest_lipschitz_bound": certificate.largest},
        usable=bool(certificate) or not model.limited,
    )


def initialize_once(
    model: nn.Module,
    split: Samples,
    seed: int,
    count: int,
    initialize: Callable[[Batch], None],
) -> None:
    """Initialises ActNorm from random samples, unless all of it has seen data before.

    Arguments:
        model: With ActNorm or without.
        split: The samples.
        seed: Of the choice.
        count: Samples at most.
        initialize: Sets the model from some samples, on their own device.
    """
    norms = [module for module in model.modules() if isinstance(module, ActNorm)]
    if norms and all(bool(norm.initialized) for norm in norms):
        return
    stream = random_stream(seed, 0, 3, torch.device("cpu"))
    index = torch.randperm(len(split), generator=stream)[:count].to(split.values.device)
    initialize(Batch.of(split, index))
