"""A flow's inverse: its claims against float64, its refinement, and its failures."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import expand, perturb, random_context, small_image_flow, small_vector_flow

import iresflow
from iresflow import (
    InversionError,
    InversionWarning,
    NotContractiveError,
    bijections,
    tensors,
)
from iresflow.bijections import (
    Accuracy,
    Composition,
    MultiScale,
    ResidualBlock,
    Standardize,
)
from iresflow.lipschitz import ACTIVATIONS, NormalizedLayer, branch, conv_branch, dense_branch
from iresflow.lipschitz.passes import chain
from iresflow.logdet import Exact, ExactWhereSmall
from iresflow.models import inversion
from iresflow.solvers import FixedPoint

FLOWS = {
    "vector": lambda: small_vector_flow(4, blocks=4, hidden=16),
    "vector-conditional": lambda: small_vector_flow(context_dim=2, learned_prior=True),
    "image-factored": lambda: small_image_flow(blocks=(2, 2), factor_out=True),
    "image-conditional": lambda: small_image_flow(blocks=(0, 2), context_dim=3, alpha=0),
}


@pytest.fixture(params=sorted(FLOWS))
def flow(request):
    flow = perturb(FLOWS[request.param](), 0.2)
    flow.enforce()
    return flow


def latents(flow, count):
    return 2 * torch.randn(count, flow.base_dim), random_context(flow, count)


@torch.no_grad()
def exact_inverse(bijection, z, context=None, steps=3000):
    """The inverse in float64 by the plain iteration, with nothing of the solvers."""
    if isinstance(bijection, Composition):
        for part in reversed(bijection.maps):
            z = exact_inverse(part, z, context, steps)
        return z
    if isinstance(bijection, MultiScale):
        *pieces, x = bijection.split(z)
        for scale, piece in zip(reversed(bijection.scales), [None, *pieces[::-1]], strict=True):
            x = x if piece is None else torch.cat([piece, x], dim=1)
            x = exact_inverse(scale, x, context, steps)
        return x
    if not isinstance(bijection, ResidualBlock):
        return bijection.invert(z, context).value
    x = z
    for _ in range(steps):
        x, last = z - bijection.branch(x, context), x
        if float((x - last).abs().max()) < 1e-13:
            break
    return x


def distance(a, b):
    return (a.double() - b.double()).detach().flatten(1).norm(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_sample_of_a_float32_model_is_worse_than_claimed(flow, dtype):
    flow.float()
    z, context = latents(flow, 400)
    z, context = z.to(dtype), None if context is None else context.float()
    seen = []
    for _, block in flow.blocks():
        block.invert = recorded(block, seen)
    back = flow.invert(z, context)
    for block, y, result in seen:
        exact = exact_inverse(block, y, context)
        assert bool((distance(result.value, exact) <= result.error).all())
        assert bool((result.error <= 1e-5).all())
        # The oracle is exact enough to tell a result that is worse than its claim.
        moved = result.value.flatten(1).double()
        moved[:, 0] += 2.1 * result.error
        assert bool((distance(moved, exact.flatten(1)) > result.error).all())
    point = exact_inverse(flow.bijection, z.double(), context)
    exact = flow.data_map.invert(point).value
    assert back.value.dtype == dtype
    assert bool((distance(back.value, exact) <= back.worst_case).all())
    assert bool((back.residual <= 1e-5 * flow.base_dim**0.5).all())
    if isinstance(flow.data_map, Standardize) and dtype == torch.float64:
        again = flow.transform(back.value.double(), context)
        torch.testing.assert_close(distance(again, z), back.residual, rtol=1e-6, atol=1e-13)
    if dtype == torch.float64:
        assert float(back.rounding.max()) == 0
        tight = flow.invert(z, context, Accuracy(1e-9, residual=1e-8))
        assert float(distance(tight.value, exact).max()) < 1e-7


def recorded(block, seen):
    plain = block.invert

    def invert(z, context=None, accuracy=None):
        seen.append((block, z, plain(z, context, accuracy)))
        return seen[-1][2]

    return invert


def test_worst_case_composes_the_blocks_and_the_scales_between_them():
    flow = small_vector_flow(3, blocks=2)
    z = torch.randn(6, 3)
    back = flow.invert(z, None, Accuracy(1e-3, residual=1.0))
    amplification = flow.certify().inverse_lipschitz
    for part in flow.bijection.maps[::2]:
        amplification *= float((-part.log_scale.detach()).exp().max())
    assert bool((back.worst_case > back.block_error).all())
    assert bool((back.worst_case <= 3 * amplification * 1e-3).all())


def test_residuals_above_their_tolerance_are_refined(flow):
    z, context = latents(flow, 20)
    loose = flow.invert(z, context, Accuracy(0.3, residual=10.0))
    assert int(loose.sweeps.max()) == 1
    assert float(loose.residual.max()) > 1e-6
    tight = flow.invert(z, context, Accuracy(0.3, residual=1e-6))
    assert float(tight.residual.max()) <= 1e-6
    assert int(tight.sweeps.max()) > 1
    assert bool((tight.steps >= loose.steps).all())
    assert float(tight.block_error.max()) < float(loose.block_error.max())
    exact = flow.data_map.invert(exact_inverse(flow.bijection, z, context)).value
    assert bool((distance(tight.value, exact) <= tight.worst_case).all())


def test_only_failing_samples_are_refined():
    flow = perturb(small_vector_flow(), 0.2)
    z = torch.randn(40, 3)
    residual = flow.invert(z, None, Accuracy(0.3, residual=10.0)).residual
    middle = float(residual.median())
    refined = flow.invert(z, None, Accuracy(0.3, residual=middle))
    assert torch.equal(refined.sweeps > 1, residual > middle)


def test_refined_inverses_keep_their_gradient():
    flow = small_vector_flow()
    z = torch.randn(5, 3, requires_grad=True)
    refined = flow.invert(z, None, Accuracy(1e-3, residual=1e-9))
    assert int(refined.sweeps.max()) > 1
    tight = flow.invert(z, None, Accuracy(1e-10))
    ours, theirs = (torch.autograd.grad(r.value.sum(), z)[0] for r in (refined, tight))
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(refined.value, tight.value, rtol=0, atol=1e-7)


def test_a_residual_that_can_not_be_met_raises_with_numbers():
    flow = small_vector_flow()
    with pytest.raises(InversionError, match=r"do not map back .* after 4 sweeps"):
        flow.invert(torch.randn(5, 3), None, Accuracy(residual=1e-300))


def test_rounding_to_float32_is_told_from_a_failed_inverse():
    flow = small_vector_flow().float()
    z = torch.randn(50, 3, dtype=torch.float32)
    asked = Accuracy(1e-6, residual=1e-9)
    with pytest.warns(InversionWarning, match=r"rounding the result to torch.float32 .*z\.double"):
        back = flow.invert(z, None, asked)
    assert float(back.residual.max()) > 1e-9
    assert 0 < float(back.rounding.max()) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(flow.invert(z.double(), None, asked).residual.max()) <= 1e-9


def test_without_float64_the_claims_are_looser_and_hold(monkeypatch):
    """As on a device that has none."""
    for module in (tensors, bijections.inverse, branch, inversion):
        monkeypatch.setattr(module, "widest", lambda device: torch.float32)
    flow = small_vector_flow().float()
    z = torch.randn(100, 3, dtype=torch.float32)
    with pytest.warns(InversionWarning, match="the floor of torch.float32 is"):
        back = flow.invert(z, None, Accuracy(1e-5))
    assert {t.dtype for t in (back.value, back.block_error, back.residual)} == {torch.float32}
    exact = flow.data_map.inverse(exact_inverse(flow.bijection, z.double()))
    assert bool((distance(back.value, exact) <= back.worst_case).all())
    assert 1e-5 < float(back.block_error.max()) < 0.1


def test_training_mode_inverts_the_weights_that_act():
    flow = small_vector_flow().train()
    with torch.no_grad():
        for _, block in flow.blocks():
            block.branch.layers[0].weight.add_(0.2 * torch.randn(8, 3))
    z = torch.randn(5, 3)
    x = flow.inverse(z, tol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(flow.transform(x), z, rtol=0, atol=1e-8)


# Failures. Each names the block.


def poison(block):
    with torch.no_grad():
        block.branch.layers[1].weight[0, 0] = math.nan


def poison_bias(block):
    with torch.no_grad():
        block.branch.layers[1].bias[0] = math.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (expand, NotContractiveError),
        (poison, NotContractiveError),
        (poison_bias, NotContractiveError),
    ],
)
def test_damaged_blocks_fail_by_name(damage, error, dtype):
    flow = small_image_flow(blocks=(1, 2)).to(dtype)
    flow.enforce()
    names = [name for name, _ in flow.blocks()]
    assert names == ["scales.0.maps.1", "scales.1.maps.1", "scales.1.maps.3"]
    damage(dict(flow.blocks())["scales.1.maps.1"])
    z = torch.randn(3, 32, dtype=dtype)
    for call in (lambda: flow.inverse(z), lambda: flow.invert(z), lambda: flow.sample(2)):
        with pytest.raises(error, match=r"block scales\.1\.maps\.1"):
            call()


def test_a_lipschitz_bound_that_is_false_is_found_out(monkeypatch):
    flow = small_vector_flow()
    name, block = list(flow.blocks())[1]
    true = block.branch.contraction

    def lying(context=None):
        chain, maps = true(context)
        return replace(chain, lipschitz=1e-3), maps

    monkeypatch.setattr(block.branch, "contraction", lying)
    with pytest.raises(InversionError, match=f"block {name} is no contraction"):
        flow.inverse(torch.randn(5, 3))


def test_too_few_steps_fail_by_name():
    for flow in (small_image_flow(), small_image_flow().float()):
        z = torch.randn(3, 32, dtype=next(flow.parameters()).dtype)
        with pytest.raises(InversionError, match=r"after 3 steps \(block scales\.\d\.maps\.\d\)"):
            flow.invert(z, None, Accuracy(solver=FixedPoint(3)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents_that_are_not_finite_are_refused(value):
    z = torch.randn(4, 3)
    z[2, 1] = value
    with pytest.raises(ValueError, match="latent holds NaN or infinity"):
        small_vector_flow().inverse(z)


def test_integer_latents_are_refused():
    with pytest.raises(ValueError, match="floats of shape"):
        small_vector_flow().inverse(torch.zeros(2, 3, dtype=torch.long))


def test_an_empty_batch_of_latents_has_an_empty_inverse():
    back = small_image_flow().invert(torch.zeros(0, 32))
    assert back.value.shape == (0, 2, 4, 4) and back.residual.shape == (0,)


def test_a_saved_float32_model_keeps_its_claims(tmp_path):
    flow = perturb(small_vector_flow(), 0.2).float()
    flow.save(tmp_path / "flow.pt")
    loaded = iresflow.load(tmp_path / "flow.pt")
    z = torch.randn(100, 3, dtype=torch.float32)
    back = loaded.invert(z)
    exact = loaded.data_map.inverse(exact_inverse(loaded.bijection, z.double()))
    assert bool((distance(back.value, exact) <= back.worst_case).all())


def far_apart(log_scale):
    """A float32 flow whose first map stretches the inverse by so many powers of e."""
    flow = small_vector_flow().float()
    with torch.no_grad():
        flow.bijection.maps[0].log_scale.fill_(-log_scale)
    flow.enforce()
    return flow


@torch.no_grad()
def test_an_inverse_beyond_the_largest_number_raises():
    z = torch.full((4, 3), 30.0, dtype=torch.float32)
    flow = far_apart(86.0)
    with pytest.raises(InversionError, match="of 4 samples are not finite in torch.float32"):
        flow.invert(z)
    with pytest.raises(InversionError, match="not finite in torch.float32"):
        flow.sample(200, temperature=30.0)
    assert bool(flow.inverse(z.double()).isfinite().all())
    norm = flow.bijection.maps[0]
    with pytest.raises(InversionError, match="of 4 samples are not finite"):
        norm.inverse(z)
    # The data map is inverted last, in the type of z.
    flow = far_apart(60.0)
    flow.data_map.deviation.fill_(1e20)
    with pytest.raises(InversionError, match="not finite in torch.float32"):
        flow.invert(z)


def test_an_error_that_is_not_a_number_is_warned_of():
    nan = torch.tensor([0.0, math.nan])
    with pytest.warns(InversionWarning, match="certified to nan"):
        bijections.inverse.warn_of_floor(nan, nan, 1e-5, torch.float32)


# What an inverse costs.


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_sampling_never_computes_a_log_determinant(name, monkeypatch):
    """Nor what it consists of: vector-Jacobian products."""
    flow = FLOWS[name]()
    context = random_context(flow, 4)
    counts = {"estimates": 0, "products": 0}

    def counted(key, function):
        def call(*arguments, **settings):
            counts[key] += 1
            return function(*arguments, **settings)

        return call

    for estimator in (Exact, ExactWhereSmall):  # those of eval mode
        monkeypatch.setattr(estimator, "__call__", counted("estimates", estimator.__call__))
    product = chain.ChainLinearization.vjp
    monkeypatch.setattr(chain.ChainLinearization, "vjp", counted("products", product))
    flow.sample(4, context)
    flow.invert(latents(flow, 4)[0], context)
    assert counts == {"estimates": 0, "products": 0}
    flow.sample_and_log_prob(4, context)  # the control: here they are due
    assert counts["estimates"] > 0


def slow_block(kind, coeff, width=12):
    """A block that contracts about as slowly as its bound allows, in some directions.

    The first and the last layer are a rotation and its inverse, with factors from -1 to 1 between
    them, and the hidden values lie where the activation is steepest.
    """
    settings = {"activation": ACTIVATIONS["lipswish"], "coeff": coeff, "activate_input": False}
    if kind == "dense":
        branch = dense_branch(width, width, **settings)
    else:
        branch = conv_branch(width, width, (3, 2), **settings)
    rotation = torch.linalg.qr(torch.randn(width, width)).Q
    matrices = (rotation, torch.eye(width), rotation.mT * torch.linspace(-1, 1, width))
    with torch.no_grad():
        for layer, matrix in zip(branch.layers, matrices, strict=True):
            weight = torch.zeros_like(layer.weight)
            side = 1 if weight.ndim == 2 else weight.shape[-1]
            weight.view(width, width, -1)[..., side * side // 2] = matrix
            layer.weight.copy_(weight)
            layer.bias.fill_(2.4)
    branch.eval().enforce()
    return ResidualBlock(branch).eval()


@pytest.mark.parametrize(("coeff", "share"), [(0.9, 0.62), (0.95, 0.55), (0.99, 0.5)])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_default_solver_takes_about_half_of_the_evaluations_or_less(kind, coeff, share):
    """Of the plain iteration, to the same certified error: in float64 alone, and after float32."""
    for dtype in (torch.float64, torch.float32):
        block = slow_block(kind, coeff).to(dtype)
        z = torch.randn(20, *((12,) if kind == "dense" else (12, 3, 2)))
        fast = block.invert(z, None, Accuracy())
        plain = block.invert(z, None, Accuracy(solver=FixedPoint()))
        assert bool((fast.error <= 1e-5).all()) and bool((plain.error <= 1e-5).all())
        assert int(fast.steps.sum()) <= share * int(plain.steps.sum())


def test_weights_are_normalised_once_for_a_solve(monkeypatch):
    flow = small_image_flow(blocks=(1, 2)).float()
    calls = []
    plain = NormalizedLayer.normalized_weight
    monkeypatch.setattr(
        NormalizedLayer, "normalized_weight", lambda self: calls.append(self) or plain(self)
    )
    z = torch.randn(5, 32, dtype=torch.float32)
    back = flow.invert(z)
    layers = sum(len(block.branch.layers) for _, block in flow.blocks())
    # Once for the solve, and once for the measured residual.
    assert int(back.sweeps.max()) == 1 and len(calls) == 2 * layers
