"""A fixed linear map that takes away the correlations of entries, or of channels."""

import math
import warnings
from typing import final

import torch
from torch import Tensor

from iresflow.bijections.affine import SetFromData
from iresflow.bijections.base import LogDet
from iresflow.bijections.inverse import Accuracy, Inverse
from iresflow.bijections.stretch import Stretch
from iresflow.errors import callers_level
from iresflow.tensors import linear, wide_norm

__all__ = ["Decorrelate"]

LEAST = 1e-6
"""Part of the mean variance that each direction is taken to have at least: float32 keeps three
digits of one that has less, and one that has none, as of a column that others add up to, stays."""


@final
class Decorrelate(SetFromData):
    r""":math:`z = C^{-1/2} x` with C the covariance of the batch it was initialised from.

    Of all maps that decorrelate, the symmetric root leaves standardised entries closest to what
    they were (Kessy, Lewin and Strimmer, 2018, "Optimal whitening and decorrelation"); so it comes
    after `Standardize`. Of an image it is the same map at each pixel, and of its channels. It is
    not trained.

    Arguments:
        channels: C of ``(B, C, H, W)``, or D of ``(B, D)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrix: Tensor
        self.register_buffer("matrix", torch.eye(channels))

    def _set(self, values: Tensor, mean: Tensor, spread: Tensor) -> None:
        centred = values - mean[:, None]
        variances, directions = torch.linalg.eigh(centred @ centred.T / values.shape[1])
        least = LEAST * float(variances.mean())
        self._warn(int((variances < least).sum()), values.shape[1])
        variances = variances.clamp_min(least)
        self.matrix.copy_((directions / variances.sqrt()) @ directions.T)

    def _warn(self, flat: int, count: int) -> None:
        """Says that some directions of the vectors it is set from have no variance."""
        if flat:
            warnings.warn(
                f"{flat} of {len(self.matrix)} directions of the {count} vectors that Decorrelate "
                f"is initialised from have (almost) no variance, less than {LEAST:g} of the mean: "
                "columns follow from each other, or there are no more rows than columns. Such "
                "data have no density: likelihoods are set by that limit, and mean little",
                stacklevel=callers_level(),
            )

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        z = self.transform(x, context)
        volume = torch.linalg.slogdet(self.matrix.double())[1] * math.prod(x.shape[2:])
        return z, volume.to(z.dtype).expand(len(x))

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self._require_initialized("used")
        return _times(self.matrix.to(x.dtype), x)

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        self._require_initialized("inverted")
        matrix = self.matrix.double()
        columns = z.double().movedim(1, 0)
        x = torch.linalg.solve(matrix, columns.flatten(1)).reshape(columns.shape).movedim(0, 1)
        value = x.to(z.dtype)
        # An error e leaves a residual of M e: what is left, and what its own sums may have lost.
        left = wide_norm(_times(matrix, value.double()) - z.double())
        lost = len(matrix) * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(matrix)
        lipschitz = self.stretch(math.prod(z.shape[1:])).inverse
        return Inverse.closed_form(
            value, lipschitz=lipschitz, rounding=lipschitz * (left + lost * wide_norm(value))
        )

    def stretch(self, dim: int) -> Stretch:
        """Of the matrix as it is stored, from its singular values."""
        singular = torch.linalg.svdvals(self.matrix.double())
        # The computed ones are those of a matrix so close (Higham, 2002, section 20.3).
        error = 8 * len(singular) * torch.finfo(torch.float64).eps * float(singular[0])
        low, high = float(singular[-1]) - error, float(singular[0]) + error
        if not 0 < low <= high < math.inf:
            return Stretch.unknown()
        log_det = float(singular.log().sum()) * (dim // len(singular))
        slack = 2 * dim * error / low
        return Stretch(math.log(high), -math.log(low), log_det - slack, log_det + slack)

    def defect(self) -> str | None:
        if not bool(self.matrix.isfinite().all()):
            return None  # which is looked for elsewhere
        singular = torch.linalg.svdvals(self.matrix.double())
        if float(singular[-1]) <= len(singular) * torch.finfo(torch.float64).eps * singular[0]:
            return f"its matrix is singular: it shrinks a direction by {float(singular[-1]):.4g}"
        return None


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """The product with the channels at each place of ``(B, C, ...)``."""
    moved = x.movedim(1, -1)
    return linear(moved.flatten(0, -2), matrix).view(moved.shape).movedim(-1, 1)
