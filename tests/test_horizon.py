"""Loops that go on to a horizon: what they find is what a look at each step would have found."""

import pytest
import torch
from helpers import MatrixLinearization, contractions

from iresflow import horizon as horizon_module
from iresflow.horizon import Horizon, Notes
from iresflow.logdet.krylov import Krylov
from iresflow.logdet.series import _tail_sums, tail_sum
from iresflow.powers import Series

DEVICE = torch.device("cuda")  # told apart by its name alone: no tensor lies there
WEIGHTS = [((-1.0) ** k, (-1.0) ** k / (k + 1)) for k in range(40)]


@pytest.fixture
def linearization():
    return MatrixLinearization(contractions(0.6), 0.7)


def series_of(kind, v):
    if kind == "tolerance":
        return Series(WEIGHTS, enough=torch.rand(v.shape[:2]) * 1e-3)
    return Series(WEIGHTS, terms=torch.randint(1, 15, v.shape[:2]))


@pytest.fixture
def always_a_horizon(monkeypatch):
    """On a CPU too, as on a device; nothing is known of any loop."""
    horizon_module._counts.cache_clear()

    def on(device, *arguments):
        return Horizon(*arguments)

    def use(start):
        monkeypatch.setattr(horizon_module, "START", start)
        monkeypatch.setattr(Horizon, "on", staticmethod(on))

    yield use
    horizon_module._counts.cache_clear()


@pytest.mark.parametrize("start", [1, 3, 40])
@pytest.mark.parametrize("kind", ["tolerance", "lengths"])
def test_power_sums_are_those_of_a_look_at_each_term(linearization, always_a_horizon, kind, start):
    v = torch.randn(2, *linearization.point.shape)
    series = series_of(kind, v)
    expected = linearization.power_sums(v, series)
    assert 1 <= expected.taken.min() < expected.taken.max() < 40
    always_a_horizon(start)
    for _ in range(2):  # the second time from the count of the first
        found = linearization.power_sums(v, series)
        assert torch.equal(found.taken, expected.taken)
        for name in ("neumann", "weighted", "size", "growth"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-14
            )


@pytest.mark.parametrize("lipschitz", [0.7, None])
@pytest.mark.parametrize("start", [1, 3, 64])
def test_krylov_finds_what_a_look_at_each_step_finds(always_a_horizon, start, lipschitz):
    matrices = contractions(0.6) * torch.tensor([1.0, 0.3, 0.01]).view(-1, 1, 1)
    linearization = MatrixLinearization(matrices, lipschitz)
    estimator = Krylov(tol=1e-6, probes=3)
    expected = estimator(linearization, torch.Generator().manual_seed(3))
    assert expected.products.min() + 2 < expected.products.max()
    always_a_horizon(start)
    for _ in range(2):
        found = estimator(linearization, torch.Generator().manual_seed(3))
        for name, value in vars(expected).items():
            torch.testing.assert_close(
                getattr(found, name), value, rtol=1e-10, atol=1e-13, equal_nan=True, msg=name
            )


def test_what_ends_is_not_spoiled_by_what_is_computed_in_vain(always_a_horizon):
    """An expansion overflows long after the first term was small enough."""
    matrices = torch.stack([torch.eye(4) * 1e200, torch.eye(4) * 0.5])
    linearization = MatrixLinearization(matrices, None)
    v = torch.ones(1, 2, 4)
    series = Series(WEIGHTS, terms=torch.tensor([[1, 30]]))
    always_a_horizon(40)
    sums = linearization.power_sums(v, series)
    assert torch.equal(sums.neumann[0, 0], v[0, 0]) and bool(sums.growth.isfinite().all())
    expected = sum((-0.5) ** k for k in range(30))
    torch.testing.assert_close(sums.neumann[0, 1], torch.full((4,), expected))


def steps_taken(notes, needed, most=20):
    """What each loop of a step takes that needs so many; once more where that is too short."""
    attempts = []
    with notes.collecting():
        while True:
            attempts.append([])
            for need in needed:
                horizon = Horizon.on(DEVICE, most, "loop", None)
                for step in range(1, most + 1):
                    running = torch.tensor([[step < need, False]])
                    if horizon.ends(step, running, torch.tensor([[min(need, step), 1]])):
                        break
                attempts[-1].append(step)
            if notes.all_ended():
                return attempts


def test_a_step_goes_as_far_as_its_loops_lately_and_all_the_way_where_that_is_short():
    notes = Notes()
    assert steps_taken(notes, [5, 9]) == [[20, 20]]  # nothing is known
    assert steps_taken(notes, [4, 9]) == [[5, 9]]
    assert steps_taken(notes, [6, 3]) == [[5, 9], [20, 9]]
    assert steps_taken(notes, [2, 2]) == [[20, 9]]  # tells the counts of both
    assert steps_taken(notes, [2, 2]) == [[6, 9]]
    for _ in range(2 * horizon_module.WINDOW):
        steps_taken(notes, [2, 2])
    assert steps_taken(notes, [2, 2]) == [[2, 2]]


def test_notes_are_left_inside_of_a_step_alone():
    notes = Notes()
    with pytest.raises(RuntimeError), notes.collecting():
        Horizon.on(DEVICE, 5, "loop", None).ends(5, torch.ones(1, 1), torch.ones(1, 1))
        raise RuntimeError
    horizon = Horizon.on(DEVICE, 5, "another loop", None)
    assert not horizon.ends(1, torch.tensor([[True]]), torch.ones(1, 1))
    assert horizon.ends(5, torch.tensor([[False]]), 5 * torch.ones(1, 1))
    assert Horizon.on(torch.device("cpu"), 5, "loop", None) is None
    with notes.collecting():
        pass
    assert notes.all_ended()


@pytest.mark.parametrize("lipschitz", [0.0, 0.3, 0.99])
def test_tails_of_all_orders_are_those_of_each(lipschitz):
    expected = [tail_sum(lipschitz, order) for order in range(1, 31)]
    assert _tail_sums(lipschitz, 30) == pytest.approx(expected, rel=1e-8)
