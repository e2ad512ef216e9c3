"""Sensitivity maps against finite differences, and on networks whose maps are known."""

from functools import cache

import numpy as np
import pytest
import torch
from small_spectra import small_spectra
from torch import nn

from iresflow.spectra import IsotopeNet, SensitivityMap, sensitivity_map


@cache
def trained():
    data = small_spectra()
    model = IsotopeNet(
        grid=data.grid, epochs=15, batch_size=16, learning_rate=5e-3, random_state=0
    )
    return model.fit(data.X, data.y), data


@pytest.fixture
def fitted():
    return trained()  # not when the module is read, but in the type of the tests


def test_a_map_is_the_mean_of_finite_differences(fitted):
    model, data = fitted
    X, step = data.X[:7] + 0.5, 1e-5
    found = sensitivity_map(model, X, "squamous")

    def score(spectra):
        # Of two classes, half of what the second logit exceeds the first by.
        return model.decision_function(spectra) / 2

    for place in (3, 11, 30, 47):
        moved = np.zeros(60)
        moved[place] = step
        slopes = (score(X + moved) - score(X - moved)) / (2 * step)
        assert found.values[place] == pytest.approx(slopes.mean(), rel=1e-4, abs=1e-9)
        error = slopes.std(ddof=1) / 7**0.5
        assert found.errors[place] == pytest.approx(error, rel=1e-3, abs=1e-7)
    assert found.spectra == 7 and np.array_equal(found.masses, data.grid)


def test_scores_of_classes_sum_to_zero(fitted):
    model, data = fitted
    maps = [sensitivity_map(model, data.X, label).values for label in model.classes_]
    assert maps[0] == pytest.approx(-maps[1], abs=1e-12)


def test_a_trained_network_uses_the_masses_that_differ(fitted):
    model, data = fitted
    found = sensitivity_map(model, data.X, "squamous")
    grid = data.grid
    # Squamous spectra are higher at 1015 Da and lower at 1005 Da.
    assert found.values[np.abs(grid - 1015) < 1].mean() > 0
    assert found.values[np.abs(grid - 1005) < 1].mean() < 0
    size = np.abs(found.values)
    marked = (np.abs(grid - 1015) < 2) | (np.abs(grid - 1005) < 2)
    assert size[marked].mean() > 2 * size[grid > 1022].mean()


class Linear(nn.Module):
    """Logits that are linear in the spectra."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x @ self.weight.T + torch.randn(1)


def test_the_map_of_a_linear_network_is_its_centred_weights(fitted):
    model, data = fitted
    weight = torch.randn(2, 60)
    model.network_ = Linear(weight)
    found = sensitivity_map(model, data.X, "adeno")
    assert found.values == pytest.approx((weight[0] - weight.mean(0)).numpy())
    assert found.errors == pytest.approx(0, abs=1e-7)
    assert np.isnan(sensitivity_map(model, data.X[:1], "adeno").errors).all()


def test_peaks_are_named():
    masses = np.arange(1000.0, 1020.0, 0.25)
    values = np.zeros(80)
    values[[0, 20, 40, 79]] = [0.3, -2.0, 1.0, 0.5]  # 1000, 1005, 1010 and 1019.75 Da
    values[41] = 0.4  # on the side of a peak
    found = SensitivityMap("a", masses, values, np.zeros(80), 5).peaks(
        3, {"light": 1002.9, "heavy": 1009.8, "far": 1500.0}, tolerance=0.3, isotopes=2
    )
    assert [peak.mass for peak in found] == [1005.0, 1010.0, 1019.75]
    assert [peak.value for peak in found] == [-2.0, 1.0, 0.5]
    assert [peak.name for peak in found] == ["light", "heavy", ""]  # its second isotope peak
    whole = SensitivityMap("a", masses, values, np.zeros(80), 5)
    assert len(whole.peaks(50)) == 4 and whole.peaks(1)[0].name == ""
    with pytest.raises(ValueError, match="count must be a whole number of 1 or more, got 0"):
        whole.peaks(0)


def test_bad_input_is_refused(fitted):
    model, data = fitted
    with pytest.raises(ValueError, match="no class 'other'; there are adeno, squamous"):
        sensitivity_map(model, data.X, "other")
    with pytest.raises(ValueError, match="X has 59 features"):
        sensitivity_map(model, data.X[:, 1:], "adeno")
    model.set_params(grid=None).grid_ = None
    with pytest.raises(ValueError, match="needs the masses of the bins"):
        sensitivity_map(model, data.X, "adeno")
    with pytest.raises(ValueError, match="the grid has 59 masses"):
        sensitivity_map(model, data.X, "adeno", data.grid[1:])
