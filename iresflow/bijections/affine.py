"""Affine maps of channels that are set from data: a fixed one, and one that is trained."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from iresflow.bijections.base import Bijection, LogDet
from iresflow.bijections.inverse import Accuracy, Inverse
from iresflow.bijections.stretch import Stretch
from iresflow.errors import NotInitializedError
from iresflow.tensors import wide_norm

__all__ = ["ActNorm", "SetFromData", "Standardize"]

ULP = 1e-15
"""More than the relative rounding of a quotient in float64."""

EXPONENTIAL = 4.0
"""More than the relative error of an exponential, in units of eps, on any device."""


class SetFromData(Bijection):
    """What starts as the map that gives the batch of `initialize` mean 0 and standard deviation 1.

    Used or inverted earlier, it raises: each of several processes would start from what its own
    first samples happen to be. Whether it has happened is a buffer, part of every checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.initialized: Tensor
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self._read: tuple[Tensor, int] | None = None

    @abstractmethod
    def _set(self, values: Tensor, mean: Tensor, spread: Tensor) -> None:
        """Takes values ``(C, N)``, means and deviations ``(C,)`` in float64.

        All are finite, and the deviations are positive.
        """

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Sets the map from a batch, whose statistics are taken in float64.

        Raises:
            ValueError: a channel is constant over the batch (as each one is in a batch of one
                vector), or not finite.
        """
        values = x.detach().double().movedim(1, 0).flatten(1)  # (C, B * pixels)
        spread, mean = torch.std_mean(values, dim=1, correction=0)
        bad = (~torch.isfinite(spread) | (spread <= 0)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{type(self).__name__} can't be initialised from a batch of shape "
                f"{tuple(x.shape)}: channel {bad[0]} is constant or not finite ({len(bad)} of "
                f"{len(spread)} channels). Initialise from a batch of several different samples"
            )
        self._set(values, mean, spread)
        self.initialized.fill_(True)
        return self.transform(x, context)

    def _require_initialized(self, verb: str) -> None:
        if not self._is_initialized():
            raise NotInitializedError(
                f"{type(self).__name__} was {verb} before it has seen data: call "
                "the model's initialize(batch) with some hundreds of samples, the same in "
                "all processes, or load a trained model"
            )

    def _is_initialized(self) -> bool:
        """What the buffer says, read from its device only where it has been written to since.

        The host would wait for a GPU at every layer of every step otherwise.
        """
        buffer = self.initialized
        if buffer.is_inference():  # such tensors count no writes
            return bool(buffer)
        if self._read is None or self._read[0] is not buffer or self._read[1] != buffer._version:
            if not buffer:
                return False
            self._read = buffer, buffer._version
        return True


@final
class ActNorm(SetFromData):
    """``z = (x + shift) * exp(log_scale)`` for each channel (Glow, Kingma and Dhariwal, 2018).

    It starts as what gives the batch of `initialize` mean 0 and standard deviation 1; used or
    inverted earlier, it raises.

    Its shift is trained in the units of x, so training depends on them: what has units of its own
    goes through `Standardize` first.

    Arguments:
        channels: C of ``(B, C, H, W)``, or D of ``(B, D)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def _set(self, values: Tensor, mean: Tensor, spread: Tensor) -> None:
        self.shift.copy_(-mean)
        self.log_scale.copy_(-spread.log())

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        z = self.transform(x, context)
        pixels = math.prod(x.shape[2:])
        return z, (self.log_scale.sum() * pixels).expand(x.shape[0])

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self._require_initialized("used")
        return (x + _by_channel(self.shift, x)) * _by_channel(self.log_scale.exp(), x)

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        self._require_initialized("inverted")
        # A division by the very number that `transform` multiplies with: in a wider type than the
        # parameters' the two are inverse to each other up to that type's rounding.
        scale = self.log_scale.exp()
        divided = z / _by_channel(scale, z)
        x = divided - _by_channel(self.shift, z)
        # Half an eps of the quotient and half of the difference, doubled for the norms' sake.
        rounding = torch.finfo(x.dtype).eps * (wide_norm(divided) + wide_norm(x))
        slowest = float(scale.detach().min()) if scale.numel() else 1.0
        return Inverse.closed_form(
            x, lipschitz=(1 + ULP) / slowest if slowest else math.inf, rounding=rounding
        )

    def stretch(self, dim: int) -> Stretch:
        """Of the scales as they are computed, in the parameters' type of float or a wider one."""
        scale = self.log_scale.detach().exp()
        eps = torch.finfo(scale.dtype).eps
        return Stretch.diagonal(
            scale.tolist(), copies=dim // max(1, len(scale)), error=EXPONENTIAL * eps
        )

    def defect(self) -> str | None:
        scale = self.log_scale.detach().exp()
        # Below the normal numbers digits are lost, and the inverse overflows.
        small = scale < torch.finfo(scale.dtype).tiny
        if bool((small | scale.isinf()).any()):
            worst = float(self.log_scale.detach()[small | scale.isinf()][0])
            return f"its scale exp({worst:.4g}) is no normal number of {scale.dtype}"
        return None


