"""A layer's state: what loading, modes, copies and reading leave as it was."""

import copy
import pickle

import pytest
import torch
from helpers import materialize

from iresflow.lipschitz import (
    NORMALIZATIONS,
    CircularPadding,
    NormalizedConv2d,
    NormalizedDense,
    ZeroPadding,
)
from iresflow.lipschitz.bounds.banded import banded_bound
from iresflow.lipschitz.layers.estimates import bidiagonalization, lanczos
from iresflow.lipschitz.layers.watch import Watch

LAYERS = {
    "dense": lambda **limits: NormalizedDense(5, 7, coeff=0.9, **limits),
    "conv": lambda **limits: NormalizedConv2d(3, 4, 3, (5, 4), coeff=0.9, **limits),
    "circular": lambda **limits: NormalizedConv2d(
        4, 3, 3, (5, 4), coeff=0.9, padding=CircularPadding(), **limits
    ),
}


@pytest.fixture(params=sorted(LAYERS))
def kind(request):
    return request.param


@pytest.fixture(params=sorted(NORMALIZATIONS))
def layer(kind, request):
    layer = LAYERS[kind](normalization=NORMALIZATIONS[request.param])
    train(layer)
    return layer


def train(layer, steps=3):
    """As an optimiser does, so that the training norm lags behind the weight."""
    layer.train()
    for _ in range(steps):
        layer.normalize().sum().backward()
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))


def acting(layer):
    with torch.no_grad():
        return layer.normalized_weight().clone()


def test_modes_move_no_map_and_training_steps_none_of_eval_mode(layer):
    layer.eval()
    before, bound = acting(layer), layer.bound()
    for mode in (True, False, True):
        layer.train(mode)
        assert torch.equal(acting(layer), before)
    layer.normalize()  # a step without an update: the iteration moves, the weight does not
    with torch.no_grad():
        assert layer.bound() == bound
    assert torch.equal(layer.eval().normalized_weight(), before)


def test_what_is_enforced_stays_so(layer):
    layer.eval().enforce()
    before, bound, state = acting(layer), layer.bound(), layer.state_dict()
    assert bound.upper <= 0.9
    layer.train()
    layer.normalize()
    assert torch.equal(acting(layer.eval()), before) and layer.bound() == bound
    other = type_of(layer)
    other.load_state_dict(state)
    for one in (other.train().eval(), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(acting(one), before) and one.bound() == bound
    # In another type of float the weight's bytes differ, and it is the same weight.
    wide = copy.deepcopy(layer).float().double()
    torch.testing.assert_close(acting(wide), before, rtol=1e-6, atol=1e-7)
    assert wide.sigma == layer.sigma.float().double()


def type_of(layer):
    """A new layer of the same kind."""
    if isinstance(layer, NormalizedDense):
        return NormalizedDense(5, 7, coeff=0.9, normalization=layer.normalization)
    outputs, inputs = layer.weight.shape[:2]
    return NormalizedConv2d(
        inputs, outputs, 3, (5, 4), coeff=0.9, padding=layer.padding,
        normalization=layer.normalization,
    )  # fmt: skip


def test_a_stored_norm_is_that_of_the_weight_beside_it(layer):
    stale = layer.sigma.clone()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    assert not torch.equal(state["sigma"], stale)
    other = type_of(layer)
    other.load_state_dict(state)
    assert torch.equal(acting(other.eval()), acting(layer.eval()))
    # The control: with the norm that the buffer held, it is another map.
    other.load_state_dict({**state, "sigma": stale})
    assert not torch.equal(acting(other), acting(layer))


def test_reading_changes_no_state_and_draws_nothing(layer):
    layer.eval()
    before = {name: value.clone() for name, value in layer.named_buffers()}
    stream = torch.get_rng_state()
    layer.normalized_weight()
    layer.bounds()
    copy.deepcopy(layer).state_dict()
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in layer.named_buffers())


def test_a_bound_is_found_once(layer, monkeypatch):
    layer.eval()
    first = layer.bounds()

    def refuse(*_):
        raise AssertionError("computed again")

    for name in ("smooth_bound", "tight_bound", "adjoint"):
        monkeypatch.setattr(layer, name, refuse)
    assert layer.bounds() is first and layer.train().eval().bounds() is first
    layer.look_again()
    assert layer.bounds() is first
    layer.weight.data.mul_(2)
    with pytest.raises(AssertionError, match="computed again"):
        layer.bounds()


def test_one_entry_written_through_data_is_seen_by_those_who_look_again():
    layer = NormalizedDense(40, 60, coeff=0.9).eval()
    layer.enforce()
    layer.weight.data[17, 31] = 50
    layer.look_again()
    assert layer.bound().upper == pytest.approx(0.9, rel=1e-3)
    norm = float(torch.linalg.matrix_norm(acting(layer), ord=2))
    assert norm == pytest.approx(0.9, rel=1e-3)


