"""Affine maps of flat vectors: products without a matrix, and the matrix where one is needed.

Samples are rows: a batch of flattened inputs is ``(B, n)``, of flattened outputs ``(B, m)``. All
is float64 on the CPU, since ranks and linear programs are decided in it.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

__all__ = ["AffineMap", "ConvolutionMap", "DenseMap", "IdentityMap", "Matrix", "as_array"]

Matrix = np.ndarray | sparse.csr_array
"""A real matrix ``(m, n)``, dense or sparse."""


def as_array(values: object, name: str, dimensions: int) -> np.ndarray:
    """Values as a float64 array of that many dimensions, dense.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    dense = values.toarray() if hasattr(values, "toarray") else values
    if hasattr(dense, "detach"):
        dense = dense.detach().cpu()
    array = np.asarray(dense, dtype=float)
    if array.ndim != dimensions:
        kind = {1: "vector", 2: "matrix"}[dimensions]
        raise ValueError(f"{name} has shape {array.shape}; allowed is a {kind}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array


class AffineMap(ABC):
    """A map x -> A x + b of flattened tensors.

    Attributes:
        in_shape: Shape of an input before flattening; n is the product.
        out_shape: Likewise of an output; m is the product.
        bias: b, shape ``(m,)``.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    bias: Tensor

    @property
    def in_size(self) -> int:
        """n."""
        return math.prod(self.in_shape)

    @property
    def out_size(self) -> int:
        """m."""
        return math.prod(self.out_shape)

    def __call__(self, x: Tensor) -> Tensor:
        """A x + b: ``(B, n)`` to ``(B, m)``."""
        return self.product(x) + self.bias

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """A x: ``(B, n)`` to ``(B, m)``."""

    @abstractmethod
    def adjoint(self, u: Tensor) -> Tensor:
        """The transposed product: ``(B, m)`` to ``(B, n)``."""

    @abstractmethod
    def matrix(self) -> Matrix:
        """A, shape ``(m, n)``; sparse where most of its entries are zeros."""

    def dense(self) -> np.ndarray:
        """A, shape ``(m, n)``, as a dense array."""
        matrix = self.matrix()
        return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


PART = 32
"""Images that are convolved in one go, where there are many."""


@final
class DenseMap(AffineMap):
    """The map of a matrix.

    Arguments:
        weight: A, shape ``(m, n)``.
        bias: b, shape ``(m,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.out_shape, self.in_shape = weight.shape[:1], weight.shape[1:]

    def product(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT

    def adjoint(self, u: Tensor) -> Tensor:
        return u @ self.weight

    def matrix(self) -> Matrix:
        return self.weight.numpy()


@final
class IdentityMap(AffineMap):
    """x -> x, for an activation that no linear layer precedes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.in_shape = self.out_shape = shape
        self.bias = torch.zeros(math.prod(shape), dtype=torch.float64)

    def product(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, u: Tensor) -> Tensor:
        return u

    def matrix(self) -> Matrix:
        return sparse.eye_array(self.in_size, format="csr")


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
        images = x.unflatten(1, self.in_shape)
        if self._groups > 1 or len(x) < PART:
            return self._convolve(images).flatten(1)
        # For many images: torch's float64 convolution is several times slower.
        result = x.new_empty(len(x), self.out_size)
        for part, into in zip(images.split(PART), result.split(PART), strict=True):
            into.copy_(self._multiply(part).flatten(1))
        return result

    def adjoint(self, u: Tensor) -> Tensor:
        zero = u.new_zeros(len(u), self.in_size)
        _, pullback = torch.func.vjp(self.product, zero)
        return pullback(u)[0]

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

    def _multiply(self, x: Tensor) -> Tensor:
        """`_convolve` of a part of a batch as one matrix product, into ``(B, out, places)``."""
        patches = F.unfold(
            self._pad(x), self.weight.shape[-2:], dilation=self._dilation, stride=self._stride
        )
        return self.weight.flatten(1) @ patches
