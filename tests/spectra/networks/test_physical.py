"""Filters of a width in daltons against integrals, and on grids of other bins."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from iresflow.spectra import (
    IsotopeNetwork,
    PhysicalConvolution,
    PhysicalFilters,
    bin_edges,
    equidistant_grid,
)


def uneven_grid(bins=40, low=500.0, high=512.0):
    return np.linspace(low**0.5, high**0.5, bins) ** 2 + 0.02 * np.sin(np.arange(bins))


def test_a_filter_is_the_integral_of_its_kernel_over_the_spectrum():
    grid, masses, spacing = uneven_grid(), np.array([499.9, 503.3, 507.0, 511.8]), 0.7
    layer = PhysicalConvolution(2, 3, grid, masses, spacing, knots=5)
    x = torch.rand(1, 2, len(grid))
    edges = bin_edges(grid)
    weight = layer.weight.detach().numpy()

    def area(mass, own, low, high):
        """Of the kernel between two masses."""

        def kernel(m):
            return np.maximum(0, 1 - np.abs((m - mass) / spacing - np.arange(-2, 3))) @ own

        return quad(kernel, low, high)[0]

    found = layer(x)[0].detach().numpy()
    for place, mass in enumerate(masses):
        # Breaks of the integrand: the bins' edges and the kernel's knots.
        knots = mass + spacing * np.arange(-3, 4)
        breaks = np.unique(np.concatenate([edges, knots]))
        inside = (breaks >= max(edges[0], knots[0])) & (breaks <= min(edges[-1], knots[-1]))
        breaks = breaks[inside]
        for row in range(3):
            total = 0.0
            for low, high in zip(breaks[:-1], breaks[1:], strict=True):
                column = np.searchsorted(edges, (low + high) / 2) - 1
                for channel in range(2):
                    part = area(mass, weight[row, channel], low, high)
                    total += float(x[0, channel, column]) * part
            assert found[row, place] == pytest.approx(total / spacing, abs=1e-10)


def test_on_an_even_grid_with_knots_at_the_bins_filters_shift_with_the_spectrum():
    grid = np.arange(500.0, 520.0, 0.25)
    layer = PhysicalConvolution(1, 2, grid, grid, 0.5)
    x = torch.zeros(1, 1, len(grid))
    x[..., 30] = 1
    shifted = torch.roll(x, 7, 2)
    assert torch.allclose(torch.roll(layer(x), 7, 2), layer(shifted), atol=1e-12)


def test_a_peak_looks_alike_where_bins_are_narrow_and_where_they_are_wide():
    # Time of flight: bins at the upper end are two and a half times as wide as at the lower end.
    grid = np.linspace(500**0.5, 4500**0.5, 40_000) ** 2
    masses, edges = np.array([600.0, 4000.0]), bin_edges(grid)
    places = [int(np.abs(grid - mass).argmin()) for mass in masses]
    areas = sum(np.diff(norm.cdf(edges, grid[place], 0.2)) for place in places)
    x = torch.from_numpy(areas / np.diff(edges))[None, None]
    layer = PhysicalConvolution(1, 1, grid, grid[places], 0.3)
    plain = torch.nn.Conv1d(1, 1, 3, padding=1, bias=False)
    finds_peaks = torch.tensor([[[-1.0, 2.0, -1.0]]])
    with torch.no_grad():
        layer.weight.copy_(finds_peaks)
        plain.weight.copy_(finds_peaks)
        light, heavy = layer(x)[0, 0]
        narrow, wide = plain(x)[0, 0, places]
    assert float(heavy) == pytest.approx(float(light), rel=0.08)
    assert wide > 4 * narrow  # the control: over bins, the same filter sees two kinds of peaks


def test_a_filter_of_ones_gives_the_mean_of_a_constant_spectrum():
    grid = uneven_grid()
    layer = PhysicalConvolution(1, 1, grid, grid[10:30], 0.4)
    with torch.no_grad():
        layer.weight.fill_(1)
    assert torch.allclose(layer(torch.ones(1, 1, len(grid))), torch.tensor(3.0), atol=1e-10)


def test_gradients_reach_inputs_and_weights():
    grid = uneven_grid(12)
    layer = PhysicalConvolution(2, 2, grid, grid[::3], 1.0)
    x = torch.randn(2, 2, 12, requires_grad=True)

    def function(x, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(function, (x, layer.weight))


def test_state_is_the_weights_alone():
    grid = uneven_grid()
    layer = PhysicalConvolution(1, 2, grid, grid, 0.3)
    assert list(layer.state_dict()) == ["weight"]
    other = PhysicalConvolution(1, 2, grid, grid, 0.3)
    other.load_state_dict(layer.state_dict())
    x = torch.rand(1, 1, len(grid))
    assert torch.equal(layer(x), other(x))
    narrow = PhysicalConvolution(1, 2, grid, grid, 0.3).to(torch.float32)
    assert narrow(x.float()).dtype == torch.float32


def test_networks_with_physical_filters_reduce_to_equal_distances():
    grid = uneven_grid(200, 500, 550)
    network = IsotopeNetwork(200, 3, grid, PhysicalFilters(distance=1.0, stride=2))
    edges = bin_edges(grid)
    masses = equidistant_grid(edges[0], edges[-1], 1.0)
    assert network.local[0].weight.shape[0] == -(-len(masses) // 2)
    assert network(torch.rand(4, 200)).shape == (4, 3)


def test_bad_arguments_are_refused():
    grid = uneven_grid()
    with pytest.raises(ValueError, match="odd number of knots, got 2"):
        PhysicalConvolution(1, 1, grid, grid, 1.0, knots=2)
    with pytest.raises(ValueError, match="spacing must be a finite number above 0"):
        PhysicalConvolution(1, 1, grid, grid, np.nan)
    with pytest.raises(ValueError, match="bins of 9.0 Da leave 1 of them"):
        IsotopeNetwork(40, 2, grid, PhysicalFilters(distance=9.0))
