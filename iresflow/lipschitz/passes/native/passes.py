"""The passes through a chain, compiled for the processor: see ``cpp/chain.cpp``.

They are for what most chains are on a CPU: dense layers, or convolutions with zero padding and
stride 1, with activations of one value an entry, in float32 or float64. The results are those of
`TorchPasses` up to rounding, several times faster for small images, whose tensors take less time
than the calls that PyTorch makes of them.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from iresflow.linearization import PowerSums, Series
from iresflow.lipschitz.layers.activations import ELU, Activation, LipSwish, Tanh
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.lipschitz.layers.linear import NormalizedConv2d, NormalizedDense
from iresflow.lipschitz.passes.kernels import kernels_compile
from iresflow.lipschitz.passes.native.library import SCALARS, Link, Shape, is_plain, library
from iresflow.lipschitz.passes.plain import Passes, Primal, Slopes, Stage, TorchPasses, detached

__all__ = ["NativePasses", "native_passes", "passes_through"]

KINDS: dict[type[Activation], int] = {ELU: 1, Tanh: 2, LipSwish: 3}
"""``Kind`` of ``cpp/links.h``; 0 for none."""

KIND_OF_LAYER: dict[int, type[NormalizedLayer]] = {2: NormalizedDense, 4: NormalizedConv2d}
"""By the number of dimensions of a batch."""


def passes_through(stages: Sequence[Stage], x: Tensor) -> Passes:
    """The fastest passes at hand for points like x."""
    return native_passes(stages, x) or TorchPasses(stages)


def native_passes(stages: Sequence[Stage], x: Tensor) -> "NativePasses | None":
    """The compiled passes for points like x, or None where they are not made for these."""
    if kernels_compile() and _suits(stages, x) and library() is not None:
        return NativePasses(stages, x)
    return None


def _suits(stages: Sequence[Stage], x: Tensor) -> bool:
    tensors = [x, *(t for stage in stages for t in (stage.weight, stage.bias))]
    if x.dtype not in SCALARS or not all(is_plain(t) for t in tensors):
        return False
    channels = [x.shape[1] if x.ndim > 1 else 0, *(len(stage.weight) for stage in stages)]
    if x.ndim not in KIND_OF_LAYER or any(
        stage.weight.shape[1] != count for stage, count in zip(stages, channels, strict=False)
    ):
        return False  # PyTorch says what is wrong
    return all(
        isinstance(stage.layer, KIND_OF_LAYER[x.ndim])
        and stage.layer.plain
        and stage.weight.dtype == x.dtype
        and (stage.bias.ndim == 1 or len(stage.bias) == len(x))
        and _known_activation(stage)
        for stage in stages
    )


def _known_activation(stage: Stage) -> bool:
    return stage.activation is None or type(stage.activation) in KINDS


@final
class NativePasses(Passes):
    """The compiled passes.

    Arguments:
        stages: The links, first to last, all of which `passes_through` has found suitable.
        like: A batch of points: its type and the size of its images are those of all others.

    Raises:
        ValueError: by all passes, for tensors of another type or shape.
    """

    def __init__(self, stages: Sequence[Stage], like: Tensor) -> None:
        self._stages = [detached(stage) for stage in stages]
        self._dtype = like.dtype
        self._image = like.shape[2:]
        self._links = (Link * len(stages))()
        # What the links point to.
        self._weights = [stage.weight.contiguous() for stage in self._stages]
        self._biases = [stage.bias.contiguous() for stage in self._stages]
        self._matrices: list[Tensor] = []
        pairs = zip(self._weights, self._biases, strict=True)
        for link, stage, (weight, bias) in zip(self._links, self._stages, pairs, strict=True):
            link.outputs, link.inputs = weight.shape[:2]
            link.side = weight.shape[2] if weight.ndim == 4 else 1
            link.activation = 0 if stage.activation is None else KINDS[type(stage.activation)]
            link.beta = 0.0 if stage.beta is None else float(stage.beta)
            link.weight, link.bias = weight.data_ptr(), bias.data_ptr()
            link.bias_stride = 0 if bias.ndim == 1 else bias.shape[1]
            matrix = like.new_empty(self._function("packed_size")(link))
            link.matrix = matrix.data_ptr()
            self._matrices.append(matrix)
        self._run("pack", self._links, 0, 0)

    def value(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """g at points, and nothing else: no hidden tensor leaves the cache.

        Arguments:
            x: ``(B, *event)``, or ``(N, *event)`` for some samples of the batch.
            index: The indices ``(N,)`` of these samples; None for all.
        """
        x, links = self._checked(x, self._links[0].inputs), self._links
        biases = self._biases
        if index is not None and any(bias.ndim == 2 for bias in biases):
            biases = [bias[index] if bias.ndim == 2 else bias for bias in biases]
            links = self._copied()
            _point(links, "bias", biases)
        self._check_biases(biases, len(x))
        value = _empty(x, links[-1].outputs)
        self._run("forward", links, len(x), 1, x, value)
        return value

    def primal(self, x: Tensor) -> Primal:
        x, links = self._checked(x, self._links[0].inputs), self._copied()
        self._check_biases(self._biases, len(x))
        inputs, slopes = [x], []
        for i, link in enumerate(links):
            if i:
                inputs.append(_empty(x, link.inputs))
                link.input = inputs[i].data_ptr()
            slopes.append(_empty(x, link.inputs) if link.activation else None)
        _point(links, "slope", slopes)
        value = _empty(x, links[-1].outputs)
        self._run("forward", links, len(x), 1, x, value)
        return Primal(inputs, slopes, value)

    def vjp(self, slopes: Slopes, u: Tensor) -> Tensor:
        links = self._copied()
        u = self._checked(u, links[-1].outputs)
        batch, slopes = self._with_slopes(links, slopes, len(u))
        result = _empty(u, links[0].inputs)
        self._run("vjp", links, batch, len(u) // max(batch, 1), u, result)
        return result

    def power_sums(self, slopes: Slopes, v: Tensor, series: Series) -> PowerSums:
        """`Products.power_sums`: each sample takes all of its terms while it is in the cache."""
        links, count = self._copied(), v.shape[:2]
        v = self._checked(v.flatten(0, 1), links[-1].outputs)
        batch, slopes = self._with_slopes(links, slopes, count[1])
        if batch != count[1]:
            raise ValueError(f"expected directions of {batch} samples, got {tuple(count)}")
        terms, enough = series.terms, series.enough
        limit = None if terms is None else terms.to(torch.int64).expand(count).contiguous()
        enough = None if enough is None else enough.to(v.dtype).expand(count).contiguous()
        neumann, weighted = _empty(v, links[0].inputs), _empty(v, links[0].inputs)
        taken, size, growth = v.new_empty(3, *count)
        table = v.new_tensor(series.weights)
        results = (neumann, weighted, taken, size, growth)
        self._run("power_sums", links, count[1], count[0], v, table, limit, enough, *results)
        event = v.shape[1:]
        return PowerSums(
            neumann.view(*count, *event), weighted.view(*count, *event), taken, size, growth
        )

    def tangents(self, slopes: Slopes, v: Tensor) -> list[Tensor]:
        links = self._copied()
        v = self._checked(v, links[0].inputs)
        batch, slopes = self._with_slopes(links, slopes, len(v))
        tangents = [v, *(_empty(v, link.outputs) for link in links)]
        _point(links, "tangent", [None, *tangents[1:-1]])
        self._run("tangents", links, batch, len(v) // max(batch, 1), tangents[0], tangents[-1])
        return tangents

    def adjoint(
        self,
        inputs: Sequence[Tensor],
        tangents: Sequence[Tensor],
        behind: Tensor,
        needed: Sequence[bool],
    ) -> tuple[Tensor, list[Tensor | None]]:
        links, batch = self._copied(), len(inputs[0])
        behind = self._checked(behind, links[-1].outputs)
        # Hooks of saved tensors may have laid them out anew.
        inputs, tangents = ([same_layout(t) for t in hidden] for hidden in (inputs, tangents))
        _point(links, "input", inputs)
        _point(links, "tangent", tangents)
        weights = [torch.empty_like(weight) for weight in self._weights]
        biases = [torch.empty_like(bias) for bias in self._biases]
        betas = torch.zeros(len(links), dtype=torch.float64)
        _point(links, "weight_gradient", weights)
        _point(links, "bias_gradient", biases)
        _point(links, "beta_gradient", betas.unbind())
        before = _empty(inputs[0], links[0].inputs)
        ends = (inputs[0], tangents[0] if tangents else None, behind, before)
        self._run("adjoint", links, batch, len(behind) // max(batch, 1) - 1, *ends)
        gradients: list[Tensor | None] = []
        for weight, bias, beta, stage in zip(weights, biases, betas, self._stages, strict=True):
            slope = None if stage.beta is None else (beta / stage.beta).to(stage.beta.dtype)
            gradients += [weight, bias, slope]
        return before, gradients

    def to(self, dtype: torch.dtype) -> Passes:
        return TorchPasses(self._stages).to(dtype)

    def _checked(self, x: Tensor, channels: int) -> Tensor:
        """x as a matrix of pixels and channels in memory."""
        event = (channels, *self._image)
        if tuple(x.shape[1:]) != event or x.dtype != self._dtype:
            raise ValueError(
                f"expected a batch of {event} in {self._dtype}, got {tuple(x.shape)} in {x.dtype}"
            )
        return same_layout(x.detach())

    def _check_biases(self, biases: Sequence[Tensor], batch: int) -> None:
        if any(bias.ndim == 2 and len(bias) != batch for bias in biases):
            raise ValueError(f"the context has another number of rows than the batch, {batch}")

    def _with_slopes(self, links, slopes: Slopes, count: int) -> tuple[int, Slopes]:  # noqa: ANN001
        """Points the links to slopes; returns the number of samples, and what is pointed to."""
        slopes = [None if slope is None else same_layout(slope) for slope in slopes]
        _point(links, "slope", slopes)
        batch = next((len(slope) for slope in slopes if slope is not None), count)
        if count % max(batch, 1):
            raise ValueError(f"{count} directions are no multiple of {batch} samples")
        return batch, slopes

    def _function(self, name: str):  # noqa: ANN202 (of ctypes)
        return getattr(library(), f"{name}_{SCALARS[self._dtype]}")

    def _copied(self):  # noqa: ANN202 (an array of ctypes)
        """The links, for one pass to point elsewhere."""
        return type(self._links).from_buffer_copy(self._links)

    def _run(self, name: str, links, batch: int, directions: int, *ends: Tensor | None) -> None:  # noqa: ANN001
        terms = len(ends[1]) if name == "power_sums" else 0
        size = self._image or (1, 1)
        shape = Shape(len(links), batch, directions, *size, terms)
        pointers = (None if end is None else end.data_ptr() for end in ends)
        self._function(name)(shape, links, *pointers)


def _point(links, name: str, tensors: Sequence[Tensor | None]) -> None:  # noqa: ANN001
    """Points all links to tensors."""
    for link, tensor in zip(links, tensors, strict=False):
        if tensor is not None:
            setattr(link, name, tensor.data_ptr())


def _empty(x: Tensor, channels: int) -> Tensor:
    """For a result for each pixel of x."""
    if x.ndim != 4:
        return x.new_empty(len(x), channels)
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
