"""The norms of PyTorch's own linear layers."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from iresflow.lipschitz.bounds.axes import Reading
from iresflow.lipschitz.bounds.base import Bound
from iresflow.lipschitz.bounds.operators import ModuleOperator

__all__ = ["check_finite", "norm_bound", "operator_of"]

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@torch.no_grad()
def norm_bound(module: nn.Module, image_size: int | Iterable[int] | None = None) -> Bound:
    """Certified bound and estimate of the norm of a linear layer of PyTorch, bias aside.

    It is the Lipschitz constant of the layer in the Euclidean norm, on inputs of the given size,
    of the weight as it is stored, in exact arithmetic.

    Arguments:
        module: An ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.ConvTranspose1d`` or
            ``nn.ConvTranspose2d``, with any stride, dilation, groups and padding; also one whose
            weight is parametrized.
        image_size: Of the module's input: (H, W) or one number for a square, the length of a
            sequence. A linear layer takes none.

    Returns:
        A `Bound`. Its method is ``gram`` where the matrix of a small convolution was written out
        (rounding above the norm), ``banded`` for a factorisation of the banded Gram matrix (below
        0.1 % in most cases), and ``fourier`` for the maximum of the symbol: rounding above the
        norm of a matrix (a linear layer, a 1 x 1 kernel), and for circular padding that keeps the
        size; up to 0.5 % above an estimate that is near enough; a percent or less on large
        images. Large images that are extended by their own pixels have ``localized`` bounds, from
        smaller images of the same kind: some percent above the norm. Where even those are too
        large, ``extended`` is the symbol's maximum times the norm of the extension: up to twice
        the norm for a margin of one pixel, and more for wider ones. The estimate, from below,
        tells how loose it is.

    Raises:
        ValueError: a module of another kind; no or a wrong image size; weights that are none,
            not finite, complex, or made by a hook before each call.
    """
    family = operator_of(module, image_size)
    weight: Any = module.weight
    check_finite(module, weight)
    return family.tight_bound(weight, family.start(weight))


def check_finite(module: nn.Module, weight: Tensor) -> None:
    """Raises a ValueError where a weight is NaN or infinite."""
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{_name(module)} has weights that are NaN or infinite: no bound holds")


def operator_of(
    module: nn.Module, image_size: int | Iterable[int] | None = None
) -> ModuleOperator:
    """What a module does to inputs of a size, as `norm_bound` takes them; it raises the same."""
    kind = _kind(module)
    layer: Any = module
    shape = layer.weight.shape
    if kind is nn.Linear:
        return ModuleOperator(shape, Reading(1, 1), Reading(1, 1))
    transposed = kind in (nn.ConvTranspose1d, nn.ConvTranspose2d)
    sizes = _sizes(module, image_size, len(layer.kernel_size))
    try:
        axes = [_reading(layer, i, n, transposed) for i, n in enumerate(sizes)]
    except ValueError as error:
        raise ValueError(f"{_name(module)} on inputs of size {sizes}: {error}") from None
    rows, columns = axes if len(axes) == 2 else (Reading(1, 1), axes[0])
    return ModuleOperator(shape, rows, columns, layer.groups, transposed)


def _name(module: nn.Module) -> str:
    return type(module).__qualname__


def _kind(module: nn.Module) -> type[nn.Module]:
    """The one of `KINDS` that a module computes."""
    for kind in KINDS:
        if isinstance(module, kind) and _computes(module, kind):
            weight: Any = module.weight
            if nn.parameter.is_lazy(weight):
                raise ValueError(f"{_name(module)} has no weight before its first call")
            if weight.numel() == 0:
                raise ValueError(
                    f"{_name(module)} has a weight without entries, of shape {tuple(weight.shape)}"
                )
            if not weight.is_floating_point():
                raise ValueError(
                    f"weights must be real floats, {_name(module)} has {weight.dtype}"
                )
            if weight.is_meta:
                raise ValueError(f"{_name(module)} has a shape without numbers, on device meta")
            if _hooked(module):
                raise ValueError(
                    f"a hook makes the weight of {_name(module)} anew in each call, so that what "
                    "it holds may be outdated: remove the hook (prune.remove, remove_weight_norm, "
                    "remove_spectral_norm), or take torch.nn.utils.parametrizations"
                )
            return kind
    known = ", ".join(f"nn.{kind.__name__}" for kind in KINDS)
    raise ValueError(
        f"no bound is known of {_name(module)}; what has one is {known}, "
        "and what keeps their forward pass"
    )


def _hooked(module: nn.Module) -> bool:
    """Whether a weight is neither stored nor parametrized, but set by what runs before a call."""
    stored = "weight" in module._parameters or "weight" in module._buffers
    made = not stored and not parametrize.is_parametrized(module, "weight")
    return made and len(module._forward_pre_hooks) > 0


def _computes(module: nn.Module, kind: type[nn.Module]) -> bool:
    names = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
    return all(getattr(type(module), name) is getattr(kind, name) for name in names)


def _sizes(
    module: nn.Module, image_size: int | Iterable[int] | None, axes: int
) -> tuple[int, ...]:
    parts = list(image_size) if isinstance(image_size, Iterable) else [image_size] * axes
    try:
        sizes = tuple(operator.index(n) for n in parts)  # type: ignore[arg-type]
    except TypeError:
        sizes = ()
    if len(sizes) != axes or min(sizes) < 1:
        wanted = "the length of its input" if axes == 1 else "(height, width) of its input"
        raise ValueError(f"{_name(module)} takes image_size={wanted}, got {image_size!r}")
    return sizes


def _reading(module: Any, axis: int, size: int, transposed: bool) -> Reading:  # noqa: ANN401
    taps, stride, dilation = (
        getattr(module, name)[axis] for name in ("kernel_size", "stride", "dilation")
    )
    wide = dilation * (taps - 1)
    if transposed:
        margin, extra = module.padding[axis], module.output_padding[axis]
        result = (size - 1) * stride - 2 * margin + wide + extra + 1
        return Reading(result, taps, stride, dilation, margin, margin - extra)
    match module.padding:
        case "valid":
            before = after = 0
        case "same":
            before, after = wide // 2, wide - wide // 2
        case margins:
            before = after = margins[axis]
    mode: Any = module.padding_mode if before or after else "zeros"
    return Reading(size, taps, stride, dilation, before, after, mode)
