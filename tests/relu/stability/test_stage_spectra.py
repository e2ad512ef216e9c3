"""The spectra of all stages in one pass, against a dense SVD of each stage's matrix."""

import numpy as np
import pytest
import torch
from torch import nn

from iresflow.errors import SpectrumError
from iresflow.relu import parse_network
from iresflow.relu.stability import stage_spectra as stage_module
from iresflow.relu.stability.local_map import image_window, restrict_to_polytope
from iresflow.relu.stability.stage_spectra import extreme_singular_values, stage_spectra


def narrow(leaky: bool = False):
    """Convolutions and dense layers that lose directions in the middle, and gain units again."""
    on = nn.LeakyReLU(0.1) if leaky else nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), on, nn.Conv2d(6, 3, 3, stride=2, padding=1), on,
        nn.Conv2d(3, 9, 3, padding=1), on, nn.Flatten(), nn.Linear(144, 90), on,
        nn.Linear(90, 10), nn.Linear(10, 40), on,
    )  # fmt: skip


SHAPE = (2, 8, 8)


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("side", [None, 3])
@pytest.mark.parametrize("seed", range(3))
def test_are_those_of_the_matrices(leaky, side, seed):
    torch.manual_seed(seed)
    columns = None if side is None else image_window(SHAPE, side)
    local = restrict_to_polytope(parse_network(narrow(leaky), SHAPE), torch.randn(SHAPE), columns)
    lost = 0
    found = list(stage_spectra(local))
    for (stage, spectrum), (at, matrix) in zip(found, local.matrices(), strict=True):
        assert stage == at
        expected = torch.linalg.svdvals(matrix).numpy()
        rank = int((expected > 1e-12 * expected.max()).sum())
        assert len(spectrum.values) == len(expected)
        assert spectrum.count == rank
        np.testing.assert_allclose(spectrum.values[:rank], expected[:rank], rtol=2e-6)
        np.testing.assert_allclose(spectrum.values[rank:], 0, atol=1e-13)
        lost += rank < len(local.columns)
    assert lost > 0  # also where directions are missing


def test_a_spectrum_that_is_known_is_taken():
    local = restrict_to_polytope(parse_network(narrow(), SHAPE), torch.randn(SHAPE))
    stages = list(stage_spectra(local))
    again = list(stage_spectra(local, stages[0][1]))
    assert again[0][1] is stages[0][1]
    np.testing.assert_array_equal(again[3][1].values, stages[3][1].values)


def test_nothing_is_left_after_units_that_are_all_off():
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    with torch.no_grad():
        module[0].bias.fill_(-1e3)
    local = restrict_to_polytope(parse_network(module), torch.randn(4))
    counts = [spectrum.count for _, spectrum in stage_spectra(local)]
    assert counts == [4, 0, 0]


@pytest.mark.parametrize("dense", [2, 2000])
@pytest.mark.parametrize("leaky", [False, True])
def test_extremes_are_those_of_all_singular_values(leaky, dense, monkeypatch):
    """From the matrix, and by products alone."""
    monkeypatch.setattr(stage_module, "DENSE", dense)
    local = restrict_to_polytope(parse_network(narrow(leaky), SHAPE), torch.randn(SHAPE))
    for stage, matrix in local.matrices():
        rows = matrix
        if stage.activated:
            rows = matrix[local.slopes[stage.layer] > 0]
        values = torch.linalg.svdvals(rows)
        smallest, largest = extreme_singular_values(local, stage)
        assert largest == pytest.approx(float(values[0]), rel=1e-6)
        assert smallest == pytest.approx(float(values[-1]), rel=1e-5, abs=2e-6 * largest)


def test_extremes_say_when_they_did_not_converge(monkeypatch):
    monkeypatch.setattr(stage_module, "DENSE", 2)
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(60, 60, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.randn(60, 60, generator=generator))
    local = restrict_to_polytope(parse_network(module), torch.zeros(60))
    with pytest.raises(SpectrumError, match="did not converge"):
        extreme_singular_values(local, local.stages[0], iterations=1)


def test_extremes_of_a_stage_of_some_hundred_units_need_no_iterations():
    """Where the smallest value is tiny, iterations have no answer, and all values are cheap."""
    left, _ = torch.linalg.qr(torch.randn(300, 300))
    module = nn.Linear(300, 300, bias=False)
    with torch.no_grad():
        module.weight.copy_(left * torch.logspace(0, -9, 300) @ left.mT)
    local = restrict_to_polytope(parse_network(module), torch.zeros(300))
    smallest, largest = extreme_singular_values(local, local.stages[0], iterations=1)
    assert largest == pytest.approx(1, rel=1e-9)
    assert smallest == pytest.approx(1e-9, rel=1e-5)
