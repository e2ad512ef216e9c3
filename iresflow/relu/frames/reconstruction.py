"""The input of one ReLU layer from its output, by least squares on the active rows."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.relu.frames.active_rows import checked_points, checked_weight
from iresflow.relu.networks.network import Layer
from iresflow.relu.ranks import Verdict, shortest_solution

__all__ = ["Reconstruction", "reconstruct"]


@final
@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Inputs recovered from the outputs of one layer.

    Attributes:
        x: ``(B, n)`` float64: the least-squares solution, and of many the shortest.
        rank: Dimensions in which the active rows determine it beyond doubt, ``(B,)`` int64.
        residual: Largest violation of an equation of the active rows, ``(B,)``: well above
            rounding, the output is none of this layer.
        verdicts: Whether the rank is full, for each output: "yes", "no" or "uncertain".
    """

    x: Tensor
    rank: Tensor
    residual: Tensor
    verdicts: tuple[Verdict, ...]

    @property
    def determined(self) -> Tensor:
        """Whether x is the layer's input beyond doubt, ``(B,)`` bool."""
        return torch.tensor([verdict == "yes" for verdict in self.verdicts])


def reconstruct(layer: Layer, z: Tensor) -> Reconstruction:
    """Solves W+ x = z+ + alpha+ by least squares (eq. 9), for many outputs at once.

    The active rows are those with z > 0. Directions whose rank is in doubt count as lost.

    Arguments:
        layer: A ReLU layer.
        z: Outputs of it, ``(B, m)``.

    Raises:
        ValueError: shapes that don't fit, values that are not finite, or a negative output.
    """
    weight, bias = checked_weight(layer), layer.affine.bias
    outputs = checked_points(z, len(weight))
    if bool((outputs < 0).any()):
        raise ValueError("outputs hold negative values: they are none of ReLU")
    active = outputs > 0
    if bool((active & torch.isinf(bias)).any()):
        raise ValueError("an output is positive where the bias is infinite")
    found, spectra = [], []
    for rows, output in zip(active, outputs, strict=True):
        one, spectrum = shortest_solution(weight[rows].numpy(), (output - bias)[rows].numpy())
        found.append(torch.from_numpy(one))
        spectra.append(spectrum)
    x = torch.stack(found)
    residual = torch.where(active, x @ weight.mT + bias - outputs, 0.0).abs().amax(1)
    return Reconstruction(
        x,
        torch.tensor([spectrum.rank for spectrum in spectra]),
        residual,
        tuple(spectrum.spans(weight.shape[1]) for spectrum in spectra),
    )
