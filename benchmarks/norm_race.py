"""Norms of convolutions by several methods, beside a dense SVD.

It is the part ``race`` of `benchmarks/certify.py`.

- Gram iteration with zero padding: B. Delattre, Q. Barthelemy, A. Allauzen, Spectral Norm of
  Convolutional Layers with Circular and Zero Paddings, 2024, arXiv:2402.00240.
- Four reshaped matrices: S. Singla, S. Feizi, Fantastic Four: Differentiable Bounds on Singular
  Values of Convolution Layers, ICLR 2021, arXiv:1911.10258.
- One reshaped matrix, by power iteration: T. Miyato et al., Spectral Normalization for Generative
  Adversarial Networks, ICLR 2018, arXiv:1802.05957; in torch as ``spectral_norm``.
"""

import copy
import math
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import iresflow

Measure = Callable[[nn.Conv2d, int], float]


def dense_norm(module: nn.Module, channels: int, side: int) -> float:
    """The largest singular value of the matrix of a layer without bias, in float64."""
    module = copy.deepcopy(module).double()
    basis = torch.eye(channels * side * side, dtype=torch.float64)
    with torch.no_grad():
        matrix = module(basis.view(-1, channels, side, side)).flatten(1)
    return float(torch.linalg.matrix_norm(matrix, 2))


def gram_iteration(conv: nn.Conv2d, side: int, iterations: int) -> float:
    """Above the norm for each size of image, but for rounding (Delattre et al., 2024).

    The kernel of the Gram operator is that of the correlation with itself. The largest sum of
    absolute values over an output channel bounds the norm of the last one, and a root of it that
    of the first.
    """
    del side
    kernel, scale = conv.weight.detach().double(), 0.0
    if kernel.shape[1] < kernel.shape[0]:
        kernel = kernel.transpose(0, 1)  # the adjoint's, but for its orientation: fewer put out
    for _ in range(iterations):
        size = kernel.norm()
        kernel = kernel / size
        scale = 2 * (scale + float(size.log()))
        margin = [n - 1 for n in kernel.shape[2:]]
        kernel = F.conv2d(kernel, kernel, padding=margin)
    total = float(kernel.abs().sum((1, 2, 3)).max().log())
    return math.exp((total + scale) / 2**iterations)


def power_iteration(conv: nn.Conv2d, side: int, iterations: int) -> float:
    """Below the norm: iterations with the operator and its adjoint."""
    weight, options = conv.weight.detach(), {"padding": conv.padding[0]}
    x = torch.randn(1, conv.in_channels, side, side)
    for _ in range(iterations):
        x = F.conv_transpose2d(F.conv2d(x, weight, **options), weight, **options)
        x = x / x.norm()
    return float(F.conv2d(x, weight, **options).norm())


def torchs_spectral_norm(conv: nn.Conv2d, side: int) -> float:
    """What torch divides by: an estimate of the norm of the kernel as one matrix."""
    del side
    layer = spectral_norm(copy.deepcopy(conv)).eval()
    with torch.no_grad():
        return float(conv.weight.norm() / layer.weight.norm())


def four_matrices(conv: nn.Conv2d, side: int) -> float:
    """Above the norm for each size of image, but for rounding (Singla and Feizi, 2021)."""
    del side
    weight = conv.weight.detach()
    d, c, h, w = weight.shape
    matrices = (
        weight.reshape(d, c * h * w),
        weight.transpose(0, 1).reshape(c, d * h * w),
        weight.transpose(1, 2).reshape(d * h, c * w),
        weight.transpose(1, 3).reshape(d * w, c * h),
    )
    return math.sqrt(h * w) * min(float(torch.linalg.matrix_norm(m, 2)) for m in matrices)


METHODS: dict[str, Measure] = {
    "norm_bound": lambda conv, side: iresflow.norm_bound(conv, side).upper,
    "its estimate": lambda conv, side: iresflow.norm_bound(conv, side).estimate,
    "Gram iteration, 3": partial(gram_iteration, iterations=3),
    "Gram iteration, 5": partial(gram_iteration, iterations=5),
    "four matrices": four_matrices,
    "power iteration, 10": partial(power_iteration, iterations=10),
    "power iteration, 100": partial(power_iteration, iterations=100),
    "torch's spectral_norm": torchs_spectral_norm,
}

OTHERS: dict[str, Callable[[int], nn.Module]] = {
    "stride 2": lambda c: nn.Conv2d(c, c, 3, 2, 1, bias=False),
    "dilation 2": lambda c: nn.Conv2d(c, c, 3, 1, 2, 2, bias=False),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, 1, 1, groups=c, bias=False),
    "circular": lambda c: nn.Conv2d(c, c, 3, 1, 1, bias=False, padding_mode="circular"),
    "reflect": lambda c: nn.Conv2d(c, c, 3, 1, 1, bias=False, padding_mode="reflect"),
    "replicate": lambda c: nn.Conv2d(c, c, 3, 1, 1, bias=False, padding_mode="replicate"),
    "transposed, stride 2": lambda c: nn.ConvTranspose2d(c, c, 4, 2, 1, bias=False),
}
"""Layers that only `norm_bound` takes, by their channels."""


def timed(measure: Callable[[], float]) -> tuple[float, float]:
    """What is measured, and milliseconds of the process's time; the second of two calls."""
    measure()
    began = time.process_time()
    value = measure()
    return value, 1000 * (time.process_time() - began)


def race(cases: tuple[tuple[int, int, int], ...]) -> None:
    """Zero-padded 3 x 3 convolutions by (inputs, outputs, side), then layers of other kinds."""
    head = f"{'method':<24} {'to the norm %':>14} {'CPU ms':>9}"
    print(f"\nnorms of 3 x 3 convolutions, percent above (+) or below (-) a dense SVD\n\n{head}")
    for inputs, outputs, side in cases:
        torch.manual_seed(0)
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        norm = dense_norm(conv, inputs, side)
        print(f"\n{inputs} -> {outputs} channels, {side} x {side} pixels: {norm:.6f}")
        for name, measure in METHODS.items():
            value, spent = timed(partial(measure, conv, side))
            print(f"{name:<24} {100 * (value / norm - 1):+14.4f} {spent:9.1f}", flush=True)
    channels, _, side = cases[-1]
    print(f"\nother layers, {channels} channels, {side} x {side} pixels: norm_bound\n")
    print(f"{'layer':<24} {'above %':>14} {'CPU ms':>9}  method")
    for name, build in OTHERS.items():
        torch.manual_seed(0)
        layer = build(channels)
        norm = dense_norm(layer, channels, side)
        value, spent = timed(lambda layer=layer: iresflow.norm_bound(layer, side).upper)
        method = iresflow.norm_bound(layer, side).method
        print(f"{name:<24} {100 * (value / norm - 1):+14.4f} {spent:9.1f}  {method}", flush=True)
