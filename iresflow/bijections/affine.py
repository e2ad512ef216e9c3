"""ActNorm: an affine map for each channel, initialised from data."""

import math
from typing import final

import torch
from torch import Tensor, nn

from iresflow.bijections.base import Accuracy, Bijection, Inverse, LogDet
from iresflow.bijections.stretch import Stretch
from iresflow.errors import NotInitializedError
from iresflow.tensors import wide_norm

__all__ = ["ActNorm"]

ULP = 1e-15
"""More than the relative rounding of a quotient in float64."""


@final
class ActNorm(Bijection):
    """``z = (x + shift) * exp(log_scale)`` for each channel (Glow, Kingma and Dhariwal, 2018).

    It starts as what gives its first batch mean 0 and standard deviation 1. That happens in
    `initialize`, or in the first forward pass in *training mode*; used earlier in eval mode, or
    inverted earlier, it raises. Whether it has happened is a buffer, part of every checkpoint.

    Arguments:
        channels: C of ``(B, C, H, W)``, or D of ``(B, D)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.initialized: Tensor
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self._read: tuple[Tensor, int] | None = None

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Sets shift and scale from a batch, in float64.

        Raises:
            ValueError: a channel is constant over the batch (as each one is in a batch of one
                vector), or not finite.
        """
        values = x.detach().double().movedim(1, 0).flatten(1)  # (C, B * pixels)
        spread, mean = torch.std_mean(values, dim=1, correction=0)
        bad = (~torch.isfinite(spread) | (spread <= 0)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"ActNorm can't be initialised from a batch of shape {tuple(x.shape)}: channel "
                f"{bad[0]} is constant or not finite ({len(bad)} of {len(spread)} channels). "
                "Initialise from a batch of several different samples"
            )
        self.shift.copy_(-mean)
        self.log_scale.copy_(-spread.log())
        self.initialized.fill_(True)
        return self.transform(x, context)

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        z = self.transform(x, context)
        pixels = math.prod(x.shape[2:])
        return z, (self.log_scale.sum() * pixels).expand(x.shape[0])

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if not self._is_initialized():
            if not self.training:
                raise NotInitializedError(_message("used"))
            self.initialize(x)
        return (x + self._spread(self.shift, x)) * self._spread(self.log_scale.exp(), x)

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        if not self._is_initialized():
            raise NotInitializedError(_message("inverted"))
        # A division by the very number that `transform` multiplies with: in a wider type than the
        # parameters' the two are inverse to each other up to that type's rounding.
        scale = self.log_scale.exp()
        divided = z / self._spread(scale, z)
        x = divided - self._spread(self.shift, z)
        # Half an eps of the quotient and half of the difference, doubled for the norms' sake.
        rounding = torch.finfo(x.dtype).eps * (wide_norm(divided) + wide_norm(x))
        slowest = float(scale.detach().double().min()) if scale.numel() else 1.0
        return Inverse.closed_form(
            x, lipschitz=(1 + ULP) / slowest if slowest else math.inf, rounding=rounding
        )

    def stretch(self, dim: int) -> Stretch:
        logs = self.log_scale.detach().double()
        log_det = float(logs.sum()) * (dim // len(logs))
        return Stretch.scaling(float(logs.min()), float(logs.max()), log_det)

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

    @staticmethod
    def _spread(parameter: Tensor, like: Tensor) -> Tensor:
        return parameter.view(-1, *[1] * (like.ndim - 2))


def _message(verb: str) -> str:
    return (
        f"ActNorm was {verb} before it has seen data: call flow.initialize(batch), train the "
        "flow, or load a trained one"
    )