@final
class Standardize(SetFromData):
    """``z = (x - mean) / deviation`` for each channel, of the batch it was initialised from.

    It is not trained: after it, data in whatever units are the same up to rounding, and so are a
    model and its training. The mean is subtracted first, so that an offset costs no digits that
    x itself still has.

    Models of version 0.1.0 had none; they load with the identity.

    Arguments:
        channels: C of ``(B, C, H, W)``, or D of ``(B, D)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def _set(self, values: Tensor, mean: Tensor, spread: Tensor) -> None:
        narrow = torch.finfo(self.deviation.dtype)
        outside = (spread < narrow.tiny) | (spread > narrow.max) | (mean.abs() > narrow.max)
        if bool(outside.any()):
            channel = int(outside.nonzero()[0])
            raise ValueError(
                f"channel {channel} has mean {float(mean[channel]):.4g} and deviation "
                f"{float(spread[channel]):.4g}, which {self.deviation.dtype} can't hold: choose "
                "other units, or a model in float64"
            )
        self.mean.copy_(mean)
        self.deviation.copy_(spread)

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        z = self.transform(x, context)
        pixels = math.prod(x.shape[2:])
        return z, (-pixels * self.deviation.log().sum()).expand(x.shape[0])

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self._require_initialized("used")
        return (x - _by_channel(self.mean, x)) / _by_channel(self.deviation, x)

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        self._require_initialized("inverted")
        scaled = z * _by_channel(self.deviation, z)
        x = scaled + _by_channel(self.mean, z)
        # Half an eps of the product and half of the sum, doubled for the norms' sake.
        rounding = torch.finfo(x.dtype).eps * (wide_norm(scaled) + wide_norm(x))
        largest = float(self.deviation.max()) if self.deviation.numel() else 1.0
        return Inverse.closed_form(x, lipschitz=largest * (1 + ULP), rounding=rounding)

    def stretch(self, dim: int) -> Stretch:
        scales = [1 / d if d else math.inf for d in self.deviation.tolist()]
        return Stretch.diagonal(scales, copies=dim // max(1, len(scales)), error=ULP)

    def defect(self) -> str | None:
        tiny = torch.finfo(self.deviation.dtype).tiny
        if bool((self.deviation < tiny).any()):
            return f"its deviation {float(self.deviation.min()):.4g} is no positive normal number"
        return None

    def is_identity(self) -> bool:
        """Whether it leaves x as it is: before it has seen data, or as older models have it."""
        return not bool(self.mean.any()) and bool((self.deviation == 1).all())

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        *rest: Any,  # noqa: ANN401 (what torch passes)
    ) -> None:
        neutral = {
            "mean": torch.zeros_like(self.mean),
            "deviation": torch.ones_like(self.deviation),
            "initialized": torch.ones_like(self.initialized),
        }
        if not any(prefix + name in state_dict for name in neutral):
            state_dict.update({prefix + name: value for name, value in neutral.items()})
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def _by_channel(parameter: Tensor, like: Tensor) -> Tensor:
    return parameter.view(-1, *[1] * (like.ndim - 2))
