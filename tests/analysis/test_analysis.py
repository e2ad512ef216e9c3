import math

import numpy as np
import pytest
import torch
from helpers import (
    dense_jacobian,
    materialize,
    perturb,
    random_context,
    small_image_flow,
    small_vector_flow,
)

from iresflow import PowerSeries
from iresflow.analysis.estimators import EstimatorFamily, estimator_curves
from iresflow.analysis.inversion import inversion_curve, with_coefficient
from iresflow.analysis.norms import block_norms, largest_singular_value, layer_norms
from iresflow.lipschitz import NormalizedConv2d, NormalizedDense

FLOWS = {
    "image": lambda: small_image_flow(factor_out=True),
    "image-conditional": lambda: small_image_flow(context_dim=3),
    "vector": small_vector_flow,
}


@pytest.fixture(params=sorted(FLOWS))
def flow(request):
    flow = perturb(FLOWS[request.param](), 0.3)
    flow.enforce()
    return flow


# Singular values.

LAYERS = {
    "dense": (lambda: NormalizedDense(7, 4, coeff=0.9), (7,)),
    "conv": (lambda: NormalizedConv2d(2, 3, 3, (5, 4), coeff=0.9), (2, 5, 4)),
    "conv-strided": (lambda: NormalizedConv2d(2, 3, 3, (5, 4), stride=2, coeff=0.9), (2, 5, 4)),
    "conv-pointwise": (lambda: NormalizedConv2d(2, 3, 1, (5, 4), coeff=0.9), (2, 5, 4)),
}


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_lanczos_finds_the_largest_singular_value(kind):
    make, shape = LAYERS[kind]
    layer = perturb(make(), 1.0)
    matrix = materialize(layer.operator(layer.normalized_weight()), shape).detach()
    true = float(torch.linalg.svdvals(matrix)[0])
    assert largest_singular_value(layer) == pytest.approx(true, rel=1e-10)
    assert largest_singular_value(layer, steps=1) < 0.99 * true  # what too few steps give


def test_norms_of_blocks_are_those_of_their_dense_jacobians(flow):
    x, context = flow.sample(3, random_context(flow, 3)), random_context(flow, 3)
    found = block_norms(flow, x, context, steps=400)
    few = block_norms(flow, x, context, steps=2)
    y, expected = flow.data_map.transform(x), []

    def measure(block, arguments):
        (point, given) = (*arguments, None)[:2]
        expected.append(
            torch.linalg.svdvals(dense_jacobian(lambda h: block.branch(h, given), point))
        )

    hooks = [block.register_forward_pre_hook(measure) for _, block in flow.blocks()]
    flow.bijection(y, context)
    [hook.remove() for hook in hooks]
    assert len(found) == len(expected) == len(list(flow.blocks()))
    for norm, early, true in zip(found, few, expected, strict=True):
        torch.testing.assert_close(norm.measured, true[:, 0], rtol=1e-3, atol=0)
        assert bool((norm.measured <= true[:, 0] * (1 + 1e-12)).all())
        assert bool((early.measured < norm.measured).all())
        assert float(norm.measured.max()) <= norm.certified


def test_a_zero_layer_has_the_norm_zero():
    layer = NormalizedDense(3, 3, coeff=0.9)
    with torch.no_grad():
        layer.weight.zero_()
    assert largest_singular_value(layer) == 0


def test_norms_of_all_layers_in_order(flow):
    norms = layer_norms(flow)
    assert len(norms) == 3 * len(list(flow.blocks()))
    assert [norm.depth for norm in norms[:4]] == [0, 1, 2, 0]
    for norm in norms:
        layer = flow.bijection.get_submodule(norm.name)
        assert norm.coeff == layer.coeff
        assert norm.measured <= norm.certified <= norm.coeff
        assert norm.measured > 0.95 * norm.certified


# Inversion.


def test_a_smaller_coefficient_scales_down_and_leaves_the_model_alone(flow):
    before = flow.certify()
    scaled = with_coefficient(flow, 0.5)
    for _, block in scaled.blocks():
        assert all(layer.bound().upper <= 0.5 for layer in block.branch.layers)
    assert flow.certify() == before and scaled.certify().largest < before.largest
    assert with_coefficient(flow, 0.99).certify() == before  # above the own: nothing changes
    for coeff in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="coeff"):
            with_coefficient(flow, coeff)


