import math

import pytest
import scipy.linalg
import torch
from helpers import MatrixLinearization, branch_shape, contractions, small_branch

from iresflow import Krylov, Lanczos, PowerSeries
from iresflow.logdet import krylov
from iresflow.logdet.probes import draw_probes

BOTH = [Krylov, Lanczos]


def stream(seed=3):
    return torch.Generator().manual_seed(seed)


def probe_of(linearization, probe="rademacher", seed=3):
    """The probe that an estimator with one probe draws from the stream, ``(B, D)``."""
    return draw_probes(probe, 1, linearization.point, stream(seed))[0].flatten(1)


def log_form(matrices, v):
    """The form of the matrix logarithm at v, by scipy."""
    logs = [torch.from_numpy(scipy.linalg.logm(m.numpy()).real) for m in matrices]
    return torch.einsum("bi,bij,bj->b", v, torch.stack(logs), v)


def exact_form(kind, case, v):
    """What an estimator of that kind estimates for the probe v, ``(B,)``."""
    moved = case.identity + case.jacobian
    return log_form(moved, v) if kind is Krylov else log_form(moved.mT @ moved, v) / 2


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
@pytest.mark.parametrize("kind", BOTH)
def test_no_probe_errs_by_more_than_it_says(case, kind, steps, probe):
    linearization = case.linearize()
    estimate = kind(steps, tol=0, probe=probe)(linearization, stream())
    exact = exact_form(kind, case, probe_of(linearization, probe))
    assert bool(((estimate.value - exact).abs() <= estimate.truncation + 1e-13).all())


@pytest.mark.parametrize("kind", BOTH)
def test_bounds_mean_something(kind):
    """Halving is not enough: with each further step the bound falls as the error does."""
    linearization = MatrixLinearization(contractions(0.6, dim=40), 0.7)
    bounds = [kind(n, tol=0)(linearization, stream()).truncation.max() for n in (1, 3, 5, 7)]
    assert all(after < before / 5 for before, after in zip(bounds, bounds[1:], strict=False))
    v = probe_of(linearization)
    moved = torch.eye(40) + linearization.matrices
    exact = log_form(moved, v) if kind is Krylov else log_form(moved.mT @ moved, v) / 2
    estimate = kind(2, tol=0)(linearization, stream())
    error = (estimate.value - exact).abs()
    assert bool((error > 1e-6).all())
    assert bool((estimate.truncation < 300 * error).any())


@pytest.mark.parametrize("kind", BOTH)
def test_many_steps_give_the_form_of_the_matrix_logarithm(case, kind):
    linearization = case.linearize()
    value = kind(tol=1e-12)(linearization, stream()).value
    exact = exact_form(kind, case, probe_of(linearization))
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", BOTH)
def test_converged_estimates_are_unbiased(kind):
    linearization = MatrixLinearization(contractions(0.6), 0.7)
    log_det = torch.linalg.slogdet(torch.eye(12) + linearization.matrices).logabsdet
    estimate = kind(40, 1e-9, probes=4000)(linearization, stream())
    allowed = 4 * estimate.variance.sqrt()
    assert bool(((estimate.value - log_det).abs() <= allowed).all())
    # A control that must fail: a bias of a tenth of a nat.
    assert not bool(((estimate.value + 0.1 - log_det).abs() <= allowed).any())


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("kind", BOTH)
def test_left_vector_is_as_close_to_the_solve_as_it_says(matrices, kind, steps):
    """The gradient of w^T J v in J is the outer product of w and v: it shows w."""
    matrices, _ = matrices
    linearization = MatrixLinearization(matrices, 0.7)
    estimate = kind(steps, tol=0)(linearization, stream())
    (outer,) = torch.autograd.grad(estimate.surrogate.sum(), matrices)
    v = probe_of(linearization)
    left = torch.einsum("bij,bj->bi", outer, v) / v.square().sum(1, keepdim=True)
    exact = torch.linalg.solve((torch.eye(12) + matrices.detach()).mT, v)
    error = (left - exact).norm(dim=1) / v.norm(dim=1)
    assert bool((error <= estimate.gradient_truncation + 1e-12).all())
    assert bool((error > 1e-6).all())


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("form", ["conv", "dense"])
def test_gradients_agree_with_a_long_series(form, kind):
    branch = small_branch(form)
    x = torch.randn(3, *branch_shape(form))
    parameters = [p for layer in branch.layers for p in (layer.weight, layer.bias)][:-1]
    weights = torch.tensor([1.0, -2.0, 0.5])

    def gradients(log_det):
        surrogate = log_det(branch.linearize(x), stream()).surrogate
        return torch.autograd.grad((surrogate * weights).sum(), parameters)

    pairs = zip(gradients(kind(12, tol=0)), gradients(PowerSeries(100)), strict=True)
    for ours, series in pairs:
        torch.testing.assert_close(ours, series, rtol=1e-5, atol=1e-7)


