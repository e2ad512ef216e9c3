"""From the latent of an invertible classifier to its logits."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresflow.lipschitz import Activation
from iresflow.tensors import linear

__all__ = ["PooledReadOut", "ReadOut", "SimplifiedReadOut"]

ULP = 1e-12
"""More than the relative rounding of a norm in float64 over some thousand entries."""


class ReadOut(nn.Module, ABC):
    """A map of flat latents ``(B, D)`` to logits ``(B, classes)``."""

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of latents ``(B, D)``, in the type of the latents."""

    def settled(self, z: Tensor) -> Tensor:
        """As `forward` in eval mode, where no sample's logits depend on the others'."""
        return self(z)

    @abstractmethod
    def stretches(self) -> Tensor:
        """Lipschitz bounds ``(classes, classes)`` of the differences of two logits, float64.

        Of logit i minus logit j as a function of the latent in eval mode; 0 on the diagonal.
        """


@final
class SimplifiedReadOut(ReadOut):
    """The first entries of the latent are the logits (thesis, Definition 6.7).

    Arguments:
        classes: C.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, z: Tensor) -> Tensor:
        return z[:, : self.classes]

    def stretches(self) -> Tensor:
        ones = torch.ones(self.classes, self.classes, dtype=torch.float64)
        return math.sqrt(2) * (1 + ULP) * (ones - torch.eye(self.classes, dtype=torch.float64))


@final
class PooledReadOut(ReadOut):
    """BatchNorm, an activation, the mean over the pixels, a linear layer (thesis, appendix A.1).

    In training mode BatchNorm sees the batch as a whole, so a batch in parts gives slightly other
    gradients than the whole one: its statistics are those of each part.

    Arguments:
        shape: (C, H, W) of the latent as an image; (D,) to take it as a vector, of one pixel.
        classes: Of the logits.
        activation: Between the BatchNorm and the mean.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, activation: Activation) -> None:
        super().__init__()
        self.shape = shape
        self.norm = nn.BatchNorm1d(shape[0])  # of channels and flat pixels
        self.activation = activation
        self.linear = nn.Linear(activation.width * shape[0], classes)

    def forward(self, z: Tensor) -> Tensor:
        if not self.training:
            return self.settled(z)
        # BatchNorm mixes no types of float.
        channels = self.norm(self._channels(z).to(self.norm.weight.dtype))
        return self._read(channels.to(z.dtype))

    def settled(self, z: Tensor) -> Tensor:
        norm = self.norm  # its own numbers, in the type of z
        values = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, weight, bias = (v if v is None else v.to(z.dtype) for v in values)
        normalized = F.batch_norm(self._channels(z), mean, variance, weight, bias, eps=norm.eps)
        return self._read(normalized)

    @torch.no_grad()
    def stretches(self) -> Tensor:
        norm, weight = self.norm, self.linear.weight.double().cpu()
        assert norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        slope = self.activation.lipschitz_in(2.0) * scale.abs().cpu() / math.sqrt(self._pixels)
        differences = weight[:, None] - weight[None]
        # An entry has `width` values, the norm of whose slopes is at most the constant.
        of_entries = differences.unflatten(2, (self.activation.width, -1)).norm(dim=2)
        return torch.linalg.vector_norm(of_entries * slope, dim=2) * (1 + ULP)

    def _channels(self, z: Tensor) -> Tensor:
        return z.reshape(len(z), self.shape[0], -1)

    def _read(self, channels: Tensor) -> Tensor:
        features = self.activation(channels).mean(2)
        weight, bias = self.linear.weight.to(channels.dtype), self.linear.bias.to(channels.dtype)
        return linear(features, weight, bias)

    @property
    def _pixels(self) -> int:
        return math.prod(self.shape[1:])
