"""Learned operators: filters in closed form, stability, inverses, gradients, files, bad input."""

import math
from functools import partial

import pytest
import torch
from helpers import dense_jacobian, perturb
from interpreters import BARE, run_program

import iresflow
from iresflow.cli import main
from iresflow.inverse_problems import (
    Approximation,
    DivergencePenalty,
    LearnedOperator,
    LinearOperator,
    LogDetPenalty,
    Reconstruction,
    SelfAdjoint,
    average_pooling,
)
from iresflow.logdet import Exact
from iresflow.training.loop.batches import Batch

EIGENVALUES = torch.tensor([0.05, 0.3, 0.6, 1.0], dtype=torch.float64)
SPREADS = torch.tensor([0.5, 2.0, 1.0, 0.7], dtype=torch.float64)
NOISE = 0.2
LIMIT = 0.75

OPERATORS = {
    "linear": lambda: LearnedOperator((5,), hidden=(), lipschitz=0.9),
    "vector": lambda: LearnedOperator((5,), 2, 8, lipschitz=0.8, activation="lipswish"),
    "image": lambda: LearnedOperator((2, 4, 3), 2, 6, lipschitz=0.7),
    "image-linear": lambda: LearnedOperator((1, 4, 4), 1, (), kernels=(3,), lipschitz=0.9),
    "image-concatenated": lambda: LearnedOperator(
        (1, 4, 4), 1, 6, kernels=(3, 3), padding="circular", activation="clipswish"
    ),
}


@pytest.fixture(params=sorted(OPERATORS))
def net(request):
    net = perturb(OPERATORS[request.param](), 0.5)
    net.initialize(3 * torch.randn(50, *net.shape))
    return net


def samples_of(net, count=6):
    return 3 * torch.randn(count, *net.shape)


# Filters of linear operators: the moments of the data are exact, and so are the minima.


def designed():
    """x and noise whose second moments are diagonal, and equal to SPREADS**2 and NOISE**2."""
    size = len(EIGENVALUES)
    basis = size**0.5 * torch.eye(size)
    x = torch.cat([s * SPREADS * basis for s in (1, 1, -1, -1)])
    return x, torch.cat([s * NOISE * basis for s in (1, -1, 1, -1)])


def learned_filter(objective, noisy=False, steps=200, rate=0.05):
    x, noise = designed()
    z = EIGENVALUES * x + noisy * noise
    net = LearnedOperator((4,), hidden=(), lipschitz=LIMIT)
    with torch.no_grad():
        next(net.parameters()).mul_(0.01)  # near the identity
    iresflow.fit(
        net,
        x,
        z,
        objective=objective,
        validation=None,
        batch_size=len(x),
        steps=steps,
        learning_rate=rate,
    )
    matrix = dense_jacobian(net, torch.zeros(1, 4))[0]
    assert float((matrix - matrix.diag().diag()).abs().max()) < 0.01
    return matrix.diag()


def test_the_best_linear_approximation_is_the_squared_soft_tsvd():
    expected = EIGENVALUES.clamp(1 - LIMIT, 1 + LIMIT)
    torch.testing.assert_close(learned_filter(Approximation()), expected, atol=3e-3, rtol=0)


def test_zero_mean_noise_does_not_change_the_approximation():
    expected = EIGENVALUES.clamp(1 - LIMIT, 1 + LIMIT)
    found = learned_filter(Approximation(), noisy=True)
    torch.testing.assert_close(found, expected, atol=3e-3, rtol=0)


def test_training_of_the_inverse_finds_the_wiener_filter_within_its_limits():
    gain = EIGENVALUES * SPREADS**2 / (EIGENVALUES**2 * SPREADS**2 + NOISE**2)
    expected = (1 / gain).clamp(1 - LIMIT, 1 + LIMIT)
    found = learned_filter(Reconstruction(tol=1e-7), noisy=True, steps=250, rate=0.03)
    torch.testing.assert_close(found, expected, atol=6e-3, rtol=0)
    assert float((EIGENVALUES.clamp(1 - LIMIT) - expected).abs().max()) > 0.05  # not that one


