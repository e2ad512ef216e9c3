"""The spectra of all stages, and their extremes, against a dense SVD of each stage's Jacobian."""

import pytest
import torch
from torch import nn

from iresflow.errors import SpectrumError
from iresflow.relu import extreme_singular_values, linearize, measure_stages
from iresflow.relu.stability import stage_spectra as stage_module
from iresflow.relu.stability.stage_spectra import image_window


def narrow(leaky: bool = False):
    """Convolutions and dense layers that lose directions in the middle, and gain units again."""
    on = nn.LeakyReLU(0.1) if leaky else nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), on, nn.Conv2d(6, 3, 3, stride=2, padding=1), on,
        nn.Conv2d(3, 9, 3, padding=1), on, nn.Flatten(), nn.Linear(144, 90), on,
        nn.Linear(90, 10), nn.Linear(10, 40), on,
    )  # fmt: skip


SHAPE = (2, 8, 8)


def cuts(module):
    """The module up to each of its stages."""
    stages = [i for i, part in enumerate(module) if not isinstance(part, nn.Flatten)]
    return [module[: i + 1] for i in stages]


def dense_jacobian(module, x):
    return torch.autograd.functional.jacobian(lambda v: module(v[None])[0].flatten(), x).flatten(1)


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("side", [None, 3])
@pytest.mark.parametrize("seed", range(3))
def test_are_those_of_dense_jacobians(leaky, side, seed):
    torch.manual_seed(seed)
    columns = None if side is None else image_window(SHAPE, side)
    module, x = narrow(leaky), torch.randn(SHAPE)
    lost = 0
    found = measure_stages(module, x[None], columns)
    for one, part in zip(found, cuts(module), strict=True):
        matrix = dense_jacobian(part, x)
        matrix = matrix if columns is None else matrix[:, columns]
        expected = torch.linalg.svdvals(matrix)
        rank = int((expected > 1e-12 * expected.max()).sum())
        (spectrum,) = one.spectra
        assert one.stage.size == len(matrix) and one.active == (int(matrix.any(1).sum()),)
        assert len(spectrum.values) == len(expected)
        assert spectrum.count == rank
        torch.testing.assert_close(spectrum.values[:rank], expected[:rank], rtol=2e-6, atol=0)
        torch.testing.assert_close(spectrum.values[rank:], 0 * expected[rank:], rtol=0, atol=1e-13)
        lost += rank < matrix.shape[1]
    assert lost > 0  # also where directions are missing


def test_medians_are_over_samples():
    module, samples = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), 3 * torch.randn(4, 6)
    samples[1] = 0  # where all units are off
    with torch.no_grad():
        module[0].bias.fill_(-0.1)
    _, after = measure_stages(module, samples)
    values = torch.stack([torch.linalg.svdvals(dense_jacobian(module, x)) for x in samples])
    torch.testing.assert_close(after.median(), values.sort(0).values[1], rtol=1e-6, atol=1e-7)
    largest = values.amax(1)
    assert after.median_of(lambda s: s.largest) == pytest.approx(
        float(largest[largest > 0].quantile(0.5))
    )


def test_medians_and_counts_of_a_pooling_network():
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                           nn.Flatten(), nn.Linear(12, 5))  # fmt: skip
    samples = torch.randn(3, 2, 4, 4)
    found = measure_stages(module, samples)
    cuts = [1, 2, 3, 5]
    assert len(found) == len(cuts)
    for one, cut in zip(found, cuts, strict=True):
        for index, x in enumerate(samples):
            dense = torch.autograd.functional.jacobian(
                lambda v, part=module[:cut]: part(v[None])[0].flatten(), x
            ).flatten(1)
            expected = torch.linalg.svdvals(dense)
            spectrum = one.spectra[index]
            torch.testing.assert_close(spectrum.values, expected, rtol=1e-6, atol=1e-7)
            assert spectrum.count == int(torch.linalg.matrix_rank(dense))
            assert one.active[index] == int(dense.any(1).sum())
        middle = torch.stack([s.values for s in one.spectra]).sort(0).values[1]
        torch.testing.assert_close(one.median(), middle)


def test_nothing_is_left_after_units_that_are_all_off():
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    with torch.no_grad():
        module[0].bias.fill_(-1e3)
    stages = measure_stages(module, torch.randn(1, 4))
    assert [one.spectra[0].count for one in stages] == [4, 0, 0]
    largest = [one.median_of(lambda s: s.largest) for one in stages]
    assert largest[0] > 0 and largest[1] != largest[1]  # of nothing there is no median
    assert extreme_singular_values(linearize(module, torch.randn(1, 4))) == (0, 0)


@pytest.mark.parametrize("dense", [2, 2000])
@pytest.mark.parametrize("leaky", [False, True])
def test_extremes_are_those_of_all_singular_values(leaky, dense, monkeypatch):
    """From the matrix, and by products alone."""
    monkeypatch.setattr(stage_module, "DENSE", dense)
    module, x = narrow(leaky), torch.randn(SHAPE)
    if dense == 2:  # small, as iterations take many products
        module, x = nn.Sequential(nn.Linear(5, 12), module[1], nn.Linear(12, 4)), torch.randn(5)
    local = linearize(module, x[None])
    for stage, part in zip(local.stages, cuts(module), strict=True):
        matrix = dense_jacobian(part, x)
        values = torch.linalg.svdvals(matrix[matrix.any(1)])
        smallest, largest = extreme_singular_values(local.at(stage))
        assert largest == pytest.approx(float(values[0]), rel=1e-6)
        assert smallest == pytest.approx(float(values[-1]), rel=1e-5, abs=2e-6 * largest)


def square(weight):
    module = nn.Linear(*weight.shape, bias=False)
    with torch.no_grad():
        module.weight.copy_(weight)
    return linearize(module, torch.zeros(1, len(weight)))


def test_extremes_say_when_they_did_not_converge(monkeypatch):
    monkeypatch.setattr(stage_module, "DENSE", 2)
    generator = torch.Generator().manual_seed(0)
    local = square(torch.randn(60, 60, generator=generator))
    with pytest.raises(SpectrumError, match="did not converge"):
        extreme_singular_values(local, iterations=1)


def test_extremes_of_some_hundred_units_need_no_iterations():
    """Where the smallest value is tiny, iterations have no answer, and all values are cheap."""
    left, _ = torch.linalg.qr(torch.randn(300, 300))
    local = square(left * torch.logspace(0, -9, 300) @ left.mT)
    smallest, largest = extreme_singular_values(local, iterations=1)
    assert largest == pytest.approx(1, rel=1e-9)
    assert smallest == pytest.approx(1e-9, rel=1e-5)
    with pytest.raises(ValueError, match="there are 2 points"):
        extreme_singular_values(linearize(nn.ReLU(), torch.ones(2, 3)))


def test_window():
    window = image_window((2, 5, 6), 2)
    picture = torch.zeros(60)
    picture[window] = 1
    expected = torch.zeros(2, 5, 6)
    expected[:, 1:3, 2:4] = 1
    torch.testing.assert_close(picture.view(2, 5, 6), expected)
    with pytest.raises(ValueError, match="must fit"):
        image_window((2, 5, 6), 6)
