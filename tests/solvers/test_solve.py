import pytest
import torch
from helpers import FunctionMap

from iresflow import InversionError, NotContractiveError
from iresflow.linearization import FunctionLinearization
from iresflow.solvers import Anderson, Broyden, FixedPoint, Proposer, Solver, solve

SOLVERS = {
    "fixed-point": FixedPoint(5000),
    "anderson": Anderson(max_steps=5000),
    "broyden": Broyden(max_steps=5000),
}


@pytest.fixture(params=sorted(SOLVERS))
def solver(request):
    return SOLVERS[request.param]


def contraction(lipschitz, dim=6, batch=5):
    """Sample-wise maps ``tanh`` of a rotation, scaled to a Lipschitz constant of its own."""
    rotation = torch.linalg.qr(torch.randn(dim, dim)).Q
    scales = lipschitz * torch.linspace(0.01, 1, batch)

    def g(x, index):
        value = scales[index, None] * torch.tanh(x @ rotation)
        # An inner product of `dim` terms, with matrices of absolute values of norm sqrt(dim).
        return value, (dim**1.5 + 2) * x.norm(dim=1) + value.norm(dim=1)

    return g, torch.arange(batch)


def invert(g, y, **settings):
    settings = {"tol": 1e-8, "solver": FixedPoint(5000), **settings}
    return solve([FunctionMap(g, y.dtype)], y, **settings)


def in_two_types(g, rough=None):
    """A map in float64 as a pair, the narrow one rounded or worse."""

    def narrow(x, index):
        value, magnitude = g(x.double(), index)
        return (value if rough is None else rough(value)).float(), magnitude.float()

    def linearize(x, index):
        return FunctionLinearization(lambda p: g(p.double(), index)[0].float(), x)

    return [FunctionMap(narrow, torch.float32, linearize), FunctionMap(g, torch.float64)]