def test_the_divergence_penalty_leads_to_the_maximum_a_posteriori():
    expected = (EIGENVALUES + NOISE**2 / SPREADS**2).clamp(1 - LIMIT, 1 + LIMIT)
    objective = Approximation(penalties=(DivergencePenalty(NOISE, probes=4, probe="orthogonal"),))
    torch.testing.assert_close(learned_filter(objective), expected, atol=3e-3, rtol=0)


def test_the_log_det_penalty_leads_to_tweedies_formula():
    # K w^-1 z = z + noise^2 d/dz log N(0, w^2 spread^2) is a quadratic equation in w.
    root = (EIGENVALUES**2 + 4 * NOISE**2 / SPREADS**2).sqrt()
    expected = ((EIGENVALUES + root) / 2).clamp(1 - LIMIT, 1 + LIMIT)
    objective = Approximation(penalties=(LogDetPenalty(NOISE, Exact()),))
    torch.testing.assert_close(learned_filter(objective), expected, atol=3e-3, rtol=0)


# The map and its inverse.


def test_the_inverse_of_a_linear_operator_is_a_dense_solve():
    net = perturb(LearnedOperator((6,), hidden=(), lipschitz=0.95), 0.5)
    matrix, shift = dense_jacobian(net, torch.zeros(1, 6))[0], net(torch.zeros(1, 6))
    z = torch.randn(10, 6)
    exact = torch.linalg.solve(matrix, (z - shift).mT).mT
    found = net.invert(z, iresflow.Accuracy(1e-12))
    torch.testing.assert_close(found.value, exact, atol=1e-10, rtol=0)
    assert bool(((found.value - exact).norm(dim=1) <= found.worst_case).all())


def test_inverse_and_map_undo_each_other(net):
    x = samples_of(net)
    z = net(x)
    assert z.shape == x.shape
    found = net.invert(z, iresflow.Accuracy(1e-11))
    torch.testing.assert_close(found.value, x, atol=1e-8, rtol=0)
    assert bool(((found.value - x).flatten(1).norm(dim=1) <= found.worst_case).all())
    torch.testing.assert_close(net(net.inverse(x, tol=1e-11)), x, atol=1e-8, rtol=0)


def test_no_pair_is_stretched_more_than_certified(net):
    certificate = net.certify()
    assert certificate and certificate.largest <= net.lipschitz
    assert net.stability() == certificate.inverse_lipschitz
    worst = (1 - net.lipschitz) ** -len(certificate)
    assert net.stability() <= worst * (1 + 1e-12)
    for size in (1e-3, 1.0, 30.0):
        z, other = samples_of(net, 40), samples_of(net, 40)
        other = z + size * (other - z)
        images = net.inverse(torch.cat([z, other]), tol=1e-11).flatten(1)
        moved = (images[:40] - images[40:]).norm(dim=1)
        assert bool((moved <= net.stability() * (z - other).flatten(1).norm(dim=1) + 1e-9).all())


def test_the_bound_is_reached():
    net = LearnedOperator((3,), hidden=(), lipschitz=0.9).eval()
    with torch.no_grad():
        net.get_submodule("bijection.maps.0.branch.layers.0").weight.copy_(-torch.eye(3))
    z = torch.randn(2, 3)
    moved = (net.inverse(z, tol=1e-12) - net.inverse(z + 1, tol=1e-12)).norm(dim=1)
    torch.testing.assert_close(moved / 3**0.5, torch.full((2,), net.stability()))


def test_errors_of_data_and_of_approximation_add_up_to_no_more():
    matrix = torch.diag(EIGENVALUES)
    net = perturb(LearnedOperator((4,), 1, 8, lipschitz=LIMIT), 0.3)
    x, noise = torch.randn(30, 4), 0.1 * torch.randn(30, 4)
    found = net.inverse(x @ matrix + noise, tol=1e-11)
    allowed = noise.norm(dim=1) + (net(x) - x @ matrix).norm(dim=1)
    assert bool(((found - x).norm(dim=1) <= net.stability() * allowed + 1e-9).all())


def test_log_determinants_are_those_of_the_dense_jacobian(net):
    x = samples_of(net)
    z, log_det = net.transform_and_log_det(x, Exact())
    torch.testing.assert_close(z, net(x))
    torch.testing.assert_close(log_det, torch.linalg.slogdet(dense_jacobian(net, x))[1])
    penalty = LogDetPenalty(0.5, Exact())(net, x, torch.Generator())
    torch.testing.assert_close(penalty, -0.25 * log_det)


