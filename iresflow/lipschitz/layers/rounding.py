"""What rounding does to a weight where it is scaled."""

import math

import torch
from torch import Tensor

__all__ = ["entry_errors", "scaling_error"]


def entry_errors(dtype: torch.dtype, scale: float) -> tuple[float, float]:
    """By what an entry of the raw weight is off, at most, where rounding scales it.

    That is its magnitude times the first number, plus the second: below the normal numbers, which
    some processors take for 0, rounding is no longer relative.
    """
    info = torch.finfo(dtype)
    return info.eps, info.tiny / scale if scale else 0.0


def scaling_error(weight: Tensor, scale: float = 1.0) -> float:
    """Upper bound of the norm of what rounding adds to a raw weight where it is scaled.

    That is the sum of the Frobenius norms of the taps, which bounds the norm of a convolution
    without what extends its image.

    Arguments:
        weight: ``(D, C)``, or a kernel ``(D, C, k, k)``.
        scale: What it is multiplied by.
    """
    error, quantum = entry_errors(weight.dtype, scale)
    taps = weight.detach().double().reshape(*weight.shape[:2], -1)
    total = float(torch.linalg.vector_norm(taps, dim=(0, 1)).sum())
    entries = math.sqrt(taps[..., 0].numel()) * taps.shape[-1]
    return error * total + quantum * entries
