import math

import pytest
import torch
from helpers import MatrixLinearization, contractions, dense_jacobian, expand, small_branch

from iresflow import (
    Exact,
    InversionError,
    Krylov,
    Lanczos,
    NotContractiveError,
    PowerSeries,
    RandomSeries,
    ReducedPrecision,
)
from iresflow.bijections import Accuracy, MonotoneBlock, ResidualBlock
from iresflow.bijections.stretch import Stretch
from iresflow.logdet import Cayley, ExactWhereSmall
from iresflow.logdet.cayley import twins
from iresflow.logdet.probes import squared_standard_error
from iresflow.streams import NORMAL, KeyedStream, PartialStream, draw

ESTIMATORS = {
    "exact": Exact(),
    "exact-where-small": ExactWhereSmall(PowerSeries(), 20),
    "power-series": PowerSeries(40, 4000),
    "power-series-tol": PowerSeries(60, 4000, tol=1e-4),
    "random-series": RandomSeries(probes=4000),
    "krylov": Krylov(12, 1e-8, 4000),
    "lanczos": Lanczos(12, 1e-8, 4000),
    "reduced": ReducedPrecision(PowerSeries(40, 4000)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_gives_the_difference_of_two_log_determinants(name):
    matrices = contractions(0.8, batch=3, dim=6).requires_grad_()
    identity = torch.eye(6)
    exact = (
        torch.linalg.slogdet(identity - matrices)[1] - torch.linalg.slogdet(identity + matrices)[1]
    )
    generator = torch.Generator().manual_seed(0)
    estimate = ESTIMATORS[name](Cayley(MatrixLinearization(matrices, 0.8)), generator)
    known = estimate.truncation.nan_to_num(posinf=1e-2).clamp(max=1e-2)
    variance = estimate.variance
    if name == "random-series":  # which claims none
        variance = squared_standard_error(estimate.terms)
    allowed = 4 * variance.sqrt() + known + 1e-9 * (name[:5] == "exact")
    if name == "reduced":
        allowed = allowed + 0.02
    assert bool(((estimate.value - exact).abs() <= allowed).all())
    wrong = torch.linalg.slogdet(identity + matrices)[1]  # that of a residual block
    assert bool(((estimate.value - wrong).abs() > allowed).any())
    weights = torch.tensor([1.0, -2.0, 0.5])
    (expected,) = torch.autograd.grad((exact * weights).sum(), matrices)
    (found,) = torch.autograd.grad((estimate.log_det * weights).sum(), matrices)
    size = float(expected.norm())
    assert float((found - expected).norm()) <= (1e-8 if name[:5] == "exact" else 0.1) * size


@pytest.mark.parametrize("estimator", [PowerSeries(40), RandomSeries(), Krylov(6)])
def test_even_powers_cancel_in_what_is_drawn(estimator):
    """Of an antisymmetric Jacobian only they are left, and the difference is 0 in each draw."""
    matrices = torch.randn(3, 6, 6)
    matrices = matrices - matrices.mT
    matrices = 0.8 * matrices / torch.linalg.matrix_norm(matrices, 2)[:, None, None]
    g = MatrixLinearization(matrices, 0.8)
    drawn = [estimator(g, torch.Generator().manual_seed(seed)).value for seed in range(5)]
    assert float(torch.stack(drawn).std(0).min()) > 1e-2
    found = estimator(Cayley(g), torch.Generator().manual_seed(0))
    assert float(found.value.abs().max()) < 1e-9


def test_twins_draw_the_same_and_move_the_stream_on():
    def numbers(stream):
        return draw(NORMAL, (2, 3), stream, batch=0, device="cpu", dtype=torch.float64)

    generator = torch.Generator().manual_seed(3)
    keyed = KeyedStream(torch.tensor([5, 7]))
    part = PartialStream(torch.Generator().manual_seed(3), 4, 1)
    for stream in (generator, keyed, part):
        numbers(stream)
        first, second = twins(stream, torch.device("cpu"))
        a, b = numbers(first), numbers(second)
        assert torch.equal(a, b) and not torch.equal(numbers(stream), a)
    torch.manual_seed(0)
    first, second = twins(None, torch.device("cpu"))
    assert torch.equal(numbers(first), numbers(second))


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_block_is_the_cayley_transform_of_a_residual_one(kind):
    branch = small_branch(kind)
    shape = (5,) if kind == "dense" else (2, 5, 4)
    u = torch.randn(4, *shape)
    x, z = u + branch(u), u - branch(u)
    block = MonotoneBlock(branch, Exact()).eval()
    torch.testing.assert_close(block.transform(x), z, rtol=1e-9, atol=1e-9)
    found = block.invert(z.detach(), None, Accuracy(1e-9))
    torch.testing.assert_close(found.value, x, rtol=0, atol=1e-9)
    plus = ResidualBlock(branch, Exact())(u)[1]
    minus = torch.linalg.slogdet(dense_jacobian(lambda v: v - branch(v), u))[1]
    torch.testing.assert_close(block(x)[1], minus - plus, rtol=1e-8, atol=1e-8)


def test_it_is_monotone_and_stretches_more_than_a_residual_block_may():
    block = MonotoneBlock(small_branch("dense", "elu")).eval()
    with torch.no_grad():
        for layer in block.branch.layers:
            layer.weight.mul_(100)  # to the limit
    lipschitz = block.branch.bound().upper
    x = 3 * torch.randn(400, 5)
    z = block.transform(x).detach()
    inner = ((x[:200] - x[200:]) * (z[:200] - z[200:])).sum(1)
    assert bool((inner > 0).all())
    singular = torch.linalg.svdvals(dense_jacobian(block.transform, x[:50]))
    bound = (1 + lipschitz) / (1 - lipschitz)
    assert float(singular.max()) <= bound and float(singular.min()) >= 1 / bound
    stretch = Stretch.monotone(lipschitz, 5)
    assert stretch.forward == pytest.approx(bound) and stretch.forward >= bound
    assert stretch.log_det_upper >= 5 * math.log(bound)
    assert Stretch.monotone(1.0, 5).inverse == math.inf


def test_gradients_are_those_of_the_implicit_function_theorem_to_any_order():
    block = MonotoneBlock(small_branch("dense", "tanh"), Exact()).eval()
    x = torch.randn(3, 5, requires_grad=True)

    def loss(y):
        z, log_det = block(y)
        return (z**2).sum() + (log_det**2).sum()

    torch.autograd.gradcheck(loss, x, rtol=1e-5, atol=1e-7)
    torch.autograd.gradgradcheck(lambda y: block.transform(y).square().sum(), x, rtol=1e-4)
    parameter = block.branch.layers[1].bias
    (gradient,) = torch.autograd.grad(loss(x), parameter)
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[0] += sign * step
        ends.append(float(loss(x).detach()))
        with torch.no_grad():
            parameter[0] -= sign * step
    assert float(gradient[0]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


def test_a_training_step_is_of_one_set_of_weights():
    block = MonotoneBlock(small_branch("dense"), Exact()).train()
    x = torch.randn(6, 5)
    z, log_det = block(x)
    (z.square().mean() - log_det.mean()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in block.parameters())


def test_what_does_not_converge_is_one_clear_error():
    block = MonotoneBlock(small_branch("dense"), Exact()).eval()
    x = torch.randn(3, 5)
    with pytest.raises(InversionError):
        block.transform(torch.full((1, 5), torch.inf))
    expand(block, 100.0)
    for call in (block, block.transform, block.invert):
        with pytest.raises(NotContractiveError, match="a residual block"):
            call(x)
