import itertools
import math
from dataclasses import replace

import pytest
import torch
from layers_of_torch import draw, matrix_of, spectral
from torch import nn
from torch.nn.utils import prune

import iresflow
from iresflow import constrain
from iresflow.lipschitz.bounds.modules import norm_bound, operator_of

# What PyTorch says of its own speed.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def drawn(seed):
    """The first layer from a seed on that PyTorch takes, and its matrix; we refuse the others."""
    for attempt in itertools.count(seed, 1000):
        module, size, channels = draw(attempt)
        try:
            return module, size, matrix_of(module, size, channels)
        except RuntimeError:  # the image is too small
            with pytest.raises(ValueError, match=type(module).__name__):
                norm_bound(module, size)


@pytest.mark.parametrize("seed", range(100))
def test_bounds_of_random_layers_are_never_below_the_norm(seed):
    module, size, matrix = drawn(seed)
    norm = spectral(matrix)
    bound = norm_bound(module, size)
    assert bound.estimate <= norm * (1 + 1e-12) and norm <= bound.upper <= norm * (1 + 1e-9)
    # Both other methods, which large images take.
    operator = operator_of(module, size)
    weight = module.weight.detach()
    kernels = operator.kernels(weight)
    assert norm <= float(operator.smooth_bound(weight))
    banded = [
        operator.banded(kernel, *block, math.inf, lambda: 0.0)
        for kernel in kernels
        for block in operator.blocks
    ]
    assert norm * (1 - 1e-12) <= max((b.upper for b in banded), default=0.0) <= norm * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(40))
def test_operators_and_gradients_are_those_of_the_layer(seed):
    module, size, matrix = drawn(seed)
    operator, weight = operator_of(module, size), module.weight
    nn.init.normal_(weight)
    u = torch.randn(2, *operator.start(weight).shape)
    x = torch.randn(2, *operator.adjoint(weight)(u).shape[1:], requires_grad=True)
    y = module(x if len(size) == 2 else x.squeeze(2))
    torch.testing.assert_close(operator.operator(weight)(x).view_as(y), y)
    expected = torch.autograd.grad((u.view_as(y) * y).sum(), (x, weight))
    torch.testing.assert_close(operator.adjoint(weight)(u), expected[0])
    torch.testing.assert_close(operator.weight_gradient(x.detach(), u), expected[1])


# The looser of the two bounds, on images of middling size.
@pytest.mark.parametrize(
    ("mode", "options", "looseness"),
    [
        ("zeros", {}, 0.02),
        ("zeros", {"stride": 2}, 0.02),
        ("zeros", {"dilation": 2}, 0.05),
        ("zeros", {"stride": 2, "dilation": 3}, 0.1),
        ("circular", {}, 1e-9),
        ("circular", {"stride": 2}, 1e-9),
        ("circular", {"dilation": 3}, 1e-9),
        ("reflect", {}, 1.0),
        ("replicate", {}, 1.0),
    ],
)
def test_how_loose_the_symbol_is(mode, options, looseness):
    dilation = options.get("dilation", 1)
    module = nn.Conv2d(3, 4, 3, padding=dilation, padding_mode=mode, bias=False, **options)
    norm = spectral(matrix_of(module, (12, 18), 3))
    upper = float(operator_of(module, (12, 18)).smooth_bound(module.weight.detach()))
    assert norm <= upper <= norm * (1 + looseness)


def test_a_circle_that_is_shorter_bounds_nothing():
    # A control: one pixel less, and taps wrap round onto the image.
    below = 0
    for seed in range(30):
        torch.manual_seed(seed)
        module = nn.Conv1d(2, 2, 3, stride=1 + seed % 2, padding=1, dilation=3, bias=False)
        operator, weight = operator_of(module, 7), module.weight.detach()
        norm = spectral(matrix_of(module, (7,), 2))
        assert norm <= float(operator.smooth_bound(weight))
        rows, columns = operator.rows.spectrum(), operator.columns.spectrum()
        short = replace(columns, size=columns.size - 1)
        vars(operator)["_spectra"] = (rows, short)
        below += float(operator.smooth_bound(weight)) < norm
    assert below > 0


def test_a_large_image_says_that_its_bound_is_loose():
    module = nn.Conv2d(64, 64, 5, padding=2, padding_mode="replicate", bias=False).float()
    bound = norm_bound(module, 40)
    assert bound.method == "extended" and bound.estimate < bound.upper <= 3.1 * bound.estimate
    module = nn.Conv2d(64, 64, 3, padding=1, bias=False).float()
    bound = norm_bound(module, 40)
    assert bound.method == "fourier" and bound.estimate < bound.upper <= 1.01 * bound.estimate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bound_is_of_the_weight_as_stored(dtype):
    module = nn.Linear(20, 30).to(dtype)
    norm = spectral(module.weight.detach().double())
    bound = norm_bound(module)
    assert norm <= bound.upper <= norm * (1 + 1e-12)


