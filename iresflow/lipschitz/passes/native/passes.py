"""The passes through a chain, compiled for the processor: see ``cpp/chain.cpp``.

They are for what most chains are on a CPU: dense layers, or convolutions with zero padding and
stride 1, in float32 or float64. The results are those of `TorchPasses` up to rounding, several
times faster for small images, whose tensors take less time than the calls that PyTorch makes of
them.
"""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.lipschitz.passes.kernels import kernels_compile
from iresflow.lipschitz.passes.links import Hidden, Link
from iresflow.lipschitz.passes.native.library import SCALARS, Shape, library, plain
from iresflow.lipschitz.passes.native.library import Link as Record
from iresflow.lipschitz.passes.native.records import Records, address, empty, point_to
from iresflow.lipschitz.passes.native.suits import kind_of, suits
from iresflow.lipschitz.passes.plain import Passes, Primal, Slopes, TorchPasses
from iresflow.powers import Determinant, KrylovFound, KrylovSpace, PowerSums, Series

__all__ = ["NativePasses", "native_passes"]

ELIMINATED = 256
"""Dimensions up to which a determinant is computed here: beyond, LAPACK eliminates in blocks."""


def native_passes(links: Sequence[Link], x: Tensor) -> "NativePasses | None":
    """The compiled passes for points like x, or None where they are not made for these."""
    if kernels_compile() and suits(links, x) and library() is not None:
        return NativePasses(links, x)
    return None