def test_inversion_errors_stay_below_the_bound_and_vanish(flow):
    x, context = torch.rand(4, *flow.shape), random_context(flow, 4)
    counts = [0, 1, 2, 5, 10, 20, 60]
    curves = [
        inversion_curve(flow, x, context, coeff=coeff, iterations=counts) for coeff in (0.2, 0.9)
    ]
    for curve in curves:
        assert bool((curve.block <= curve.bound + 1e-12).all())
        assert bool((curve.median <= curve.largest).all())
        assert curve.largest[0] > 1e3 * curve.largest[-1]
    slow, fast = curves[1], curves[0]
    assert fast.largest[-1] < 1e-10
    assert slow.largest[3] > fast.largest[3]
    assert bool((slow.block[2:5] > fast.bound[2:5]).any())  # the smaller constant is too small


@torch.no_grad()
def test_one_iteration_is_what_it_says():
    flow = small_vector_flow(3, blocks=1)
    flow.enforce()
    x = torch.rand(1, 3)
    norm, block, last = flow.bijection.maps
    z = flow.transform(x)
    x = flow.data_map.transform(x)
    y = last.inverse(z)
    expected = float((norm.inverse(y - block.branch(y)) - x).norm()) / 3**0.5
    curve = inversion_curve(flow, flow.data_map.inverse(x), coeff=0.97, iterations=[1])
    assert curve.largest[0] == pytest.approx(expected, rel=1e-9)


def test_negative_iterations_are_refused():
    with pytest.raises(ValueError, match="iterations"):
        inversion_curve(small_vector_flow(), torch.rand(1, 3), coeff=0.5, iterations=[3, -1])


# Estimators.


def exact_errors(flow, x, terms):
    """Bias and standard deviation of the series in bits/dim, from the blocks' dense Jacobians."""
    bias, variance = torch.zeros(len(x)), torch.zeros(len(x))
    x = flow.data_map.transform(x)
    for bijection in flow.bijection.maps:
        if hasattr(bijection, "branch"):
            jacobian = dense_jacobian(bijection.branch, x)
            power, series = torch.eye(x.shape[1]).expand_as(jacobian), torch.zeros_like(jacobian)
            for k in range(1, terms + 1):
                power = power @ jacobian
                series = series - (-1) ** k / k * power
            bias += series.diagonal(dim1=1, dim2=2).sum(1)
            bias -= torch.linalg.slogdet(torch.eye(x.shape[1]) + jacobian).logabsdet
            # Of v^T A v with independent signs: twice the squares off the symmetric diagonal.
            off = (series + series.mT) / 2
            off = off - torch.diag_embed(off.diagonal(dim1=1, dim2=2))
            variance += 2 * off.square().sum((1, 2))
        x = bijection.transform(x).detach()
    bits = x.shape[1] * math.log(2)
    return abs(float(bias.mean())) / bits, float(variance.mean()) ** 0.5 / bits


def test_bias_and_deviation_agree_with_dense_jacobians():
    flow = perturb(small_vector_flow(4), 0.3)
    flow.enforce()
    x = torch.randn(3, 4)
    curve, *_ = estimator_curves(flow, x, efforts=[1, 2, 4], probes=4000)
    for i, terms in enumerate([1, 2, 4]):
        bias, deviation = exact_errors(flow, x, terms)
        assert curve.bias[i] == pytest.approx(bias, rel=0.1)
        assert curve.deviation[i] == pytest.approx(deviation, rel=0.05)
    assert curve.products.tolist() == [1, 2, 4]


def test_the_bias_of_a_series_falls_and_its_deviation_stays(flow):
    x, context = torch.rand(4, *flow.shape), random_context(flow, 4)
    series, krylov, _ = estimator_curves(flow, x, context, efforts=[1, 4, 16])
    for curve in (series, krylov):
        # The reference is one to 1e-9 nats per dimension.
        assert bool((np.diff(curve.bias) <= 1e-9).all()) and curve.bias[-1] < 1e-6
        assert 0.3 < curve.deviation[-1] / curve.deviation[1] < 3
    assert krylov.bias[1] < series.bias[1] < series.bias[0]


def test_families_are_compared_at_the_same_probes(flow):
    x, context = torch.rand(2, *flow.shape), random_context(flow, 2)
    families = [
        EstimatorFamily("a", lambda n, probes: PowerSeries(n, probes)),
        EstimatorFamily("b", lambda n, probes: PowerSeries(2 * n, probes)),
    ]
    a, b = estimator_curves(flow, x, context, efforts=[2, 4], families=families)
    assert (a.label, b.label) == ("a", "b")
    assert a.bias[1] == b.bias[0] and a.deviation[1] == b.deviation[0]
    assert a.bias[0] != b.bias[0]


def test_one_probe_has_no_spread():
    with pytest.raises(ValueError, match="probes"):
        estimator_curves(small_vector_flow(), torch.rand(1, 3), efforts=[1], probes=1)
