r"""Convolutions that keep the size of an image, and the gradients of their kernels.

On a CPU, libraries compute output channels in blocks of sixteen, so a convolution from many
channels to one costs sixteen times its work. Here, a k x k convolution to few channels is first a
1 x 1 convolution, which gives an image for each of the :math:`k^2` taps, and then the sum of these
images, shifted; they are small. The same goes for the gradient of its kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

__all__ = [
    "convolve_and_back",
    "convolve_same",
    "gram_of_windows",
    "same_layout",
    "same_weight_gradient",
]

NARROW = 4
"""Output channels at most for which the taps are summed up: above, the plain way is faster."""

LARGE = 1 << 18
"""Entries of the input at least, for each output channel: below, the many small sums cost more."""

SCATTER = 4
"""From so many input channels for each output channel on, scattering is the faster convolution in
float64, where a library copies the pixels of each window."""

SMALL = 1 << 20
"""Entries of the input at most for which a 1 x 1 convolution is a product of matrices: a library's
convolution takes longer to be called."""


def same_layout(x: Tensor) -> Tensor:
    """x with its channels last in memory where it is an image: what convolutions are fast in.

    The strides, too, are those of a tensor that was made so: with one channel torch takes both
    layouts for the same, and a convolution that follows would choose the other one.
    """
    if x.ndim != 4:
        return x.contiguous()
    _, channels, height, width = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return x.permute(0, 2, 3, 1).contiguous().as_strided(x.shape, strides)


def convolve_same(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``(N, C, H, W)`` and a kernel ``(D, C, k, k)`` with odd k to ``(N, D, H, W)``.

    Zeros lie beyond the border.
    """
    outputs, inputs, side, _ = weight.shape
    if side == 1 and x.numel() <= SMALL and x.stride(1) == 1:
        matrix, pixels = weight.view(outputs, inputs).t(), _pixels(x)
        y = pixels @ matrix if bias is None else torch.addmm(bias, pixels, matrix)
        return y.view(len(x), *x.shape[2:], outputs).permute(0, 3, 1, 2)
    if _scatters(x, weight):
        # Each pixel's share is added to its neighbours.
        taps = weight.flip(2, 3).permute(0, 2, 3, 1).reshape(outputs * side * side, inputs)
        y = F.fold(torch.matmul(taps, x.flatten(2)), x.shape[-2:], side, padding=side // 2)
        return y if bias is None else y + bias.view(-1, 1, 1)
    if not _by_taps(x, outputs, side):
        return F.conv2d(x, weight, bias, padding=side // 2)
    taps = weight.permute(2, 3, 0, 1).reshape(-1, inputs, 1, 1)
    images = F.conv2d(x, taps).unflatten(1, (-1, outputs)).unbind(1)
    batch, _, height, width = x.shape
    margin = side // 2
    wide = torch.promote_types(x.dtype, torch.float32)  # of all sums, as a library would
    size = (batch, height + 2 * margin, width + 2 * margin, outputs)
    y = x.new_zeros(size, dtype=wide).permute(0, 3, 1, 2)
    for k, image in enumerate(images):
        # The pixel p + tap - margin enters the pixel p.
        top, left = 2 * margin - k // side, 2 * margin - k % side
        y[..., top : top + height, left : left + width] += image
    y = y[..., margin : margin + height, margin : margin + width].to(x.dtype)
    return y if bias is None else y + bias.view(-1, 1, 1)


def _scatters(x: Tensor, weight: Tensor) -> bool:
    """Whether the plain convolution would gather each pixel :math:`k^2` times, for few sums."""
    outputs, inputs, side, _ = weight.shape
    double = x.dtype == torch.float64 and x.device.type == "cpu"
    return double and side > 1 and inputs >= SCATTER * outputs and x.stride(1) != 1


def gram_of_windows(weight: Tensor) -> Tensor:
    """The products ``(C k k, C k k)`` of a kernel ``(D, C, k, k)`` with itself, over D."""
    rows = weight.flatten(1)
    return rows.t() @ rows


def convolve_and_back(x: Tensor, gram: Tensor, side: int) -> Tensor:
    """`convolve_same`, and then its adjoint, by the products of its kernel.

    With D output channels, both take 2 D C k k products a pixel; this takes the square of C k k.

    Arguments:
        x: ``(N, C, H, W)``, as is the result.
        gram: Of `gram_of_windows`.
        side: The kernel's.
    """
    windows = F.unfold(x, side, padding=side // 2)
    return F.fold(gram @ windows, x.shape[-2:], side, padding=side // 2)


def same_weight_gradient(x: Tensor, u: Tensor, shape: torch.Size) -> Tensor:
    """Gradient of the sum of ``u * convolve_same(x, weight)`` for a weight of a shape."""
    outputs, inputs, side, _ = shape
    if side == 1 and x.numel() <= SMALL:
        return torch.mm(_pixels(u).t(), _pixels(x)).view(shape)
    if not _by_taps(x, outputs, side):
        return conv2d_weight(x, shape, u, padding=side // 2)
    margin = side // 2
    padded = F.pad(u.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin))
    windows = padded.unfold(1, side, 1).unfold(2, side, 1)  # (N, H, W, D, k, k)
    columns = windows.flip(4, 5).flatten(3).permute(0, 3, 1, 2)
    taps = conv2d_weight(x, (columns.shape[1], inputs, 1, 1), columns)
    return taps.view(outputs, side, side, inputs).permute(0, 3, 1, 2).contiguous()


def _by_taps(x: Tensor, outputs: int, side: int) -> bool:
    large = x.numel() >= LARGE * outputs and x.shape[1] >= 16
    return large and side > 1 and outputs <= NARROW and x.device.type == "cpu"


def _pixels(x: Tensor) -> Tensor:
    """``(N, C, H, W)`` as ``(N H W, C)``, without a copy where the channels are last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