def test_the_divergence_is_the_trace_of_the_dense_jacobian(net):
    x, dim = samples_of(net), net.base_dim
    trace = dense_jacobian(net, x).diagonal(dim1=1, dim2=2).sum(1)
    exact = DivergencePenalty(0.5, dim, "orthogonal")(net, x, torch.Generator())
    torch.testing.assert_close(exact, -0.25 * trace)


def test_one_probe_is_right_in_the_mean():
    net = perturb(OPERATORS["vector"](), 0.8)
    x = torch.randn(1, 5)
    trace = float(torch.trace(dense_jacobian(net, x)[0]))
    many = x.expand(4000, 5)
    penalty, generator = DivergencePenalty(1.0, probe="gaussian"), torch.Generator().manual_seed(1)
    values = penalty(net, many, generator).detach()
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean()) + trace) < 4 * error
    assert abs(float(values.mean()) + 1.2 * trace) > 4 * error  # a biased one would be seen


# Gradients.


def gradient_by_differences(loss, parameter, step=1e-5):
    values = []
    with torch.no_grad():
        for index in range(min(6, parameter.numel())):
            entry = parameter.view(-1)[index]
            before = float(entry)
            ends = []
            for end in (step, -step):
                entry.fill_(before + end)
                ends.append(float(loss()))
            entry.fill_(before)
            values.append((ends[0] - ends[1]) / (2 * step))
    return torch.tensor(values)


OBJECTIVES = {
    "reconstruction": lambda: Reconstruction(tol=1e-12),
    "divergence": lambda: Approximation(penalties=(DivergencePenalty(0.3, 2),)),
    "log-det": lambda: Approximation(penalties=(LogDetPenalty(0.3, Exact()),)),
}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("kind", ["vector", "image"])
def test_gradients_are_those_of_differences(name, kind):
    net = perturb(OPERATORS[kind](), 0.5).train()
    x = torch.randn(3, *net.shape)
    batch, objective = Batch(x, x + 0.1 * torch.randn_like(x)), OBJECTIVES[name]()

    def loss():
        return objective(net, batch, torch.Generator().manual_seed(0)).loss

    for parameter in list(net.parameters())[:2]:
        (gradient,) = torch.autograd.grad(loss(), parameter)
        found = gradient_by_differences(loss, parameter)
        torch.testing.assert_close(gradient.flatten()[:6], found, rtol=2e-5, atol=2e-7)


# Training, units, files.


def blurred(x):
    return EIGENVALUES.to(x) * x


def blurring():
    return SelfAdjoint.of(LinearOperator(blurred, blurred, (4,)))


def test_data_in_other_units_make_the_same_model():
    def trained(unit, objective):
        torch.manual_seed(3)
        net = LearnedOperator((4,), 2, 8, lipschitz=0.8)
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))
        iresflow.fit(net, unit * x, objective=objective(unit), steps=10, batch_size=16)
        return net, iresflow.Accuracy(1e-6 * unit)

    operator = blurring()

    def approximation(unit):
        return Approximation(operator, (LogDetPenalty(0.1 * unit), DivergencePenalty(0.1 * unit)))

    def reconstruction(unit):
        return Reconstruction(operator, 0.1 * unit)

    x = torch.randn(10, 4)
    for objective in (approximation, reconstruction):
        (net, own), (other, theirs) = (trained(unit, objective) for unit in (1.0, 1e-6))
        torch.testing.assert_close(1e6 * other(1e-6 * x), net(x), atol=1e-6, rtol=0)
        found, same = net.invert(x, own), other.invert(1e-6 * x, theirs)
        torch.testing.assert_close(1e6 * same.value, found.value, atol=1e-5, rtol=0)
        assert bool((same.residual < 1e-9).all())


def test_a_second_training_keeps_the_unit():
    net, x = LearnedOperator((4,), 1, 8), torch.randn(32, 4)
    iresflow.fit(net, x, blurred(x), steps=2)
    unit = net.unit.clone()
    iresflow.fit(net, 100 * x, blurred(100 * x), steps=2)
    assert torch.equal(net.unit, unit)


