"""Bounds of convolutions on large images by those on small ones, against dense matrices."""

import pytest
import torch
from helpers import materialize
from torch import nn

from iresflow import norm_bound
from iresflow.lipschitz.bounds import localized
from iresflow.lipschitz.bounds.axes import Reading
from iresflow.lipschitz.bounds.banded import taps_bound
from iresflow.lipschitz.bounds.localized import localized_norm
from iresflow.lipschitz.bounds.operators import ModuleOperator
from iresflow.lipschitz.layers import linear
from iresflow.lipschitz.layers.linear import NormalizedConv2d
from iresflow.lipschitz.layers.padding import ReflectPadding

AXES = {
    "reflect": lambda n, k: Reading(n, k, before=k // 2, after=k // 2, mode="reflect"),
    "replicate": lambda n, k: Reading(n, k, before=k // 2, after=k // 2, mode="replicate"),
    "replicate, wide": lambda n, k: Reading(n, k, before=k, after=1, mode="replicate"),
    "zeros": lambda n, k: Reading(n, k, before=k // 2, after=k // 2),
    "none": lambda n, k: Reading(n, k),
}


def dense_norm(kernel, rows, columns):
    family = ModuleOperator(kernel.shape, rows, columns)
    matrix = materialize(family.operator(kernel), (kernel.shape[1], rows.size, columns.size))
    return float(torch.linalg.matrix_norm(matrix, 2))


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(localized, "RAMPS", (5, 4))


KERNELS = {
    "random": lambda: torch.randn(2, 1, 3, 3),
    "to more": lambda: torch.randn(1, 2, 3, 3),
    "mean": lambda: torch.ones(1, 1, 3, 3),
    "border": lambda: torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.1, 1.0], [0.0, 0.0, 1.0]])[
        None, None
    ],
    "difference": lambda: torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None],
}


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("mode", AXES)
@pytest.mark.parametrize("name", KERNELS)
def test_the_bound_holds_and_is_near(name, mode):
    kernel = KERNELS[name]()
    rows, columns = AXES[mode](19, 3), AXES[mode](23, 3)
    bound, norm = (
        localized_norm(kernel, rows, columns, 1e12, 1e12),
        dense_norm(kernel, rows, columns),
    )
    assert norm <= bound <= 1.25 * norm


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_one_axis_may_be_short(mode):
    kernel = torch.randn(1, 2, 3, 3)
    rows, columns = AXES[mode](6, 3), AXES[mode](40, 3)
    for axes in ((rows, columns), (columns, rows)):
        bound, norm = localized_norm(kernel, *axes, 1e12, 1e12), dense_norm(kernel, *axes)
        assert norm <= bound <= 1.25 * norm


@pytest.mark.usefixtures("narrow")
def test_sequences_and_wider_kernels():
    kernel = torch.randn(2, 3, 1, 5)
    axes = Reading(1, 1), AXES["replicate"](60, 5)
    bound, norm = localized_norm(kernel, *axes, 1e12, 1e12), dense_norm(kernel, *axes)
    assert norm <= bound <= 1.5 * norm


def test_the_windows_add_up_and_the_allowance_covers_them():
    ramp = 6.0
    pixel = torch.arange(50.0)
    turn = torch.pi / (2 * ramp)
    windows = torch.stack([turn * pixel - j * torch.pi / 2 for j in range(-1, 12)])
    windows = windows.cos() * (windows.abs() <= torch.pi / 2)
    overlaps = windows.mT @ windows
    torch.testing.assert_close(overlaps.diag(), torch.ones(50))
    apart = (pixel[:, None] - pixel).abs()
    near = apart <= ramp
    assert bool((overlaps >= (turn * apart).cos() - 1e-12)[near].all())
    assert int((windows.abs() > 1e-9).sum(1).max()) <= 2 * ramp - 1


def test_norms_of_blocks_are_those_of_the_dense_gram_matrix():
    kernel = torch.randn(2, 2, 3, 3)
    axes = [AXES["reflect"](5, 3), AXES["replicate"](5, 3)]
    rows, columns = (localized._taps(a) for a in axes)
    matrix = torch.einsum("aoy,ipx,dcai->dopcyx", rows, columns, kernel).reshape(50, 50)
    gram = (matrix.mT @ matrix).view(2, 25, 2, 25).permute(1, 3, 0, 2)
    norms = torch.linalg.matrix_norm(gram, 2).view(5, 5, 5, 5)
    for y, z, found in localized._block_norms(kernel, axes):
        exact = norms[y, :, z]
        assert bool((found >= exact - 1e-12).all())
        assert bool((found <= 2 ** (1 / 8) * exact + 1e-6).all())


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_large_images_get_tight_bounds(mode):
    layer = nn.Conv2d(16, 16, 3, padding=1, padding_mode=mode)
    bound = norm_bound(layer, (64, 48))
    assert bound.method == "localized"
    assert bound.estimate <= bound.upper <= 1.06 * bound.estimate


def test_it_is_none_where_nothing_is_gained():
    kernel = torch.randn(1, 1, 3, 3)
    small = AXES["reflect"](8, 3)
    assert localized_norm(kernel, small, small, 1e12, 1e12) is None
    large = AXES["reflect"](200, 3)
    assert localized_norm(kernel, large, large, 1.0, 1.0) is None
    whole = taps_bound(kernel, localized._taps(small), localized._taps(small))
    assert whole.upper >= dense_norm(kernel, small, small)


@pytest.mark.usefixtures("narrow")
def test_layers_with_mirrored_images_have_it_where_no_factorisation_is_affordable(monkeypatch):
    layer = NormalizedConv2d(2, 1, 3, (31, 34), padding=ReflectPadding(), coeff=0.9)
    weight = layer.normalized_weight().detach()
    exact = float(torch.linalg.matrix_norm(materialize(layer.operator(weight), (2, 31, 34)), 2))
    by_factorisation = layer.bound()
    monkeypatch.setattr(linear, "BANDED_ALWAYS", 0)
    monkeypatch.setattr(linear, "LOOSE_LIMIT", 5e6)
    monkeypatch.setattr(linear, "BANDED_LIMIT", 5e6)
    layer._raw = None
    bound = layer.bound()
    assert (by_factorisation.method, bound.method) == ("banded", "localized")
    assert bound.estimate <= exact + 1e-9 and exact <= bound.upper <= 1.25 * exact
    monkeypatch.setattr(linear, "localized_norm", lambda *given: None)
    layer._raw = None
    assert layer.bound().upper > 1.5 * exact  # what the symbol says


def test_a_large_layer_with_mirrored_images_is_held_at_its_limit():
    layer = NormalizedConv2d(16, 16, 3, (64, 48), padding=ReflectPadding(), coeff=0.9)
    layer.enforce()
    bound = layer.bound()
    assert bound.method == "localized"
    assert 0.9 / 1.06 <= bound.estimate <= bound.upper <= 0.9 * (1 + 1e-6)
