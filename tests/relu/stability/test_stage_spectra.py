"""The spectra of all stages in one pass, against a dense SVD of each stage's matrix."""

import numpy as np
import pytest
import torch
from torch import nn

from iresflow.relu import parse_network
from iresflow.relu.stability.local_map import (
    image_window,
    linearize,
    roots_of_gram,
    singular_values,
)
from iresflow.relu.stability.stage_spectra import stage_spectra


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
    local = linearize(parse_network(narrow(leaky), SHAPE), torch.randn(SHAPE), columns)
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
    local = linearize(parse_network(narrow(), SHAPE), torch.randn(SHAPE))
    stages = list(stage_spectra(local))
    again = list(stage_spectra(local, stages[0][1]))
    assert again[0][1] is stages[0][1]
    np.testing.assert_array_equal(again[3][1].values, stages[3][1].values)


def test_nothing_is_left_behind_units_that_are_all_off():
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    with torch.no_grad():
        module[0].bias.fill_(-1e3)
    local = linearize(parse_network(module), torch.randn(4))
    counts = [spectrum.count for _, spectrum in stage_spectra(local)]
    assert counts == [4, 0, 0]


def test_small_singular_values_keep_digits():
    """A Gram matrix alone would lose those below 1e-8 of the largest one."""
    left, _ = torch.linalg.qr(torch.randn(40, 6))
    right, _ = torch.linalg.qr(torch.randn(6, 6))
    for smallest in (1e-3, 1e-5, 1e-9, 1e-11):
        values = torch.tensor([3.0, 2.0, 1.0, 0.5, 1e-2, smallest])
        found = singular_values(left * values @ right.mT).values
        np.testing.assert_allclose(found, values, rtol=1e-14 / smallest + 1e-6)
    assert roots_of_gram(np.diag([1.0, 1e-9])) is None
    np.testing.assert_allclose(roots_of_gram(np.diag([1e-6, 4.0])), [2, 1e-3])