def test_a_run_can_be_stored_resumed_and_loaded_elsewhere(tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    x, objective = torch.randn(64, 4), Approximation(blurring(), (LogDetPenalty(0.1),))

    def trained(path, *lengths):
        torch.manual_seed(0)
        net = LearnedOperator((4,), 1, 8, lipschitz=0.99)
        for index, steps in enumerate(lengths):
            iresflow.fit(
                net, x, objective=objective, steps=steps, run=path, resume=index > 0, bar=False
            )
        return net

    net, parts = trained(tmp_path / "run", 20), trained(tmp_path / "parts", 8, 20)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)
    net.save(tmp_path / "net.pt")
    again = iresflow.load(tmp_path / "net.pt")
    assert torch.equal(again(x), net(x)) and again.certify().largest <= 0.99
    assert main(["certify", str(tmp_path / "net.pt")]) == 0
    assert "certified" in capsys.readouterr().out
    # In a process that has not imported this room.
    program = (
        f"import iresflow, sys; net = iresflow.load({str(tmp_path / 'net.pt')!r}); "
        "print(type(net).__name__, bool(net.certify()))"
    )
    assert run_program(program, imported=BARE).stdout.split() == ["LearnedOperator", "True"]


def test_in_float32_the_certificate_holds_too():
    torch.set_default_dtype(torch.float32)
    net = LearnedOperator((1, 6, 6), 2, 8, lipschitz=0.999)
    x = torch.randn(40, 1, 6, 6)
    iresflow.fit(net, x, 0.5 * x, steps=10, learning_rate=0.01)
    assert net.certify().largest <= 0.999
    found = net.invert(x)
    assert found.value.dtype == torch.float32
    wide = net.invert(x.double(), iresflow.Accuracy(1e-12)).value
    moved = (found.value.double() - wide).flatten(1).norm(dim=1)
    assert bool((moved <= found.worst_case).all())


# Self-adjoint operators.


def dense_operator(rows, columns):
    matrix = torch.randn(rows, columns)
    return matrix, LinearOperator(lambda x: x @ matrix.mT, lambda y: y @ matrix, (columns,))


@pytest.mark.parametrize(("rows", "columns"), [(3, 7), (9, 4), (60, 50)])
def test_normal_equations_are_those_of_the_dense_matrix(rows, columns):
    matrix, measure = dense_operator(rows, columns)
    operator = SelfAdjoint.normal(measure)
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert norm * (1 - 1e-3) < operator.norm <= norm * (1 + 1e-12)
    dense = dense_jacobian(operator, torch.zeros(1, columns))[0]
    torch.testing.assert_close(dense, matrix.mT @ matrix / operator.norm**2)
    y = torch.randn(5, rows)
    torch.testing.assert_close(operator.back(y), y @ matrix / operator.norm**2)


def test_noise_is_added_to_what_is_measured():
    matrix, measure = dense_operator(3, 4)
    operator = SelfAdjoint.normal(measure)
    x = torch.randn(1, 4).expand(20_000, 4)
    z = operator.observed(x, 0.3, torch.Generator().manual_seed(0))
    covariance = 0.09 * matrix.mT @ matrix / operator.norm**4
    error = 4 * 2 * covariance.diag().max() / len(x) ** 0.5
    torch.testing.assert_close(torch.cov(z.mT), covariance, atol=float(error), rtol=0)
    mean_error = 4 * (covariance.diag().max() / len(x)) ** 0.5
    torch.testing.assert_close(z.mean(0), operator(x[:1])[0], atol=float(mean_error), rtol=0)
    assert torch.equal(operator.observed(x, 0.0), operator(x))


def test_training_on_normal_equations_reconstructs():
    matrix = torch.linalg.qr(torch.randn(6, 4))[0] * torch.tensor([1.0, 0.8, 0.6, 0.4])
    x = torch.randn(256, 4)
    measure = LinearOperator(lambda x: x @ matrix.mT, lambda y: y @ matrix, (4,))
    operator = SelfAdjoint.normal(measure)
    net = LearnedOperator((4,), hidden=(), lipschitz=0.98)
    iresflow.fit(net, x, objective=Approximation(operator), steps=200, learning_rate=0.05)
    found = net.inverse(operator.back(x @ matrix.mT))
    torch.testing.assert_close(found, x, atol=0.05, rtol=0)


