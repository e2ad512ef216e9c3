"""Networks on spectra: their sizes, what they see, and their layers against written-out ones."""

import numpy as np
import pytest
import torch
from helpers import materialize
from torch import nn

from iresflow.spectra import (
    BinFilters,
    IsotopeNetwork,
    PhysicalFilters,
    ResidualNetwork,
    count_parameters,
    receptive_field,
    suggest_architecture,
)
from iresflow.spectra.networks.layers import (
    LocallyConnected,
    ResidualLayer,
    convolution,
    dropped,
    shifted,
)
from iresflow.spectra.networks.residual import residual_plan
from iresflow.streams import PartialStream

BINS = 27_286  # of the thesis


def thesis_grid():
    """Bins of equal flight time, as wide on average as the thesis' (figure 7.4)."""
    return np.linspace(600**0.5, 5050**0.5, BINS) ** 2


def test_isotope_net_has_the_parameters_of_the_thesis():
    convolutions = {
        "first": 3 * 8 + 3 * 8 * 8 + 8,  # two kernels of 3 and a shortcut, without biases
        "second": 2 * 3 * 8 * 8 + 8 * 8,
        "third": 2 * 3 * 8 * 8,
        "fourth": 3 * 8 + 3 + 8,
    }
    normalised = 2 * 2 * (8 + 8 + 8 + 1)  # two numbers a map, twice a layer
    length = 1820  # 27,286 / 5 / 3, rounded up
    local, read_out = 5 * length + 2, 2 * length + 2
    whole = sum(convolutions.values()) + normalised + local + read_out
    assert count_parameters(IsotopeNetwork(BINS, 2)) == whole == 13_935
    # Filters in daltons are as many, with the mean width of a bin and the same mean stride.
    daltons = IsotopeNetwork(BINS, 2, thesis_grid(), PhysicalFilters())
    assert count_parameters(daltons) == 13_935
    # With table 7.2's kernel of 3, each of the 1,820 places has two weights less.
    smaller = IsotopeNetwork(BINS, 2, local_kernel=3)
    assert count_parameters(smaller) == 13_935 - 2 * length


def test_residual_net_has_the_parameters_of_the_thesis():
    plan = residual_plan(BINS)
    assert [maps for maps, _ in plan] == [16, 32, 32, 64, 64, *[128] * 9, 256]
    assert [stride for _, stride in plan] == [1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 3]
    assert count_parameters(ResidualNetwork(BINS, 2)) == 2_132_130
    assert residual_plan(2) == [(256, 3)]