@pytest.mark.parametrize("lipschitz", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_error_is_below_its_bound_and_the_bound_below_the_tolerance(lipschitz, tol, solver):
    g, index = contraction(lipschitz)
    x = torch.randn(5, 6)
    y = x + g(x, index)[0]
    solution = invert(g, y, lipschitz=lipschitz, tol=tol, solver=solver)
    error = (solution.value - x).norm(dim=1)
    assert bool((error <= solution.error).all())
    assert bool((solution.error <= tol).all())
    assert bool((solution.floor < 1e-10).all())


def test_finished_samples_cost_nothing(solver):
    g, _ = contraction(0.9)
    evaluated = []

    def counting(x, index):
        evaluated.append(len(index))
        return g(x, index)

    solution = invert(counting, torch.randn(5, 6), lipschitz=0.9, tol=1e-6, solver=solver)
    assert evaluated == sorted(evaluated, reverse=True)
    assert sum(evaluated) == int(solution.steps.sum())
    assert solution.steps[0] < solution.steps[-1]


@pytest.mark.parametrize("lipschitz", [0.5, 0.95])
def test_float32_bounds_hold_against_float64(lipschitz, solver):
    g, index = contraction(lipschitz, dim=300, batch=40)
    x = 5 * torch.randn(40, 300)
    y = (x + g(x, index)[0]).float()
    narrow, _ = in_two_types(g)
    exact = invert(g, y.double(), lipschitz=lipschitz, tol=1e-10).value
    for tol in (10.0, 0.0):
        solution = solve([narrow], y, lipschitz=lipschitz, tol=tol, solver=solver)
        error = (solution.value.double() - exact).norm(dim=1)
        assert bool((error <= solution.error.double()).all())
    assert bool((solution.error <= 2 * solution.floor).all())  # tol=0: what float32 allows


@pytest.mark.parametrize("lipschitz", [0.5, 0.95])
def test_float64_certifies_what_float32_iterates(lipschitz, solver):
    g, index = contraction(lipschitz, dim=30, batch=12)
    x = 5 * torch.randn(12, 30)
    y = x + g(x, index)[0]
    wide = []

    def counting(x, index):
        wide.append(len(index))
        return g(x, index)

    narrow, _ = in_two_types(g)
    for tol in (1e-3, 1e-9):
        wide.clear()
        pair = [narrow, FunctionMap(counting, torch.float64)]
        solution = solve(pair, y, lipschitz=lipschitz, tol=tol, solver=solver)
        error = (solution.value - x).norm(dim=1)
        assert solution.value.dtype == torch.float64
        assert bool((error <= solution.error).all()) and bool((solution.error <= tol).all())
        assert len(wide) <= 3  # Newton's corrections leave little to the expensive type


def test_a_rough_narrow_type_costs_steps_but_no_accuracy(solver):
    g, index = contraction(0.9, dim=10)
    x = torch.randn(5, 10)
    y = x + g(x, index)[0]
    pair = in_two_types(g, rough=lambda value: (value * 4096).round() / 4096)
    narrow = FunctionMap(
        lambda p, i: (pair[0].g(p, i)[0], 1e4 * p.norm(dim=1) + 1e4),
        torch.float32,
        pair[0].linearize,
    )
    solution = solve([narrow, pair[1]], y, lipschitz=0.9, tol=1e-10, solver=solver)
    assert float((solution.value - x).norm(dim=1).max()) <= 1e-10


@pytest.mark.parametrize("lipschitz", [1.0, 1.5, float("nan"), float("inf")])
def test_expansive_maps_are_refused(lipschitz):
    g, _ = contraction(0.5)
    expected = "a map of mine has .*(not below 1|no Lipschitz bound)"
    with pytest.raises(NotContractiveError, match=expected):
        invert(g, torch.randn(5, 6), lipschitz=lipschitz, context="a map of mine")


@pytest.mark.parametrize("slope", [-0.98, 1.7, -3.0])
def test_a_lipschitz_bound_that_is_not_true_is_found_out(slope, solver):
    with pytest.raises(InversionError, match="a map of mine is no contraction"):
        invert(
            lambda x, i: (slope * x, x.norm(dim=1)),
            torch.randn(5, 6),
            lipschitz=0.9,
            solver=solver,
            context="a map of mine",
        )


def test_too_few_steps_raise_with_numbers():
    g, _ = contraction(0.99)
    with pytest.raises(
        InversionError, match=r"of 5 samples missed the tolerance .* after 3 steps"
    ):
        invert(g, torch.randn(5, 6), lipschitz=0.99, solver=FixedPoint(3))


def test_steps_of_both_types_count():
    g, _ = contraction(0.5)
    y = torch.randn(5, 6)
    pair = in_two_types(g)
    steps = int(solve(pair, y, lipschitz=0.5, tol=1e-8, solver=FixedPoint()).steps.max())
    with pytest.raises(InversionError, match="missed the tolerance"):
        solve(pair, y, lipschitz=0.5, tol=1e-8, solver=FixedPoint(steps // 2))


def test_values_that_are_not_finite_raise(solver):
    g, _ = contraction(0.5)
    y = torch.randn(5, 6)
    y[2, 3] = torch.nan
    with pytest.raises(InversionError, match="not finite"):
        invert(g, y, lipschitz=0.5, solver=solver)
    with pytest.raises(InversionError, match="not finite"):
        invert(
            lambda x, i: (x * torch.nan, x[:, 0]),
            torch.ones(2, 3),
            lipschitz=0.5,
            tol=1,
            solver=solver,
        )


def test_an_empty_batch_has_an_empty_solution(solver):
    g, _ = contraction(0.5)
    assert invert(g, torch.zeros(0, 6), lipschitz=0.5, solver=solver).value.shape == (0, 6)
    pair = in_two_types(g)
    solution = solve(pair, torch.zeros(0, 6), lipschitz=0.5, tol=1e-3, solver=solver)
    assert solution.value.shape == (0, 6)


@pytest.mark.parametrize("make", [FixedPoint, Anderson, Broyden])
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        make(max_steps=0)
    if make is not FixedPoint:
        with pytest.raises(ValueError, match="memory must be at least 1, got 0"):
            make(memory=0)


# Acceleration: counts, and what happens where it does not pay.


def symmetric(lipschitz, dim=40, batch=6):
    """A contraction with a nearly symmetric Jacobian, as those of trained branches are."""
    rotation = torch.linalg.qr(torch.randn(dim, dim)).Q
    matrix = rotation @ torch.diag(torch.linspace(-1, 1, dim)) @ rotation.mT
    shift = torch.randn(batch, dim)

    def g(x, index):
        value = lipschitz * torch.tanh(x @ matrix + shift[index]) @ matrix
        return value, dim**1.5 * (x.norm(dim=1) + dim**0.5)

    return g


@pytest.mark.parametrize("lipschitz", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("name", ["anderson", "broyden"])
def test_acceleration_takes_at_most_half_of_the_evaluations(lipschitz, name):
    g = symmetric(lipschitz)
    y = torch.randn(6, 40)
    plain = invert(g, y, lipschitz=lipschitz)
    fast = invert(g, y, lipschitz=lipschitz, solver=SOLVERS[name])
    assert bool((fast.error <= 1e-8).all())
    assert (fast.value - plain.value).norm(dim=1).max() <= 2e-8
    assert 2 * int(fast.steps.sum()) <= int(plain.steps.sum())


def test_evaluations_count_in_both_types():
    """And the products with the Jacobian, and the linearization."""
    g = symmetric(0.95)
    counts = {"narrow": 0, "wide": 0, "products": 0}

    def counted(name, function):
        def call(x, index):
            counts[name] += len(x)
            return function(x, index)

        return call

    class Counted(FunctionLinearization.__bases__[0]):
        def __init__(self, whole):
            self.whole = whole

        def jvp(self, v):
            counts["products"] += v.shape[1]
            return self.whole.jvp(v)

        value = vjp = bilinear = evaluate = None

        def rows(self, index):
            return Counted(self.whole.rows(index))

    narrow, wide = in_two_types(g)

    def linearize(x, index):
        counts["products"] += len(x)
        return Counted(narrow.linearize(x, index))

    pair = [
        FunctionMap(counted("narrow", narrow.g), torch.float32, linearize),
        FunctionMap(counted("wide", wide.g), torch.float64),
    ]
    solution = solve(pair, torch.randn(6, 40), lipschitz=0.95, tol=1e-9, solver=Anderson())
    assert int(solution.steps.sum()) == sum(counts.values())
    assert counts["products"] > 6 and counts["wide"] <= 3 * 6


@pytest.mark.parametrize("lipschitz", [0.5, 0.95])
def test_where_acceleration_does_not_pay_it_costs_at_most_twice(lipschitz):
    """A rotation has its spectrum on a circle: no Krylov method gets ahead."""
    g, _ = contraction(lipschitz, dim=30, batch=5)
    y = torch.randn(5, 30)
    plain = invert(g, y, lipschitz=lipschitz)
    for name in ("anderson", "broyden"):
        fast = invert(g, y, lipschitz=lipschitz, solver=SOLVERS[name])
        assert bool((fast.error <= 1e-8).all())
        assert bool((fast.steps <= 2 * plain.steps + 1).all())


class _Foolish(Proposer):
    """Proposes what a broken method might."""

    def __init__(self, move):
        self.move = move

    def propose(self, residual, move, change):
        return self.move(residual)

    def keep(self, rows):
        pass


class _Fool(Solver):
    max_steps = 5000

    def __init__(self, move):
        self.move = move

    def begin(self):
        return _Foolish(self.move)


FOOLS = {
    "nan": lambda r: r * torch.nan,
    "infinite": lambda r: r / 0,
    "huge": lambda r: 1e300 * r,
    "nothing": lambda r: 0 * r,
    "backward": lambda r: -r,
    "too-far": lambda r: 3 * r,
    "noise": lambda r: torch.randn_like(r) * r.norm() / r[0].numel() ** 0.5,
}


@pytest.mark.parametrize("name", sorted(FOOLS))
@pytest.mark.parametrize("types", [1, 2])
def test_no_proposal_can_do_harm(name, types):
    """The certificate holds, and evaluations are at most twice those of the plain iteration.

    Three times in two types: corrections that fail cost as well.
    """
    lipschitz, tol = 0.9, 1e-6
    g = symmetric(lipschitz)
    x = torch.randn(6, 40)
    y = x + g(x, torch.arange(6))[0]
    maps = in_two_types(g) if types == 2 else [FunctionMap(g, torch.float64)]
    settings = {"lipschitz": lipschitz, "tol": tol}
    plain = solve(maps, y, solver=FixedPoint(5000), **settings)
    foolish = solve(maps, y, solver=_Fool(FOOLS[name]), **settings)
    error = (foolish.value - x).norm(dim=1)
    assert bool((error <= foolish.error).all()) and bool((foolish.error <= tol).all())
    assert bool((foolish.steps <= (1 + types) * plain.steps + 3).all())


def test_the_worst_case_is_that_of_two_evaluations_for_each_contraction():
    """A linear map that shrinks every residual by L exactly, and proposals that are all wrong."""
    g = lambda x, index: (-0.8 * x, x.norm(dim=1))  # noqa: E731
    y = torch.ones(1, 4)
    plain = invert(g, y, lipschitz=0.8)
    worst = invert(g, y, lipschitz=0.8, solver=_Fool(lambda r: 0.5 * r))
    assert int(plain.steps) < int(worst.steps) <= 2 * int(plain.steps) + 1