@final
class NativePasses(Passes):
    """The compiled passes.

    Arguments:
        links: First to last, all of which `native_passes` has found suitable.
        like: A batch of points: its type and the size of its images are those of all others.

    Attributes:
        pixels: Of an image; 1 for vectors.

    Raises:
        ValueError: by all passes, for tensors of another type or shape.
    """

    def __init__(self, links: Sequence[Link], like: Tensor) -> None:
        self.links = [link.detached() for link in links]
        self._dtype = like.dtype
        self._channels, self._image = like.shape[1], like.shape[2:]
        self.pixels = self._image.numel()
        self._records: Records = (Record * len(links))()
        # What the records point to.
        self._weights = [link.weight.contiguous() for link in self.links]
        self._biases = [same_layout(link.bias) for link in self.links]
        self._matrices: list[Tensor] = []
        pairs = zip(self._weights, self._biases, strict=True)
        for record, link, (weight, bias) in zip(self._records, self.links, pairs, strict=True):
            record.outputs, record.inputs = weight.shape[:2]
            record.side = weight.shape[2] if weight.ndim == 4 else 1
            record.activation = kind_of(link.activation)
            record.width = link.width
            record.beta = 0.0 if link.beta is None else float(link.beta)
            record.weight, record.bias = weight.data_ptr(), bias.data_ptr()
            record.bias_stride = 0 if bias.ndim == 1 else bias.shape[1:].numel()
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
            point_to(records, "bias", biases)
        self._check_biases(biases, len(x))
        value = empty(x, records[-1].outputs)
        self._run("forward", records, len(x), 1, x, value)
        return value

    def primal(self, x: Tensor) -> Primal:
        x, records = self._checked(x, self._channels), self._copied()
        self._check_biases(self._biases, len(x))
        hidden = Hidden([x])
        for i, record in enumerate(records):
            if i:
                hidden.inputs.append(empty(x, records[i - 1].outputs))
                record.input = hidden.inputs[i].data_ptr()
            hidden.slopes.append(empty(x, record.inputs) if record.activation else None)
        point_to(records, "slope", hidden.slopes)
        value = empty(x, records[-1].outputs)
        self._run("forward", records, len(x), 1, x, value)
        return Primal(value, hidden)

    def vjp(self, slopes: Slopes, u: Tensor) -> Tensor:
        records = self._copied()
        u = self._checked(u, records[-1].outputs)
        batch, slopes = self._with_slopes(records, slopes, len(u))
        result = empty(u, self._channels)
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
        neumann, weighted = empty(v, self._channels), empty(v, self._channels)
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
        if self.pixels == 1:  # samples of one number a channel are computed together
            return None
        records, count = self._copied(), v.shape[:2]
        v = self._checked(v.flatten(0, 1), records[-1].outputs)
        batch, slopes = self._with_slopes(records, slopes, count[1])
        if batch != count[1]:
            raise ValueError(f"expected directions of {batch} samples, got {tuple(count)}")
        bound = -1.0 if space.lipschitz is None else space.lipschitz
        rule = torch.cat([space.nodes, space.weights])
        numbers = (bound, space.uncertified, space.enough)
        options = (len(space.nodes), *numbers, space.symmetric)
        left = empty(v, self._channels)
        found = rule.new_empty(*count, 5)
        ends = (v, rule, rule.new_tensor(options), left, found)
        self._run("krylov", records, count[1], count[0], *ends, terms=space.steps)
        return KrylovFound(found.movedim(-1, 0), left.view(*count, *v.shape[1:]))

    def determinant(self, slopes: Slopes, batch: int) -> Determinant | None:
        if self.pixels <= 1 or self.pixels * self._channels > ELIMINATED:
            return None
        found = self._dense(slopes, batch, None)
        return Determinant(*found.to(self._dtype).unbind(1))

    def columns(self, slopes: Slopes, batch: int) -> Tensor | None:
        channels, pixels = self._channels, self.pixels
        if pixels <= 1:  # samples of one number a channel are computed together
            return None
        matrices = self._weights[0].new_empty(batch, pixels, channels, pixels, channels)
        self._dense(slopes, batch, matrices)
        # From channels that lie last to those that lie first, on both sides.
        return matrices.permute(0, 2, 1, 4, 3).reshape(batch, channels * pixels, -1)

    def _dense(self, slopes: Slopes, batch: int, matrices: Tensor | None) -> Tensor:
        records = self._copied()
        count, slopes = self._with_slopes(records, slopes, batch)
        if count != batch:
            raise ValueError(f"expected slopes of {batch} samples, got {count}")
        found = self._weights[0].new_empty(batch, 2, dtype=torch.float64)
        self._run("dense", records, batch, 1, found, matrices)
        return found

    def solve(
        self, first: "NativePasses", goal: Tensor, slopes: Tensor, offsets: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x of x + g(x) = y, and steps, error and floor ``(B, 3)``; see ``cpp/solve.h``.

        Arguments:
            first: The passes in the type to begin in; these ones certify.
            goal, slopes, offsets: As ``cpp/solve.h`` takes them.
            y: ``(B, *event)``.
        """
        y = self._checked(y.to(self._dtype), self._channels)
        self._check_biases(self._biases, len(y))
        x, found = torch.empty_like(y), goal.new_empty(len(y), 3)
        wide = None if first is self else self._records
        ends = (wide, goal, slopes, offsets, y, x, found)
        first._run("solve", first._records, len(y), 1, *ends)
        return x, found

    def tangents(self, slopes: Slopes, v: Tensor) -> list[Tensor]:
        records = self._copied()
        v = self._checked(v, self._channels)
        batch, slopes = self._with_slopes(records, slopes, len(v))
        tangents = [v, *(empty(v, record.outputs) for record in records)]
        point_to(records, "tangent", [None, *tangents[1:-1]])
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
        point_to(records, "input", inputs)
        point_to(records, "tangent", tangents)
        weights = [torch.empty_like(weight) for weight in self._weights]
        biases = [torch.empty_like(bias) for bias in self._biases]
        betas = torch.zeros(len(records), dtype=torch.float64, device="cpu")
        point_to(records, "weight_gradient", weights)
        point_to(records, "bias_gradient", biases)
        point_to(records, "beta_gradient", betas.unbind())
        before = empty(inputs[0], self._channels)
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
        point_to(records, "slope", slopes)
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
        *ends: Tensor | Records | None,
        terms: int = 0,
    ) -> None:
        size = self._image or (1, 1)
        shape = Shape(len(records), batch, directions, *size, terms)
        self._function(name)(shape, records, *map(address, ends))