# Bad input.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lipschitz": 1.0}, "between 0 and 1"),
        ({"lipschitz": 1.5}, "between 0 and 1"),
        ({"lipschitz": 0.0}, "between 0 and 1"),
        ({"lipschitz": math.nan}, "finite number"),
        ({"shape": (2, 3)}, "shape is"),
        ({"shape": ()}, "shape is"),
        ({"blocks": 0}, "blocks"),
        ({"hidden": (3, 0)}, "hidden"),
        ({"shape": (1, 4, 4), "kernels": (2,), "hidden": ()}, "odd"),
        ({"shape": (1, 4, 4), "kernels": (3, 3), "hidden": (4, 4)}, "widths"),
        ({"shape": (1, 4, 4), "padding": "replicate"}, "padding is one of"),
        ({"activation": "relu"}, "activation"),
        ({"normalization": "spectral"}, "normalization"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LearnedOperator(**{"shape": (4,), "hidden": 4, **settings})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 5), "shape"),
        (torch.zeros(0, 4), "at least 1"),
        (torch.zeros(4), "shape"),
        (torch.zeros(2, 4, dtype=torch.long), "floats"),
        (torch.full((2, 4), torch.nan, dtype=torch.float64), "NaN"),
        (torch.full((2, 4), torch.inf, dtype=torch.float64), "NaN or infinity"),
    ],
)
def test_data_that_do_not_fit_are_refused(x, message):
    net = LearnedOperator((4,), 1, 4).eval()
    with pytest.raises(ValueError, match=message):
        net(x)
    with pytest.raises(ValueError, match=message):
        net.invert(x)


@pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.full((3, 4), 1e-320).double()])
def test_data_without_a_unit_are_refused(x):
    with pytest.raises(ValueError, match="root mean square"):
        LearnedOperator((4,), 1, 4).initialize(x.double())


def diagonal(*entries):
    return LinearOperator(*[lambda x: x * torch.tensor(entries)] * 2, (len(entries),))


def test_operators_with_another_spectrum_are_refused():
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    for operator, message in (
        (diagonal(1.01, 0.5), "eigenvalue of 1.01"),
        (diagonal(1.0, -0.1), "negative eigenvalue, -0.1"),
        (LinearOperator(lambda x: x @ turn, lambda x: x @ turn.mT, (2,)), "its own adjoint"),
        (average_pooling(2, (1, 4, 4)), "its own adjoint"),
    ):
        with pytest.raises(ValueError, match=message):
            SelfAdjoint.of(operator)
    with pytest.raises(ValueError, match="zero"):
        SelfAdjoint.normal(diagonal(0.0, 0.0))
    SelfAdjoint.of(diagonal(1.0, 0.0))


def test_objectives_refuse_what_does_not_fit():
    net, x = LearnedOperator((4,), 1, 4), torch.randn(8, 4)
    fit = partial(iresflow.fit, steps=1, validation=None)
    flow = iresflow.VectorFlow(4, 1, 4)
    with pytest.raises(ValueError, match="nothing to compare with"):
        fit(net, x)
    with pytest.raises(ValueError, match="nothing to compare with"):
        fit(net, x, objective=Reconstruction())
    with pytest.raises(ValueError, match="same shape"):
        fit(net, x, x[:, :3])
    with pytest.raises(ValueError, match="same shape"):
        fit(net, x, objective=Approximation(lambda x: x[:, :3]))
    with pytest.raises(ValueError, match="takes floats of shape"):
        fit(net, x[:, :3], x[:, :3])
    with pytest.raises(ValueError, match="takes floats"):
        fit(net, x.long(), x)
    with pytest.raises(ValueError, match="NaN"):
        fit(net, x * torch.nan, x)
    with pytest.raises(ValueError, match="trains a LearnedOperator"):
        fit(flow, x, objective=Approximation(blurred))
    for noise in (-1.0, math.nan, math.inf):
        for kind in (Reconstruction, LogDetPenalty, DivergencePenalty):
            with pytest.raises(ValueError, match="standard deviation"):
                kind(noise=noise)
    with pytest.raises(ValueError, match="there is none"):
        Reconstruction(noise=0.1)
    with pytest.raises(ValueError, match="tol"):
        Reconstruction(tol=-1.0)
    with pytest.raises(ValueError, match="probes"):
        DivergencePenalty(0.1, 0)
