"""An ordinary network, read as layers x -> s(A x + b) with a piecewise linear activation s.

`parse_network` takes a ``torch.nn.Sequential`` of ``Linear``, ``Conv2d``, ``ReLU`` and
``LeakyReLU`` in any order and nesting. ``Flatten``, ``Unflatten`` and ``Identity`` change nothing
here, where all vectors are flat. In eval mode ``Dropout`` is the identity, and ``BatchNorm`` is
folded into the linear layer before it. Anything else is refused by name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from iresflow.errors import UnsupportedNetworkError
from iresflow.relu.networks.affine import AffineMap, ConvolutionMap, DenseMap, IdentityMap

__all__ = ["Layer", "Network", "parse_network"]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ADVICE = (
    "allowed are Linear, Conv2d, ReLU, LeakyReLU, Flatten, Unflatten and Identity, and in eval "
    "mode Dropout and BatchNorm"
)


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """x -> s(A x + b), where s(z) is z for z > 0, and ``slope`` z elsewhere.

    Attributes:
        name: Of the module that holds A, such as ``0`` or ``features.3``.
        affine: A and b, in float64.
        slope: 0 for ReLU, between for LeakyReLU, 1 where no activation follows.
    """

    name: str
    affine: AffineMap
    slope: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output: ``(B, n)`` to ``(B, m)``."""
        return self.activate(self.affine(x))

    def activate(self, z: Tensor) -> Tensor:
        """s at pre-activations of any shape."""
        return torch.where(z > 0, z, self.slope * z)

    def slopes(self, z: Tensor) -> Tensor:
        """The slope of s at pre-activations of any shape; at 0, that of the left side."""
        return torch.where(z > 0, 1.0, self.slope).to(z.dtype)

    @property
    def injective_activation(self) -> bool:
        """Whether s can be inverted, so that only A may lose something."""
        return self.slope > 0


