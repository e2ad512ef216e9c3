"""The affine map of a convolution, with its sparse matrix at once."""

from functools import cached_property
from typing import final

import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from iresflow.relu.networks.affine import AffineMap, Matrix

__all__ = ["ConvolutionMap"]


@final
class ConvolutionMap(AffineMap):
    """The map of a convolution on images of one size, with any padding, stride or groups.

    Arguments:
        module: The convolution.
        in_shape: (C, H, W).

    Raises:
        ValueError: If the kernel is larger than the padded image.
    """

    def __init__(self, module: nn.Conv2d, in_shape: tuple[int, ...]) -> None:
        self.weight = module.weight.detach().to("cpu", torch.float64)
        self.in_shape = in_shape
        self._stride, self._dilation = module.stride, module.dilation
        self._groups = module.groups
        # What module.forward pads by, in the order of F.pad; "same" and modes included.
        self._padding: tuple[int, ...] = tuple(module._reversed_padding_repeated_twice)
        self._mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        try:
            shape = self._convolve(torch.zeros(1, *in_shape, dtype=torch.float64)).shape[1:]
        except RuntimeError as error:
            raise ValueError(f"images of shape {in_shape} do not fit: {error}") from None
        self.out_shape = tuple(shape)
        bias = torch.zeros(len(self.weight)) if module.bias is None else module.bias.detach()
        pixels = self.out_size // len(bias)
        self.bias = bias.to("cpu", torch.float64).repeat_interleave(pixels)

    def product(self, x: Tensor) -> Tensor:
        return self._convolve(x.unflatten(1, self.in_shape)).flatten(1)

    def adjoint(self, u: Tensor) -> Tensor:
        zero = u.new_zeros(len(u), self.in_size)
        return torch.func.vjp(self.product, zero)[1](u)[0]

    def matrix(self) -> Matrix:
        return self._sparse

    @cached_property
    def _sparse(self) -> sparse.csr_array:
        channels, height, width = self.in_shape
        # Pad and cut the numbers of the pixels as the convolution pads and cuts the pixels; 0 is
        # what lies beyond a border of zeros.
        numbers = torch.arange(1, height * width + 1, dtype=torch.float64)
        patches = F.unfold(
            self._pad(numbers.view(1, 1, height, width)),
            self.weight.shape[-2:],
            dilation=self._dilation,
            stride=self._stride,
        )[0].long()  # (taps, places)
        taps, places = patches.shape
        outputs, within = self.weight.shape[:2]
        kernel = self.weight.reshape(outputs, within, taps)
        group = torch.arange(outputs) // (outputs // self._groups)
        source = group[:, None] * within + torch.arange(within)  # (outputs, within)
        size = (outputs, within, taps, places)
        rows = torch.arange(outputs)[:, None, None, None] * places + torch.arange(places)
        columns = source[:, :, None, None] * (height * width) + patches - 1
        inside = (patches > 0).expand(size).flatten()
        entries = [
            part.expand(size).flatten()[inside].numpy()
            for part in (kernel[..., None], rows, columns)
        ]
        # Equal places of a padding that mirrors are added up here.
        matrix = sparse.coo_array(
            (entries[0], (entries[1], entries[2])), shape=(self.out_size, self.in_size)
        )
        return matrix.tocsr()

    def _pad(self, x: Tensor) -> Tensor:
        return F.pad(x, self._padding, mode=self._mode) if any(self._padding) else x

    def _convolve(self, x: Tensor) -> Tensor:
        return F.conv2d(
            self._pad(x),
            self.weight,
            stride=self._stride,
            dilation=self._dilation,
            groups=self._groups,
        )