def test_a_dilated_convolution_is_that_of_its_sub_grids():
    plain = nn.Conv2d(2, 3, 3, padding=1)
    dilated = nn.Conv2d(2, 3, 3, padding=4, dilation=4)
    dilated.weight = plain.weight
    one, other = norm_bound(plain, (7, 5)), norm_bound(dilated, (28, 20))
    assert other.upper == pytest.approx(one.upper, rel=1e-13)
    assert other.method == "gram"  # small parts, though the image is large


def test_groups_need_the_norm_of_the_largest_only(monkeypatch):
    module = nn.Conv2d(32, 32, 3, padding=1, groups=32)
    module.weight.data[5] *= 100
    calls = []
    kind = type(operator_of(module, 8))
    refined = kind._bound
    monkeypatch.setattr(kind, "_bound", lambda *a: calls.append(1) or refined(*a))
    alone = nn.Conv2d(1, 1, 3, padding=1)
    alone.weight.data = module.weight.data[5:6]
    assert norm_bound(module, 8) == norm_bound(alone, 8) and len(calls) == 2


def test_a_long_sequence():
    module = nn.Conv1d(4, 6, 9, stride=4, padding=4, dilation=2)
    bound = norm_bound(module, 16_000)
    assert bound.method == "fourier" and bound.estimate <= bound.upper <= 1.001 * bound.estimate


def test_a_layer_that_reads_no_pixel_has_norm_0():
    # One output, whose taps lie beyond the border on either side.
    module = nn.Conv1d(1, 1, 2, padding=3, dilation=6, bias=False)
    assert torch.equal(matrix_of(module, (1,), 1), torch.zeros(1, 1))
    assert norm_bound(module, 1).upper == 0


class Masked(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "size", "message"),
    [
        (nn.Conv3d(1, 1, 3), (5, 5, 5), "Conv3d.*nn.Linear, nn.Conv1d, nn.Conv2d"),
        (nn.Sequential(nn.Linear(2, 2)), None, "no bound is known of Sequential"),
        (Masked(1, 1, 3), (5, 5), "Masked.*keeps their forward pass"),
        (nn.Bilinear(2, 2, 2), None, "Bilinear"),
        (nn.LazyLinear(3), None, "no weight before its first call"),
        (nn.Linear(2, 2, dtype=torch.complex64), None, "complex64"),
        (nn.Conv2d(1, 1, 3), None, r"\(height, width\) of its input, got None"),
        (nn.Conv2d(1, 1, 3), (5,), r"got \(5,\)"),
        (nn.Conv2d(1, 1, 3), (5, 0), r"got \(5, 0\)"),
        (nn.Conv2d(1, 1, 3), (5, 4.5), r"got \(5, 4.5\)"),
        (nn.Conv2d(1, 1, 3), "55", "got '55'"),
        (nn.Conv1d(1, 1, 3), (5, 5), "the length of its input"),
        (nn.Conv2d(1, 1, 3), (5, 2), "2 pixels.* too few for 3 taps"),
        (nn.Conv2d(1, 1, 7, padding=3, padding_mode="reflect"), 3, "reflect padding by 3"),
    ],
)
def test_what_has_no_bound_is_refused(module, size, message):
    with pytest.raises(ValueError, match=message):
        norm_bound(module, size)


def test_weights_without_entries_are_refused():
    module = nn.Linear(2, 1)
    module.weight = nn.Parameter(torch.empty(0, 2))
    with pytest.raises(ValueError, match=r"without entries, of shape \(0, 2\)"):
        norm_bound(module)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value):
    module = nn.Conv2d(1, 2, 3)
    module.weight.data[1, 0, 2, 2] = value
    with pytest.raises(ValueError, match="Conv2d has weights that are NaN or infinite"):
        norm_bound(module, (5, 5))


def test_sizes_may_be_numbers_of_any_library():
    numpy = pytest.importorskip("numpy")
    module = nn.Conv2d(1, 2, 3)
    expected = iresflow.norm_bound(module, (6, 6))
    assert iresflow.norm_bound(module, numpy.int64(6)) == expected
    assert iresflow.norm_bound(module, numpy.array([6, 6])) == expected
    assert iresflow.norm_bound(module, torch.Size((6, 6))) == expected


def pruned(module):
    return prune.l1_unstructured(module, "weight", 2)


@pytest.mark.parametrize("hook", [pruned, nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_a_hook_makes_in_each_call_are_refused(hook):
    """What they hold is of the call before: after a step of an optimiser it is outdated."""
    layer = hook(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="hook makes the weight of Linear"):
        norm_bound(layer)
    with pytest.raises(ValueError, match="hook"):
        constrain(layer, 0.9)
    watched = nn.Linear(3, 3)
    watched.register_forward_pre_hook(lambda module, given: None)
    norm = float(torch.linalg.matrix_norm(watched.weight.detach(), 2))
    assert norm <= norm_bound(watched).upper <= norm * (1 + 1e-9)


def test_a_pruned_layer_has_a_bound_once_it_is_made_permanent():
    layer = prune.remove(pruned(nn.Linear(4, 4)), "weight")
    norm = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
    assert norm <= norm_bound(layer).upper <= norm * (1 + 1e-9)


def test_a_shape_without_numbers_is_refused():
    with pytest.raises(ValueError, match="meta"):
        norm_bound(nn.Linear(3, 3, device="meta"))
