"""The passes through a chain, compiled for the processor: see ``cpp/chain.cpp``.

They are for what most chains are on a CPU: dense layers, or convolutions with zero padding and
stride 1, in float32 or float64. The results are those of `TorchPasses` up to rounding, several
times faster for small images, whose tensors take less time than the calls that PyTorch makes of
them.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from iresflow.lipschitz.layers.activations import (
    ELU,
    Activation,
    CLipSwish,
    LipSwish,
    Sine,
    SineCosine,
    Tanh,
)
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.lipschitz.layers.linear import NormalizedConv2d, NormalizedDense
from iresflow.lipschitz.passes.kernels import kernels_compile
from iresflow.lipschitz.passes.links import Hidden, Link
from iresflow.lipschitz.passes.native.library import SCALARS, Shape, is_plain, library, plain
from iresflow.lipschitz.passes.native.library import Link as Record
from iresflow.lipschitz.passes.plain import Passes, Primal, Slopes, TorchPasses
from iresflow.powers import KrylovFound, KrylovSpace, PowerSums, Series

__all__ = ["NativePasses", "native_passes"]

Records = ctypes.Array[Record]

KINDS: dict[type[Activation], int] = {
    ELU: 1,
    Tanh: 2,
    LipSwish: 3,
    CLipSwish: 4,
    Sine: 5,
    SineCosine: 6,
}
"""``Kind`` of ``cpp/links.h``; 0 for none."""

KIND_OF_LAYER: dict[int, type[NormalizedLayer]] = {2: NormalizedDense, 4: NormalizedConv2d}
"""By the number of dimensions of a batch."""


def native_passes(links: Sequence[Link], x: Tensor) -> "NativePasses | None":
    """The compiled passes for points like x, or None where they are not made for these."""
    if kernels_compile() and _suits(links, x) and library() is not None:
        return NativePasses(links, x)
    return None


def _suits(links: Sequence[Link], x: Tensor) -> bool:
    tensors = [x, *(t for link in links for t in (link.weight, link.bias))]
    if x.dtype not in SCALARS or not all(is_plain(t) for t in tensors):
        return False
    channels = [x.shape[1] if x.ndim > 1 else 0, *(len(link.weight) for link in links)]
    if x.ndim not in KIND_OF_LAYER or any(
        link.weight.shape[1] != link.width * count
        for link, count in zip(links, channels, strict=False)
    ):
        return False  # PyTorch says what is wrong
    return all(
        isinstance(link.layer, KIND_OF_LAYER[x.ndim])
        and link.layer.plain
        and link.weight.dtype == x.dtype
        and (link.bias.ndim == 1 or len(link.bias) == len(x))
        and (link.bias.ndim < 4 or link.bias.shape[2:] == x.shape[2:])
        and _known_activation(link)
        for link in links
    )


def _known_activation(link: Link) -> bool:
    return link.activation is None or type(link.activation) in KINDS


@final
class NativePasses(Passes):
    """The compiled passes.

    Arguments:
        links: First to last, all of which `native_passes` has found suitable.
        like: A batch of points: its type and the size of its images are those of all others.

    Raises:
        ValueError: by all passes, for tensors of another type or shape.
    """

    def __init__(self, links: Sequence[Link], like: Tensor) -> None:
        self.links = [link.detached() for link in links]
        self._dtype = like.dtype
        self._channels, self._image = like.shape[1], like.shape[2:]
        self._records: Records = (Record * len(links))()
        # What the records point to.
        self._weights = [link.weight.contiguous() for link in self.links]
        self._biases = [same_layout(link.bias) for link in self.links]
        self._matrices: list[Tensor] = []
        pairs = zip(self._weights, self._biases, strict=True)
        for record, link, (weight, bias) in zip(self._records, self.links, pairs, strict=True):
            record.outputs, record.inputs = weight.shape[:2]
            record.side = weight.shape[2] if weight.ndim == 4 else 1
            record.activation = 0 if link.activation is None else KINDS[type(link.activation)]
            record.width = link.width
            record.beta = 0.0 if link.beta is None else float(link.beta)
            record.weight, record.bias = weight.data_ptr(), bias.data_ptr()
            record.bias_stride = 0 if bias.ndim == 1 else bias[0].numel()
            record.bias_step = bias.shape[1] if bias.ndim == 4 else 0
            matrix = like.new_empty(self._function("packed_size")(record))
            record.matrix = matrix.data_ptr()
            self._matrices.append(matrix)
        self._run("pack", self._records, 0, 0)

    def value(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """g at points, and nothing else.

        Arguments:
            x: ``(B, *event)``, or ``(N, *event)`` for some samples of the batch.
            index: The indices ``(N,)`` of these samples; None for all.
        """
        # No hidden tensor leaves the cache.
        x, records = self._checked(x, self._channels), self._records
        biases = self._biases
        if index is not None and any(bias.ndim > 1 for bias in biases):
            biases = [bias if bias.ndim == 1 else same_layout(bias[index]) for bias in biases]
            records = self._copied()
            _point(records, "bias", biases)
        self._check_biases(biases, len(x))
        value = _empty(x, records[-1].outputs)
        self._run("forward", records, len(x), 1, x, value)
        return value

    def primal(self, x: Tensor) -> Primal:
        x, records = self._checked(x, self._channels), self._copied()
        self._check_biases(self._biases, len(x))
        hidden = Hidden([x])
        for i, record in enumerate(records):
            if i:
                hidden.inputs.append(_empty(x, records[i - 1].outputs))
                record.input = hidden.inputs[i].data_ptr()
            hidden.slopes.append(_empty(x, record.inputs) if record.activation else None)
        _point(records, "slope", hidden.slopes)
        value = _empty(x, records[-1].outputs)
        self._run("forward", records, len(x), 1, x, value)
        return Primal(value, hidden)

    def vjp(self, slopes: Slopes, u: Tensor) -> Tensor:
        records = self._copied()
        u = self._checked(u, records[-1].outputs)
        batch, slopes = self._with_slopes(records, slopes, len(u))
        result = _empty(u, self._channels)
        self._run("vjp", records, batch, len(u) // max(batch, 1), u, result)
        return result

    def power_sums(self, slopes: Slopes, v: Tensor, series: Series) -> PowerSums:
        # Each sample takes all of its terms while it is in the cache.
        records, count = self._copied(), v.shape[:2]
        v = self._checked(v.flatten(0, 1), records[-1].outputs)
        batch, slopes = self._with_slopes(records, slopes, count[1])
        if batch != count[1]:
            raise ValueError(f"expected directions of {batch} samples, got {tuple(count)}")
        terms, enough = series.terms, series.enough
        limit = None if terms is None else terms.to(torch.int64).expand(count).contiguous()
        enough = None if enough is None else enough.to(v.dtype).expand(count).contiguous()
        neumann, weighted = _empty(v, self._channels), _empty(v, self._channels)
        taken, size, growth = v.new_empty(3, *count)
        table = v.new_tensor(series.weights)
        results = (neumann, weighted, taken, size, growth)
        ends = (v, table, limit, enough, *results)
        self._run("power_sums", records, count[1], count[0], *ends, terms=len(table))
        event = v.shape[1:]
        return PowerSums(
            neumann.view(*count, *event), weighted.view(*count, *event), taken, size, growth
        )

    def krylov(self, slopes: Slopes, v: Tensor, space: KrylovSpace) -> KrylovFound | None:
        if self._image.numel() == 1:  # samples of one number a channel are computed together
            return None
        records, count = self._copied(), v.shape[:2]
        v = self._checked(v.flatten(0, 1), records[-1].outputs)
        batch, slopes = self._with_slopes(records, slopes, count[1])
        if batch != count[1]:
            raise ValueError(f"expected directions of {batch} samples, got {tuple(count)}")
        bound = -1.0 if space.lipschitz is None else space.lipschitz
        rule = torch.cat([space.nodes, space.weights])
        options = (len(space.nodes), bound, space.uncertified, space.enough)
        left = _empty(v, self._channels)
        found = rule.new_empty(*count, 5)
        ends = (v, rule, rule.new_tensor(options), left, found)
        self._run("krylov", records, count[1], count[0], *ends, terms=space.steps)
        return KrylovFound(found.movedim(-1, 0), left.view(*count, *v.shape[1:]))

    def tangents(self, slopes: Slopes, v: Tensor) -> list[Tensor]:
        records = self._copied()
        v = self._checked(v, self._channels)
        batch, slopes = self._with_slopes(records, slopes, len(v))
        tangents = [v, *(_empty(v, record.outputs) for record in records)]
        _point(records, "tangent", [None, *tangents[1:-1]])
        self._run("tangents", records, batch, len(v) // max(batch, 1), tangents[0], tangents[-1])
        return tangents

    def adjoint(
        self,
        inputs: Sequence[Tensor],
        tangents: Sequence[Tensor],
        after: Tensor,
        needed: Sequence[bool],
    ) -> tuple[Tensor, list[Tensor | None]]:
        records, batch = self._copied(), len(inputs[0])
        after = self._checked(after, records[-1].outputs)
        # Hooks of saved tensors may have laid them out anew.
        inputs, tangents = ([same_layout(t) for t in hidden] for hidden in (inputs, tangents))
        _point(records, "input", inputs)
        _point(records, "tangent", tangents)
        weights = [torch.empty_like(weight) for weight in self._weights]
        biases = [torch.empty_like(bias) for bias in self._biases]
        betas = torch.zeros(len(records), dtype=torch.float64, device="cpu")
        _point(records, "weight_gradient", weights)
        _point(records, "bias_gradient", biases)
        _point(records, "beta_gradient", betas.unbind())
        before = _empty(inputs[0], self._channels)
        ends = (inputs[0], tangents[0] if tangents else None, after, before)
        self._run("adjoint", records, batch, len(after) // max(batch, 1) - 1, *ends)
        gradients: list[Tensor | None] = []
        for weight, bias, beta, link in zip(weights, biases, betas, self.links, strict=True):
            slope = None if link.beta is None else (beta / link.beta).to(link.beta.dtype)
            gradients += [weight, bias, slope]
        return before, gradients

    def to(self, dtype: torch.dtype) -> Passes:
        return TorchPasses(self.links).to(dtype)

    def _checked(self, x: Tensor, channels: int) -> Tensor:
        """x as a matrix of pixels and channels in memory."""
        event = (channels, *self._image)
        if tuple(x.shape[1:]) != event or x.dtype != self._dtype:
            raise ValueError(
                f"expected a batch of {event} in {self._dtype}, got {tuple(x.shape)} in {x.dtype}"
            )
        return same_layout(plain(x.detach()))

    def _check_biases(self, biases: Sequence[Tensor], batch: int) -> None:
        if any(bias.ndim > 1 and len(bias) != batch for bias in biases):
            raise ValueError(f"the context has another number of rows than the batch, {batch}")

    def _with_slopes(self, records: Records, slopes: Slopes, count: int) -> tuple[int, Slopes]:
        """Points the records to slopes; returns the number of samples, and what is pointed to."""
        slopes = [None if slope is None else same_layout(slope) for slope in slopes]
        _point(records, "slope", slopes)
        batch = next((len(slope) for slope in slopes if slope is not None), count)
        if count % max(batch, 1):
            raise ValueError(f"{count} directions are no multiple of {batch} samples")
        return batch, slopes

    def _function(self, name: str) -> Callable[..., int]:
        return getattr(library(), f"{name}_{SCALARS[self._dtype]}")

    def _copied(self) -> Records:
        """The records, for one pass to point elsewhere."""
        return type(self._records).from_buffer_copy(self._records)

    def _run(
        self,
        name: str,
        records: Records,
        batch: int,
        directions: int,
        *ends: Tensor | None,
        terms: int = 0,
    ) -> None:
        size = self._image or (1, 1)
        shape = Shape(len(records), batch, directions, *size, terms)
        pointers = (None if end is None else end.data_ptr() for end in ends)
        self._function(name)(shape, records, *pointers)


def _point(records: Records, name: str, tensors: Sequence[Tensor | None]) -> None:
    """Points all records to tensors."""
    for record, tensor in zip(records, tensors, strict=False):
        if tensor is not None:
            setattr(record, name, tensor.data_ptr())


def _empty(x: Tensor, channels: int) -> Tensor:
    """For a result for each pixel of x."""
    if x.ndim != 4:
        return x.new_empty(len(x), channels)
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
