"""Which modules and functions can be read, each as affine maps and (leaky) ReLU.

A new one is a line in a table here, and a line in the tests' table.
"""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from iresflow.relu.networks.affine import DenseMap, FunctionMap
from iresflow.relu.networks.convolution import ConvolutionMap
from iresflow.relu.networks.rewriting import Shape, Step, clip, max_pool, slopes_by_channel

__all__ = ["ACCEPTED", "AFFINE", "AS_MODULES", "module_steps"]

ACCEPTED = (
    "linear and convolution layers (also transposed), ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh, "
    "max and average pooling, padding, up-sampling, batch normalisation and dropout in eval mode, "
    "changes of shape, and sums and products with constants, one after the other"
)

RESHAPING = (nn.Flatten, nn.Unflatten, nn.Identity)
DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
MIXING = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Fold, nn.Unfold,
)  # fmt: skip
BY_CHANNEL = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
    nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
)  # fmt: skip


def module_steps(module: nn.Module, shape: Shape) -> Iterator[Step]:
    """A module of the tables, for inputs of one shape, as affine maps and slopes.

    Arguments:
        module: In float64 on the CPU. It is kept, not copied.
        shape: Of one input, which the module has been shown to take.

    Raises:
        ValueError: what is wrong with the module.
    """
    kind, size = type_before_parametrizations(module), math.prod(shape)
    known: Any = module  # with the attributes of its kind
    if kind in RESHAPING:
        return
    if kind in (*DROPOUTS, *NORMS) or is_parametrized(module):
        _require_fixed(module)
    if kind in DROPOUTS:
        return
    if kind is nn.ReLU:
        yield 0.0
    elif kind is nn.LeakyReLU:
        yield from _slopes(shape, torch.tensor([known.negative_slope], dtype=torch.float64))
    elif kind is nn.PReLU:
        yield from _slopes(shape, known.weight.detach())
    elif kind is nn.ReLU6 or kind is nn.Hardtanh:
        yield from clip(shape, known.min_val, known.max_val)
    elif kind is nn.MaxPool1d or kind is nn.MaxPool2d:
        if len(shape) != 1 + _axes(kind):
            raise ValueError(f"gets inputs of shape {shape}; accepted are ones with channels")
        yield from max_pool(shape, known)
    elif kind is nn.Linear and len(shape) == 1:
        bias = torch.zeros(known.out_features) if known.bias is None else known.bias
        yield DenseMap(known.weight.detach(), bias.detach().double())
    elif kind is nn.Conv2d:
        yield ConvolutionMap(known, shape)
    elif kind in NORMS:
        yield FunctionMap(module, shape, size)
    elif kind in BY_CHANNEL:
        # Without channels, and so on samples that it takes for channels, all entries may mix.
        yield FunctionMap(module, shape, shape[0] if len(shape) == 1 + _axes(kind) else 1)
    elif kind in MIXING:
        yield FunctionMap(module, shape)
    else:
        raise ValueError(f"can't be read; accepted are {ACCEPTED}")


def _axes(kind: type[nn.Module]) -> int:
    """Axes that a kind of module works along: 2 of ``AvgPool2d``."""
    return int(kind.__name__[-2]) if kind is not nn.Upsample else 2


def _slopes(shape: Shape, slopes: Tensor) -> Iterator[Step]:
    if len(slopes) == 1 and float(slopes) >= 0:
        yield float(slopes)
    else:
        yield from slopes_by_channel(shape, slopes.expand(shape[0]))


def _require_fixed(module: nn.Module) -> None:
    if any(part.training for part in module.modules()):
        raise ValueError("is in training mode: call network.eval() first")
    if isinstance(module, NORMS) and module.running_mean is None:
        raise ValueError("has no running statistics, so it is not affine")


RESHAPING_FUNCTIONS: tuple[object, ...] = (
    torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze,
    "flatten", "view", "reshape", "contiguous", "squeeze", "unsqueeze", "unflatten",
)  # fmt: skip


def _no_dropout(*_: object, **options: Any) -> nn.Module:  # noqa: ANN401
    if options.get("training", True):
        raise ValueError("is in training mode: call network.eval() first")
    return nn.Identity()


def _max_pool(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(
        kernel_size: Any,  # noqa: ANN401
        stride: Any = None,  # noqa: ANN401
        padding: Any = 0,  # noqa: ANN401
        dilation: Any = 1,  # noqa: ANN401
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> nn.Module:
        return kind(kernel_size, stride, padding, dilation, return_indices, ceil_mode)

    return build


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module:
    return nn.Hardtanh(-math.inf if min is None else min, math.inf if max is None else max)


AS_MODULES: dict[object, Callable[..., nn.Module]] = {
    **dict.fromkeys(RESHAPING_FUNCTIONS, lambda *_, **__: nn.Identity()),
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), lambda inplace=False: nn.ReLU()),
    **dict.fromkeys((torch.clamp, "clamp"), _clamp),
    F.leaky_relu: nn.LeakyReLU,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    F.max_pool1d: _max_pool(nn.MaxPool1d),
    F.max_pool2d: _max_pool(nn.MaxPool2d),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout), _no_dropout),
}
"""Functions and methods that are modules by another name; their arguments after the first."""

AFFINE: dict[object, bool] = {
    **dict.fromkeys(
        (operator.add, operator.sub, operator.mul, operator.neg, torch.add, torch.sub, torch.mul,
         operator.truediv, torch.div, "add", "sub", "mul", "div"), True,
    ),
    **dict.fromkeys(
        (F.linear, F.conv1d, F.conv2d, F.conv_transpose2d, F.batch_norm, F.pad, F.interpolate,
         F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.mean,
         "mean", "sum", torch.permute, "permute", torch.transpose, "transpose"), False,
    ),
}  # fmt: skip
"""Affine functions of one tensor, where all else is constant; whether each entry is by itself."""