def field_by_gradient(module, bins):
    """From the first to the last input that one output in the middle depends on."""
    module.eval()
    seen = torch.zeros(bins, dtype=torch.bool)
    for _ in range(60):  # ReLU hides some inputs at some points
        x = torch.randn(1, module_inputs(module), bins, requires_grad=True)
        y = module(x)
        (gradient,) = torch.autograd.grad(y[0, :, y.shape[2] // 2].sum(), x)
        seen |= gradient[0].abs().sum(0) > 0
    places = seen.nonzero().flatten()
    return int(places[-1] - places[0]) + 1


def module_inputs(module):
    return next(m.in_channels for m in module.modules() if isinstance(m, nn.Conv1d))


def perturbed(module):
    """Shifts normalised values, so that ReLU is open at most places."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            nn.init.constant_(part.bias, 0.5)
    return module


@pytest.mark.parametrize(
    ("filters", "bins", "expected"),
    [
        (BinFilters(), 49, 150),
        (BinFilters((1, 2, 1, 2)), 25, 100),
        (BinFilters((1, 5, 1, 1, 3), (8, 8, 8, 8, 1)), 69, 210),
        (BinFilters((2, 3), (4, 1), kernel_size=5), 25, 100),
    ],
)
def test_receptive_fields_are_what_gradients_reach(filters, bins, expected):
    layers, _ = filters.convolutions(expected, None)
    assert receptive_field(layers) == field_by_gradient(perturbed(layers), expected) == bins


def test_the_43_bins_of_the_thesis_begin_at_the_first_stride():
    layers = perturbed(IsotopeNetwork(BINS, 2).convolutions)
    assert receptive_field(layers) == 49
    strided = nn.Sequential(layers[1].branch[4], layers[2], layers[3])
    assert strided[0].stride == (5,)
    assert receptive_field(strided) == field_by_gradient(strided, 150) == 43


def test_residual_nets_see_by_their_own_layers():
    layers = perturbed(ResidualNetwork(40, 2).convolutions)
    assert receptive_field(layers) == field_by_gradient(layers, 120) == 41


def test_what_has_no_receptive_field_is_refused():
    with pytest.raises(ValueError, match="a Linear has no receptive field in bins"):
        receptive_field(nn.Sequential(nn.Conv1d(1, 1, 3), nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="fitted estimator with one is needed, got a int"):
        receptive_field(43)
    grid = np.linspace(500.0, 520.0, 100)
    network = IsotopeNetwork(100, 2, grid, PhysicalFilters())
    with pytest.raises(ValueError, match="PhysicalConvolution has no receptive field in bins"):
        receptive_field(network)


def test_the_thesis_architecture_is_suggested_for_the_thesis_grid():
    found = suggest_architecture(thesis_grid())
    assert found.filters == BinFilters()
    assert found.bins_per_peak == pytest.approx(6.13, abs=0.02)
    assert found.largest_pattern <= 43 <= found.receptive_field == 49


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25, 0.4])
def test_a_suggestion_covers_the_largest_pattern(width):
    grid = np.arange(800.0, 3000.0, width)
    found = suggest_architecture(grid)
    assert found.receptive_field >= found.largest_pattern
    layers, length = found.filters.convolutions(len(grid), None)
    assert receptive_field(layers) == found.receptive_field
    # One layer less would not do, unless it is the least that there is.
    strides = found.filters.strides
    if len(strides) > 4:
        less = BinFilters((*strides[:2], *strides[3:]), found.filters.maps[1:])
        assert receptive_field(less.convolutions(100, None)[0]) < found.largest_pattern
    assert length == layers(torch.zeros(1, 1, len(grid))).shape[2]


def test_grids_without_isotope_patterns_are_refused():
    with pytest.raises(ValueError, match="bins are 3 Da wide on average"):
        suggest_architecture(np.arange(1000.0, 4000.0, 3))
    with pytest.raises(ValueError, match="no isotope pattern fits"):
        suggest_architecture(np.linspace(1000.0, 1001.0, 50))
    with pytest.raises(ValueError, match="peak_width must be"):
        suggest_architecture(thesis_grid(), peak_width=0.0)


@pytest.mark.parametrize("bins", [1, 2, 7, 15, 16, 31, 100])
def test_any_number_of_bins_and_classes(bins):
    x = torch.rand(3, bins)
    for network in (IsotopeNetwork(bins, 4), ResidualNetwork(bins, 4)):
        assert network.eval()(x).shape == (3, 4)


def test_a_local_layer_is_a_banded_matrix():
    layer = LocallyConnected(7, 3)
    matrix = materialize(layer, (7,))
    expected = torch.zeros(7, 7)
    for row in range(7):
        for offset in (-1, 0, 1):
            if 0 <= row + offset < 7:
                expected[row, row + offset] = layer.weight[row, offset + 1]
    assert torch.equal(matrix, expected)
    with pytest.raises(ValueError, match="odd, got 4"):
        LocallyConnected(7, 4)


def test_a_local_layer_of_equal_weights_is_a_convolution():
    layer = LocallyConnected(9, 5)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:1].expand(9, 5))
    x = torch.randn(2, 9)
    shared = torch.nn.functional.conv1d(x[:, None], layer.weight[:1, None], padding=2)[:, 0]
    assert torch.allclose(layer(x), shared, atol=1e-12)


def test_a_residual_layer_is_the_sum():
    branch, shortcut = convolution(2, 3, 3, 2), convolution(2, 3, 1, 2)
    x = torch.randn(2, 2, 9)
    layer = ResidualLayer(branch, shortcut)
    assert torch.equal(layer(x), branch(x) + shortcut(x)) and layer(x).shape == (2, 3, 5)


def test_dropout_keeps_the_mean_and_repeats_in_parts():
    x = torch.ones(400, 100)
    stream = torch.Generator().manual_seed(1)
    found = dropped(x, 0.3, stream)
    assert set(found.unique().tolist()) == {0.0, 1 / 0.7}
    lost = (found == 0).double().mean()
    error = (0.3 * 0.7 / x.numel()) ** 0.5
    assert abs(lost - 0.3) < 4 * error
    assert abs(lost - 0.32) > 4 * error  # the control
    parts = [
        dropped(x[a:b], 0.3, PartialStream(torch.Generator().manual_seed(1), 400, a))
        for a, b in ((0, 150), (150, 400))
    ]
    assert torch.equal(torch.cat(parts), found)
    assert dropped(x, 0.3, None) is x


def test_shifts_are_normal_and_interpolate_and_repeat_in_parts():
    ramp = torch.arange(200.0).expand(500, 200)
    stream = torch.Generator().manual_seed(1)
    by = shifted(ramp, 2.0, stream)[:, 100] - 100  # a ramp says where it was read
    error = 2 / (2 * len(by)) ** 0.5
    assert abs(by.mean()) < 4 * 2 / len(by) ** 0.5
    assert abs(by.std() - 2) < 4 * error < abs(by.std() - 1.6)  # and the control
    x = torch.rand(500, 200)
    found = shifted(x, 2.0, torch.Generator().manual_seed(1))
    places = np.arange(200)
    expected = [np.interp(places + b, places, row) for b, row in zip(by.tolist(), x, strict=True)]
    assert found.numpy() == pytest.approx(np.stack(expected), abs=1e-9)
    parts = [
        shifted(x[a:b], 2.0, PartialStream(torch.Generator().manual_seed(1), 500, a))
        for a, b in ((0, 150), (150, 500))
    ]
    assert torch.equal(torch.cat(parts), found)
    assert shifted(x, 0.0, stream) is x


def test_wrong_numbers_are_refused():
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
            IsotopeNetwork(50, 2, dropout=dropout)
    with pytest.raises(ValueError, match="a stride and a number of maps"):
        BinFilters((1, 2), (8, 8, 1))
    with pytest.raises(ValueError, match="the last map is one alone"):
        BinFilters((1, 2), (8, 8))
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        BinFilters(kernel_size=4)
    for wrong in ({"kernel_size": 3.0}, {"strides": (1, 2.5), "maps": (8, 1)}):
        with pytest.raises(ValueError, match=r"must be a whole number of 1 or more, got [23]\."):
            BinFilters(**wrong)
    with pytest.raises(ValueError, match="spacing must be a finite number above 0"):
        PhysicalFilters(spacing=0.0)
    with pytest.raises(ValueError, match="must be a whole number of 1 or more"):
        PhysicalFilters(stride=0)
    with pytest.raises(ValueError, match="need the masses of the bins"):
        IsotopeNetwork(50, 2, filters=PhysicalFilters())