def test_samples_stop_by_themselves_and_do_not_see_each_other(monkeypatch):
    matrices = torch.cat([contractions(norm, 2, 30) for norm in (0.05, 0.3, 0.6, 0.69)])
    v = draw_probes("rademacher", 2, torch.zeros(8, 30), stream())

    def run(index):
        monkeypatch.setattr(krylov, "draw_probes", lambda *_: v[:, index])
        return Krylov(tol=1e-8, probes=2)(MatrixLinearization(matrices[index], 0.7))

    whole = run(torch.arange(8))
    assert whole.products.unique().numel() > 2
    for i in range(8):
        alone = run(torch.tensor([i]))
        torch.testing.assert_close(alone.value[0], whole.value[i], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.surrogate[0], whole.surrogate[i], rtol=0, atol=1e-11)
        assert alone.products[0] == whole.products[i]


def test_half_of_the_products_of_the_series_are_enough():
    """On a symmetric Jacobian with |J| = 0.6: a polynomial of best fit against Taylor's."""
    linearization = MatrixLinearization(torch.diag(torch.linspace(-0.6, 0.6, 200))[None], 0.6)
    exact = log_form(torch.eye(200) + linearization.matrices, probe_of(linearization, "gaussian"))

    def products_for(estimator_of):
        for n in range(1, 60):
            if float((estimator_of(n)(linearization, stream()).value - exact).abs()) < 1e-6:
                return n
        return math.inf

    series = products_for(lambda n: PowerSeries(n, probe="gaussian"))
    assert 2 * products_for(lambda n: Krylov(n, 0, probe="gaussian")) <= series < 60


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("steps", [3, 64])
def test_a_zero_jacobian_has_log_determinant_zero(kind, steps):
    linearization = MatrixLinearization(torch.zeros(3, 4, 4), 0.5)
    for tol in (0, 1e-6):
        estimate = kind(steps, tol, probes=2)(linearization, stream())
        torch.testing.assert_close(estimate.value, torch.zeros(3), rtol=0, atol=1e-12)
        assert bool((estimate.truncation < 1e-12).all())


@pytest.mark.parametrize("kind", BOTH)
def test_one_dimension_takes_one_step(kind):
    linearization = MatrixLinearization(torch.full((3, 1, 1), 0.5), 0.9)
    estimate = kind()(linearization, stream())
    torch.testing.assert_close(estimate.value, torch.full((3,), math.log(1.5)))
    assert bool((estimate.truncation < 1e-10).all())


@pytest.mark.parametrize("estimator", [Krylov(5), Lanczos(5), PowerSeries(5)])
def test_an_expansion_that_shows_itself_has_no_value(estimator):
    matrices = contractions(0.6)
    matrices[1] *= 3 / 0.6
    value = estimator(MatrixLinearization(matrices), stream()).value
    assert value.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", BOTH)
def test_without_a_certified_bound_an_estimate_stops_and_nothing_is_claimed(kind):
    linearization = MatrixLinearization(contractions(0.6, dim=40))
    estimate = kind(tol=1e-5)(linearization, stream())
    assert estimate.truncation.isinf().all() and estimate.gradient_truncation.isinf().all()
    converged = kind(tol=1e-12)(linearization, stream())
    assert bool((estimate.products < converged.products).all())
    assert float((estimate.value - converged.value).abs().max()) < 1e-5 * 40


@pytest.mark.parametrize("kind", BOTH)
def test_float32_is_as_exact_as_its_rounding(kind):
    matrices = contractions(0.6, dim=40)
    exact = kind(tol=1e-12)(MatrixLinearization(matrices, 0.7), stream()).value
    torch.set_default_dtype(torch.float32)
    value = kind(tol=1e-7)(MatrixLinearization(matrices.float(), 0.7), stream()).value
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", BOTH)
def test_settings_out_of_range_are_refused(kind):
    for settings in ({"steps": 0}, {"tol": -1.0}, {"probes": 0}, {"probe": "cauchy"}):
        with pytest.raises(ValueError, match=r"at least 1|positive|unknown"):
            kind(**settings)


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 2e-5, 1e-6, 1e-9])
def test_bounds_hold_for_lipschitz_constants_next_to_one(gap):
    """Where a pole comes next to the interval: -L I, a rotation, a wide spectrum, and L I."""
    lipschitz, dim = 1 - gap, 40
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim))
    matrices = torch.stack(
        [-torch.eye(dim), rotation, torch.diag(torch.linspace(-1, 1, dim)), torch.eye(dim)]
    )
    linearization = MatrixLinearization(lipschitz * matrices, lipschitz)
    exact = log_form(torch.eye(dim) + linearization.matrices, probe_of(linearization))
    # The oracle's own rounding grows with the condition of I + J.
    rounding = 100 * torch.finfo(torch.float64).eps * dim / gap
    for estimator in (Krylov(3, tol=0), Krylov(64)):
        estimate = estimator(linearization, stream())
        error = (estimate.value - exact).abs()
        assert bool((error <= estimate.truncation + rounding).all())


def test_lanczos_stops_in_float32():
    """The rounding in the bracket is reported, and does not keep the probes from stopping."""
    torch.set_default_dtype(torch.float32)
    linearization = MatrixLinearization(contractions(0.3, dim=30), 0.94)
    estimate = Lanczos(tol=1e-4)(linearization, stream())
    assert bool((estimate.products < 30).all())
