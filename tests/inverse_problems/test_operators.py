import pytest
import torch
from helpers import materialize

from iresflow.inverse_problems import LinearOperator, average_pooling, blur, identity, masking

SHAPE = (2, 6, 4)

KERNEL = torch.tensor([[0.0, 0.1, 0.3], [0.2, 0.5, 0.1], [-0.1, 0.0, 0.4]])

OPERATORS = {
    "identity": lambda: identity(SHAPE),
    "masking": lambda: masking((torch.rand(SHAPE) > 0.5).double()),
    "blur": lambda: blur(KERNEL.double(), SHAPE),
    "wide blur": lambda: blur(torch.randn(1, 3), SHAPE),
    "average pooling": lambda: average_pooling(2, SHAPE),
}


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]()


def test_the_adjoint_is_the_transposed_matrix(operator):
    matrix = materialize(operator, operator.shape)
    adjoint = materialize(operator.adjoint, operator.measured)
    torch.testing.assert_close(adjoint, matrix.mT, rtol=0, atol=1e-14)


def test_a_blur_is_the_sum_of_shifted_images():
    x = torch.rand(3, *SHAPE)
    found = blur(KERNEL.double(), SHAPE)(x)
    shifts = ((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))
    expected = sum(KERNEL[i + 1, j + 1] * x.roll((i, j), (2, 3)) for i, j in shifts)
    torch.testing.assert_close(found, expected)


def test_pooling_takes_means():
    x = torch.rand(1, 1, 4, 4)
    found = average_pooling(2, (1, 4, 4))(x)
    torch.testing.assert_close(found[0, 0, 1, 0], x[0, 0, 2:, :2].mean())


def test_a_mask_that_changes_afterwards_changes_nothing():
    mask = torch.ones(SHAPE)
    operator = masking(mask)
    mask.zero_()
    assert bool((operator(torch.ones(1, *SHAPE)) == 1).all())


def test_float32_images_stay_float32(operator):
    assert operator(torch.rand(2, *SHAPE, dtype=torch.float32)).dtype == torch.float32


def test_an_operator_made_in_float32_is_accepted():
    torch.set_default_dtype(torch.float32)
    kernel = torch.rand(7, 7)
    blur(kernel, (3, 32, 32))
    fft = LinearOperator(
        lambda x: torch.fft.fft2(x).real, lambda y: torch.fft.fft2(y).real, (1, 28, 28)
    )
    assert fft.measured == (1, 28, 28)


@pytest.mark.parametrize(
    "forward, adjoint",
    [
        (lambda x: 2 * x, lambda y: y),
        (lambda x: x.flip(2).cumsum(2), lambda y: y.cumsum(2)),
        (lambda x: x + 1, lambda y: y),
        (lambda x: x.abs(), lambda y: y),
        (lambda x: x * torch.nan, lambda y: y),
        # Two pixels of the border exchanged.
        (lambda x: x.roll(1, 2), lambda y: y.roll(-1, 2).index_fill(2, torch.tensor([0]), 0)),
        # Hardly wrong.
        (lambda x: 1.0000001 * x, lambda y: y),
    ],
)
def test_a_wrong_adjoint_is_refused(forward, adjoint):
    with pytest.raises(ValueError, match="not linear and adjoint"):
        LinearOperator(forward, adjoint, SHAPE)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="first dimension counts samples"):
        LinearOperator(lambda x: x.flatten(), lambda y: y, SHAPE)
    with pytest.raises(ValueError, match=r"the adjoint makes \(4, 2, 6, 2\)"):
        LinearOperator(lambda x: x, lambda y: y[..., :2], SHAPE)
    operator = average_pooling(2, SHAPE)
    with pytest.raises(ValueError, match=r"images of shape \(B, 2, 6, 4\), got \(1, 2, 4, 4\)"):
        operator(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"measurements of shape \(B, 2, 3, 2\)"):
        operator.adjoint(torch.zeros(1, *SHAPE))


def test_what_is_no_operator_is_refused():
    with pytest.raises(ValueError, match="operator must make tensors of tensors, got ndarray"):
        LinearOperator(lambda x: x.numpy(), lambda y: y, (1, 4, 4))
    with pytest.raises(ValueError, match="adjoint must make tensors of tensors, got NoneType"):
        LinearOperator(lambda x: x, lambda y: None, (1, 4, 4))
    with pytest.raises(ValueError, match=r"images of shape \(0, 4, 4\) have no pixels"):
        identity((0, 4, 4))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="odd sides"):
        blur(torch.ones(2, 3), SHAPE)
    with pytest.raises(ValueError, match="larger than images"):
        blur(torch.ones(3, 5), SHAPE)
    with pytest.raises(ValueError, match="squares of 4 pixels"):
        average_pooling(4, SHAPE)
    with pytest.raises(ValueError, match="not linear and adjoint"):
        masking(torch.full(SHAPE, torch.inf))


def test_no_global_random_number_is_drawn():
    before = torch.get_rng_state()
    identity(SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
