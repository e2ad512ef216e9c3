import pytest
import torch
import torch.nn.functional as F
from helpers import CLOSED, materialize

from iresflow.lipschitz import CircularPadding, NormalizedConv2d, ReflectPadding, ZeroPadding

PADDINGS = {
    "constant": ZeroPadding(),
    "circular": CircularPadding(),
    "reflect": ReflectPadding(),
}


@pytest.mark.parametrize("mode", sorted(PADDINGS))
@pytest.mark.parametrize("size", [(3, 3), (5, 4), (7, 3)])
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_adjoint_and_taps_are_those_of_the_padded_image(mode, size, side, stride):
    padding, margin = PADDINGS[mode], side // 2
    kernel = torch.randn(3, 2, side, side)

    def reference(x):
        extended = F.pad(x, (margin,) * 4, mode=mode) if margin else x
        return F.conv2d(extended, kernel, stride=stride)

    matrix = materialize(reference, (2, *size))
    ours = materialize(padding.operator(kernel, stride), (2, *size))
    torch.testing.assert_close(ours, matrix, rtol=CLOSED, atol=CLOSED)
    rows, columns = (padding.taps(n, side, stride) for n in size)
    by_taps = torch.einsum("dcai,aoy,ipx->dopcyx", kernel, rows, columns)
    torch.testing.assert_close(by_taps.reshape(matrix.shape), matrix, rtol=CLOSED, atol=CLOSED)
    range_shape = (3, rows.shape[1], columns.shape[1])
    adjoint = materialize(lambda u: padding.strided_adjoint(u, kernel, size, stride), range_shape)
    torch.testing.assert_close(adjoint, matrix.mT, rtol=CLOSED, atol=CLOSED)
    if stride == 1:
        flipped = kernel.transpose(0, 1).flip(2, 3)
        adjoint = materialize(padding.adjoint(flipped), range_shape)
        torch.testing.assert_close(adjoint, matrix.mT, rtol=CLOSED, atol=CLOSED)


def test_images_too_small_for_their_padding_are_refused():
    with pytest.raises(ValueError, match="of more than as many, got 4 x 1"):
        NormalizedConv2d(1, 1, 3, (4, 1), padding=ReflectPadding(), coeff=0.9)
    with pytest.raises(ValueError, match="at least as many, got 1 x 4"):
        NormalizedConv2d(1, 1, 5, (1, 4), padding=CircularPadding(), coeff=0.9)


@pytest.mark.parametrize("side", [3, 5])
def test_scattering_is_the_same_convolution(side):
    """float64 on a CPU, with many more input than output channels, in both directions."""
    weight, x = torch.randn(2, 9, side, side), torch.randn(3, 9, 6, 5)
    bias = torch.randn(2)
    padding = ZeroPadding()
    expected = F.conv2d(x, weight, bias, padding=side // 2)
    ours = padding.operator(weight, 1, bias)(x)
    torch.testing.assert_close(ours, expected, rtol=CLOSED, atol=CLOSED)
    assert not torch.equal(ours, expected)  # it did go another way
    adjoint = padding.adjoint(weight)(x)
    torch.testing.assert_close(adjoint, expected - bias[:, None, None], rtol=CLOSED, atol=CLOSED)