@pytest.mark.parametrize("padding", [ZeroPadding(), CircularPadding()])
@pytest.mark.parametrize(
    "shape", [(2, 20, 3, (6, 5)), (20, 2, 3, (5, 6)), (1, 25, 5, (5, 7)), (2, 17, 3, (4, 4))]
)
def test_a_layer_and_its_adjoint_are_one_map_of_the_narrow_side(shape, padding):
    """The first three by products of windows, where zeros lie beyond the border."""
    inputs, outputs, side, size = shape
    layer = NormalizedConv2d(inputs, outputs, side, size, padding=padding, coeff=0.9)
    weight = layer.weight.detach()
    matrix = materialize(layer.operator(weight), (inputs, *size))
    for domain, channels, expected in (
        (True, inputs, matrix.mT @ matrix),
        (False, outputs, matrix @ matrix.mT),
    ):
        found = materialize(layer.gram(weight, domain), (channels, *size))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [(6, 2, 3, 9), (2, 6, 3, 9), (5, 5, 1, 4), (2, 18, 3, 5), (20, 2, 3, 5)]
)
def test_lanczos_settles_on_the_norm_from_below(shape):
    inputs, outputs, side, pixels = shape
    layer = NormalizedConv2d(inputs, outputs, side, (pixels, pixels), coeff=0.9)
    weight = layer.weight.detach()
    matrix = materialize(layer.operator(weight), (inputs, pixels, pixels))
    norm = float(torch.linalg.matrix_norm(matrix, ord=2))
    left = layer.left.clone()
    estimate = float(lanczos(layer, weight, left))
    assert norm * (1 - 1e-3) <= estimate <= norm * (1 + 1e-12)
    # From where it ended, it ends where it is.
    assert float(lanczos(layer, weight, left)) >= estimate * (1 - 1e-12)


def test_lanczos_keeps_its_basis_orthogonal_in_float32():
    torch.set_default_dtype(torch.float32)
    layer = NormalizedConv2d(16, 32, 3, (14, 14), coeff=0.9)
    bound = banded_bound(layer.weight, (14, 14), 1, ZeroPadding())
    estimate = float(lanczos(layer, layer.weight, layer.left.clone()))
    assert 0.997 * bound.estimate <= estimate <= bound.upper


@pytest.mark.parametrize("kind", ["any", "of rank one", "orthogonal", "float32"])
def test_bidiagonalization_is_exact_where_its_vectors_span_the_domain(kind):
    if kind == "float32":
        torch.set_default_dtype(torch.float32)
    layer = NormalizedDense(6, 9, coeff=0.9)
    with torch.no_grad():
        if kind == "of rank one":
            layer.weight.copy_(torch.outer(torch.randn(9), torch.randn(6)))
        if kind == "orthogonal":
            layer.weight.copy_(torch.linalg.qr(torch.randn(9, 6))[0])
        layer.left.copy_(torch.nn.functional.normalize(torch.randn(9), dim=0))
    norm = torch.linalg.matrix_norm(layer.weight.detach(), ord=2)
    estimate = bidiagonalization(layer, layer.weight, layer.left).detach()
    torch.testing.assert_close(estimate, norm, rtol=1e-8 if kind != "float32" else 1e-5, atol=0)


def test_bidiagonalization_follows_a_weight_that_moves_closer_than_power_iteration():
    """As an optimiser moves it: all entries by as much, in directions that change slowly."""
    layer = NormalizedConv2d(6, 8, 3, (7, 7), coeff=0.9)
    weight, direction = layer.weight.detach().clone(), torch.zeros_like(layer.weight)
    lefts = {name: layer.left.clone() for name in ("bidiagonalization", "power-iteration")}
    lags = {name: [] for name in lefts}
    for _ in range(40):
        direction = 0.9 * direction + torch.randn_like(weight)
        weight += 0.01 * direction.sign()
        norm = float(torch.linalg.matrix_norm(materialize(layer.operator(weight), (6, 7, 7)), 2))
        for name, left in lefts.items():
            estimate = float(NORMALIZATIONS[name].norm(layer, weight, left))
            assert estimate <= norm * (1 + 1e-12)
            lags[name].append(1 - estimate / norm)
    lag, control = (sum(values) for values in lags.values())
    assert 0 < 4 * lag < control


def test_settled_norms_are_the_same_under_any_transform():
    layers = [NormalizedConv2d(3, 4, 3, (5, 4), coeff=0.9).eval() for _ in range(4)]
    for other in layers[1:]:
        other.load_state_dict(layers[0].state_dict())
        other._owner = None  # as after an optimiser's step
    expected = acting(layers[0])
    with torch.inference_mode():
        layers[1].bound()
    torch.func.vmap(lambda x: layers[2](x))(torch.randn(2, 1, 3, 5, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layers[3].bound()
    for other in layers[1:]:
        torch.testing.assert_close(acting(other), expected, rtol=1e-12, atol=0)
        other(torch.randn(1, 3, 5, 4)).sum().backward()


def test_watches_see_versions_entries_and_copies():
    weight = torch.randn(30, 30)
    watch = Watch(weight)
    assert watch.unchanged(weight) and watch.unchanged(weight.clone())
    weight.add_(0)
    assert watch.unchanged(weight)
    weight.data[0, 0] += 1
    assert not watch.unchanged(weight)
    holes = torch.full((5,), torch.nan)
    assert Watch(holes).unchanged(holes)
    assert Watch(weight).unchanged(torch.nn.Parameter(weight.clone()))