@final
@dataclass(frozen=True, eq=False)
class Network:
    """A chain of layers.

    Attributes:
        layers: From input to output, at least one.
    """

    layers: tuple[Layer, ...]

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input, before flattening."""
        return tuple(self.layers[0].affine.in_shape)

    @property
    def in_size(self) -> int:
        """Entries of one input."""
        return self.layers[0].affine.in_size

    @property
    def out_size(self) -> int:
        """Entries of one output."""
        return self.layers[-1].affine.out_size

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output for a batch ``(B, *in_shape)`` or ``(B, n)``, as ``(B, m)``."""
        *_, (_, output) = self.activations(x)
        return output

    def activations(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pre-activation and output ``(B, m)`` of each layer, for a batch of inputs.

        Raises:
            ValueError: the inputs have another size, or hold values that are not finite.
        """
        x = self.flatten(x)
        for layer in self.layers:
            z = layer.affine(x)
            x = layer.activate(z)
            yield z, x

    def flatten(self, x: Tensor) -> Tensor:
        """A batch of inputs as float64 ``(B, n)``. Errors: see `activations`."""
        flat = x.detach().to("cpu", torch.float64).flatten(1) if x.dim() > 1 else x
        if flat.dim() != 2 or flat.shape[1] != self.in_size:
            raise ValueError(
                f"inputs have shape {tuple(x.shape)}; allowed is (B, {self.in_size}) or "
                f"(B, {', '.join(map(str, self.in_shape))})"
            )
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("inputs hold values that are not finite")
        return flat


def parse_network(module: nn.Module, in_shape: int | Sequence[int] | None = None) -> Network:
    """Reads a module as a chain of piecewise linear layers, with a copy of its weights.

    Arguments:
        module: A ``Sequential``, or one of the modules that it may hold.
        in_shape: Shape of one input, such as ``(3, 32, 32)``; needed where a convolution comes
            first, else the first linear layer tells it.

    Raises:
        UnsupportedNetworkError: a layer that is not piecewise linear or doesn't fit the one
            before, dropout or batch normalisation in training mode, a weight that is not finite.
    """
    shape = (in_shape,) if isinstance(in_shape, int) else in_shape
    parser = _Parser(None if shape is None else tuple(shape))
    for name, part in _parts(module, ""):
        parser.add(name, part)
    if not parser.layers:
        raise UnsupportedNetworkError("the network", type(module).__name__, "has no layer")
    return Network(tuple(parser.layers))


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(module, nn.Sequential):
        yield name or "the module", module
        return
    for child, part in module.named_children():
        yield from _parts(part, f"{name}.{child}" if name else child)


class _Parser:
    """Collects layers; ``shape`` is that of what the last one gives, or None before the first."""

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        self.shape = shape
        self.layers: list[Layer] = []
        self._open = False  # whether the last layer may still get its activation

    def add(self, name: str, module: nn.Module) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in module.state_dict().values()):
            raise self._error(name, module, "holds a weight that is not finite")
        if isinstance(module, nn.Flatten):
            self.shape = None if self.shape is None else (_size(self.shape),)
        elif isinstance(module, nn.Unflatten):
            self._unflatten(name, module)
        elif isinstance(module, nn.Identity):
            pass
        elif isinstance(module, DROPOUTS):
            self._require_eval(name, module)
        elif isinstance(module, NORMS):
            self._require_eval(name, module)
            self._fold(name, module)
        elif isinstance(module, nn.ReLU):
            self._activate(name, module, 0.0)
        elif isinstance(module, nn.LeakyReLU):
            self._activate(name, module, float(module.negative_slope))
        elif type(module) is nn.Linear:
            self._linear(name, module)
        elif type(module) is nn.Conv2d:
            self._convolution(name, module)
        else:
            raise self._error(name, module, f"is none of the layers that can be read; {ADVICE}")

    def _linear(self, name: str, module: nn.Linear) -> None:
        if self.shape is not None and self.shape != (module.in_features,):
            hint = ", put a Flatten before it" if len(self.shape) > 1 else ""
            raise self._error(
                name, module, f"takes {module.in_features} numbers but gets {self.shape}{hint}"
            )
        weight = module.weight.detach().to("cpu", torch.float64)
        bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
        self._append(name, DenseMap(weight.clone(), bias.to("cpu", torch.float64, copy=True)))

    def _convolution(self, name: str, module: nn.Conv2d) -> None:
        if self.shape is None:
            raise self._error(name, module, "comes first, so in_shape=(C, H, W) is needed")
        if len(self.shape) != 3 or self.shape[0] != module.in_channels:
            raise self._error(
                name, module, f"takes images of {module.in_channels} channels, gets {self.shape}"
            )
        try:
            affine = ConvolutionMap(module, self.shape)
        except ValueError as error:
            raise self._error(name, module, str(error)) from None
        self._append(name, affine)

    def _append(self, name: str, affine: AffineMap) -> None:
        self.layers.append(Layer(name, affine))
        self.shape, self._open = tuple(affine.out_shape), True

    def _activate(self, name: str, module: nn.Module, slope: float) -> None:
        if slope < 0:
            raise self._error(
                name, module, f"has the negative slope {slope}, allowed is 0 or more"
            )
        if not self._open:
            if self.shape is None:
                raise self._error(name, module, "comes first, so in_shape is needed")
            self._append(name, IdentityMap(self.shape))
        self.layers[-1] = replace(self.layers[-1], slope=slope)
        self._open = False

    def _unflatten(self, name: str, module: nn.Unflatten) -> None:
        if self.shape is None:
            raise self._error(name, module, "comes first, so in_shape is needed")
        try:
            self.shape = tuple(module(torch.empty(1, *self.shape)).shape[1:])
        except RuntimeError as error:
            raise self._error(name, module, str(error)) from None

    def _fold(self, name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        before = self.layers[-1].affine if self._open else None
        if not isinstance(before, DenseMap | ConvolutionMap):
            raise self._error(name, module, "must stand directly behind a Linear or Conv2d")
        if module.running_mean is None or module.running_var is None:
            raise self._error(name, module, "has no running statistics, so it is not affine")
        if module.num_features != before.out_shape[0]:
            raise self._error(
                name, module, f"takes {module.num_features} features, gets {before.out_shape}"
            )
        scale = (module.running_var.double().cpu() + module.eps).rsqrt()
        if module.weight is not None:
            scale = scale * module.weight.detach().double().cpu()
        shift = -scale * module.running_mean.double().cpu()
        if module.bias is not None:
            shift = shift + module.bias.detach().double().cpu()
        repeats = before.out_size // len(scale)
        before.weight = before.weight * scale.view(-1, *[1] * (before.weight.dim() - 1))
        before.bias = before.bias * scale.repeat_interleave(repeats) + shift.repeat_interleave(
            repeats
        )

    def _require_eval(self, name: str, module: nn.Module) -> None:
        if module.training:
            raise self._error(
                name,
                module,
                "is in training mode: call network.eval() first",
            )

    def _error(self, name: str, module: nn.Module, what: str) -> UnsupportedNetworkError:
        return UnsupportedNetworkError(name, type(module).__name__, what)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
