"""Properties that every bijection has; a new one is one line in BIJECTIONS."""

import copy
import math

import pytest
import scipy.linalg
import torch
from helpers import CLOSED, dense_jacobian, expand, perturb, small_branch, symmetric_branch

from iresflow import (
    Exact,
    InversionError,
    InversionWarning,
    NotContractiveError,
    NotInitializedError,
)
from iresflow.bijections import (
    Accuracy,
    ActNorm,
    Center,
    ChannelMeans,
    Composition,
    ConditionalPrior,
    Decorrelate,
    FirstChannels,
    Logit,
    MonotoneBlock,
    MultiScale,
    ResidualBlock,
    Squeeze,
    Standardize,
    dequantize,
    quantize,
)
from iresflow.lipschitz import ACTIVATIONS, conv_branch
from iresflow.solvers import FixedPoint


def multi_scale():
    scales = [Composition([ActNorm(2), Squeeze()]), Composition([ActNorm(4)])]
    return MultiScale(scales, shapes=[(8, 2, 3), (4, 2, 3)], factored=[4])


def conditional(context_dim=0):
    settings = {"kernels": (3, 3), "activation": ACTIVATIONS["lipswish"], "coeff": 0.9}
    network = conv_branch(4, 5, (2, 3), outputs=8, context_dim=context_dim, **settings)
    scales = [Composition([ActNorm(2), Squeeze()]), Composition([ActNorm(4)])]
    prior = ConditionalPrior(network, 4)
    return MultiScale(scales, [(8, 2, 3), (4, 2, 3)], [4], {0: prior})


BIJECTIONS = {
    "identity": (Composition, (3,), 0),
    "actnorm-vector": (lambda: ActNorm(3), (3,), 0),
    "actnorm-image": (lambda: ActNorm(2), (2, 3, 3), 0),
    "standardize-vector": (lambda: Standardize(3), (3,), 0),
    "standardize-image": (lambda: Standardize(2), (2, 3, 3), 0),
    "decorrelate": (lambda: Composition([Standardize(3), Decorrelate(3)]), (3,), 0),
    "decorrelate-image": (lambda: Composition([Squeeze(), Decorrelate(8)]), (2, 4, 6), 0),
    "squeeze": (Squeeze, (2, 4, 6), 0),
    "channel-means": (
        lambda: Composition([MultiScale([Squeeze()], [(8, 2, 3)], []), ChannelMeans((8, 2, 3))]),
        (2, 4, 6),
        0,
    ),
    "first-channels": (lambda: FirstChannels(Standardize(2), 2, 1), (3, 2, 2), 0),
    "logit": (lambda: Logit(0.05), (1, 2, 3), 0),
    "center": (Center, (1, 2, 3), 0),
    "multi-scale": (multi_scale, (2, 4, 6), 0),
    "conditional-prior": (conditional, (2, 4, 6), 0),
    "conditional-prior-context": (lambda: conditional(3), (2, 4, 6), 3),
    "residual-dense": (lambda: ResidualBlock(small_branch("dense"), Exact()), (5,), 0),
    "residual-conv": (lambda: ResidualBlock(small_branch("conv", "elu"), Exact()), (2, 5, 4), 0),
    "monotone-dense": (lambda: MonotoneBlock(small_branch("dense"), Exact()), (5,), 0),
    "monotone-conv": (lambda: MonotoneBlock(small_branch("conv", "elu"), Exact()), (2, 5, 4), 0),
    "monotone-context": (
        lambda: MonotoneBlock(small_branch("dense", context_dim=3), Exact()),
        (5,),
        3,
    ),
    "symmetric-dense": (
        lambda: ResidualBlock(symmetric_branch("dense", "tanh", 3), Exact()),
        (5,),
        3,
    ),
    "symmetric-conv": (lambda: ResidualBlock(symmetric_branch("conv"), Exact()), (2, 5, 4), 0),
    "symmetric-circular": (
        lambda: ResidualBlock(symmetric_branch("circular", "elu"), Exact()),
        (2, 5, 4),
        0,
    ),
    "symmetric-monotone": (lambda: MonotoneBlock(symmetric_branch("dense"), Exact()), (5,), 0),
    "residual-context": (
        lambda: ResidualBlock(small_branch("dense", context_dim=3), Exact()),
        (5,),
        3,
    ),
    "composition": (
        lambda: Composition([ActNorm(5), ResidualBlock(small_branch("dense"), Exact())]),
        (5,),
        0,
    ),
}


@pytest.fixture(params=sorted(BIJECTIONS))
def case(request):
    """A bijection in eval mode with a batch of its domain and a context."""
    make, shape, context_dim = BIJECTIONS[request.param]
    bijection = make()
    x = torch.rand(4, *shape)
    context = torch.randn(4, context_dim) if context_dim else None
    bijection.initialize(
        torch.rand(32, *shape), torch.randn(32, context_dim) if context_dim else None
    )
    return perturb(bijection, 0.1), x, context


def test_log_det_agrees_with_the_dense_jacobian(case):
    bijection, x, context = case
    z, log_det = bijection(x, context)
    jacobian = dense_jacobian(lambda y: bijection.transform(y, context), x)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert log_det.shape == (4,)
    torch.testing.assert_close(log_det.detach(), expected, rtol=CLOSED, atol=CLOSED)
    torch.testing.assert_close(z, bijection.transform(x, context), rtol=CLOSED, atol=CLOSED)


def test_an_empty_batch_goes_through_both_ways(case):
    bijection, x, context = case
    none = None if context is None else context[:0]
    z, log_det = bijection(x[:0], none)
    assert log_det.shape == (0,) and z.shape == bijection.transform(x, context)[:0].shape
    assert bijection.transform(x[:0], none).shape == z.shape
    assert bijection.invert(z, none).value.shape == x[:0].shape


def test_inverse_undoes_forward_and_forward_undoes_inverse(case):
    bijection, x, context = case
    z = bijection.transform(x, context).detach()
    accuracy = Accuracy(tol=1e-10)  # ten times what rounding allows
    back = bijection.invert(z, context, accuracy)
    torch.testing.assert_close(back.value, x, rtol=0, atol=1e-9)
    again = bijection.transform(back.value, context).detach()
    torch.testing.assert_close(again, z, rtol=0, atol=1e-9)
    assert bool((back.error <= 1e-10).all())
    torch.testing.assert_close(bijection.inverse(z, context), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tol", [1e-1, 1e-4])
def test_the_composed_bound_holds_and_is_no_larger_than_the_blocks_make_it(case, tol):
    bijection, x, context = case
    z = bijection.transform(x, context).detach()
    back = bijection.invert(z, context, Accuracy(tol))
    error = (back.value - x).detach().flatten(1).norm(dim=1)
    assert bool((error <= back.bound).all())
    assert bool((back.error <= tol).all())
    assert float(back.bound.max()) <= back.lipschitz * tol * 10 + 1e-10


def test_the_inverse_has_the_lipschitz_constant_that_it_claims(case):
    bijection, x, context = case
    z = bijection.transform(x, context).detach()
    for distance in (1.0, 1e-3):
        other = z + distance * torch.randn_like(z)
        ours, theirs = (bijection.invert(w, context, Accuracy(1e-10)) for w in (z, other))
        moved = (ours.value - theirs.value).detach().flatten(1).norm(dim=1)
        assert bool((moved <= ours.lipschitz * (z - other).flatten(1).norm(dim=1) + 1e-9).all())


def test_float32_maps_keep_float64_digits(case):
    """The map is that of its float32 numbers: only rounding depends on the type."""
    bijection, x, context = case
    bijection.float()
    rows = None if context is None else context.float()
    z = bijection.transform(x, rows).detach()
    assert z.dtype == torch.float64
    back = bijection.invert(z, rows, Accuracy(1e-9))
    assert back.value.dtype == torch.float64
    torch.testing.assert_close(back.value, x, rtol=0, atol=1e-7)
    assert bool((back.error <= 1e-9).all())
    single = bijection.invert(z.float(), rows)
    assert single.value.dtype == torch.float32
    error = (single.value.double() - x).detach().flatten(1).norm(dim=1)
    # The rounding of the given z is the caller's, not the inverse's.
    given = (z.float().double() - z).flatten(1).norm(dim=1)
    assert bool((error <= single.bound + (1 + 1e-12) * single.lipschitz * given).all())


def test_samples_do_not_see_each_other(case):
    bijection, x, context = case
    changed = x.clone()
    changed[0] = changed[0].flip(0) * 0.5
    a, b = bijection.transform(x, context), bijection.transform(changed, context)
    assert torch.equal(a[1:], b[1:])


def test_every_parameter_gets_a_gradient(case):
    bijection, x, context = case
    z, log_det = bijection(x, context)
    loss = z.square().sum() + log_det.sum()
    if loss.requires_grad:
        loss.backward()
    missing = [n for n, p in bijection.named_parameters() if p.grad is None]
    assert not missing


def test_state_loads_into_a_fresh_object_before_any_forward_pass(case):
    bijection, x, context = case
    fresh = copy.deepcopy(bijection)
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    fresh.load_state_dict(bijection.state_dict())
    assert torch.equal(fresh.transform(x, context), bijection.transform(x, context))


def test_a_batch_of_one_keeps_its_dimensions(case):
    bijection, x, context = case
    one = None if context is None else context[:1]
    z, log_det = bijection(x[:1], one)
    assert log_det.shape == (1,)
    torch.testing.assert_close(z, bijection.transform(x, context)[:1], rtol=1e-12, atol=1e-12)
    assert bijection.inverse(z.detach(), one).shape == x[:1].shape


@pytest.mark.parametrize("kind", [ActNorm, Standardize])
def test_what_is_set_from_data_normalizes_the_batch_it_is_initialized_from(kind):
    layer = kind(2).train()
    z = layer.initialize(torch.randn(50, 2, 3, 3) * 1e-3 + 1e3)
    channels = z.detach().movedim(1, 0).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [ActNorm, Standardize])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_set_from_data_never_starts_from_whatever_it_is_given(kind, training):
    """Neither of two samples, nor of other ones in each of several processes."""
    layer, x = kind(2).train(training), torch.randn(2, 2)
    for call in (layer, layer.transform, layer.inverse):
        with pytest.raises(NotInitializedError, match=r"call the model's initialize\(batch\)"):
            call(x)
    assert not layer.initialized


@pytest.mark.parametrize("kind", [ActNorm, Standardize])
def test_what_is_set_from_data_refuses_one_vector_and_constant_channels(kind):
    with pytest.raises(ValueError, match="constant or not finite"):
        kind(2).initialize(torch.randn(1, 2))
    batch = torch.randn(8, 2)
    batch[:, 1] = 3
    with pytest.raises(ValueError, match="channel 1 is constant"):
        kind(2).initialize(batch)
    batch[3, 1] = math.nan
    with pytest.raises(ValueError, match="channel 1 is constant or not finite"):
        kind(2).initialize(batch)


@pytest.mark.parametrize("unit", [1e-42, 1e42])
def test_units_that_the_type_of_float_cannot_hold_are_refused(unit):
    with pytest.raises(ValueError, match="channel 0 has mean .* torch.float32 can't hold"):
        Standardize(2).float().initialize(unit * torch.randn(8, 2))


@pytest.mark.parametrize("kind", [ActNorm, Standardize])
def test_bounds_of_scales_hold_for_what_float32_makes_of_them(kind):
    """The singular values are those numbers that the map multiplies by, to float64's rounding."""
    layer = kind(4).float()
    for _ in range(200):
        x = torch.randn(16, 4) * torch.randn(4).mul(3).exp()
        layer.initialize(x.float())
        stretch = layer.eval().stretch(4)
        zero = torch.zeros(1, 4)
        for bijection, rounding in ((layer, 1e-13), (copy.deepcopy(layer).double(), 1e-13)):
            scales = dense_jacobian(bijection.transform, zero)[0].diagonal()
            logs = scales.double().log()
            assert float(logs.max()) <= stretch.log_forward + rounding
            assert float(-logs.min()) <= stretch.log_inverse + rounding
            assert stretch.log_det_lower - rounding <= float(logs.sum())
            assert float(logs.sum()) <= stretch.log_det_upper + rounding
        assert stretch.log_det_upper - stretch.log_det_lower < 1e-5


def test_decorrelated_entries_are_white_and_stay_close_to_what_they_were():
    mixing = torch.tensor([[1.0, 0.9, 0.2], [0.0, 0.3, -0.5], [0.0, 0.0, 2.0]])
    x = Standardize(3).initialize(torch.randn(400, 3) @ mixing)
    layer = Decorrelate(3)
    z = layer.initialize(x)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(3), rtol=0, atol=1e-10)
    values, directions = scipy.linalg.eigh(x.T.cov(correction=0).numpy())
    root = torch.from_numpy(directions / values**0.5 @ directions.T)
    torch.testing.assert_close(layer.matrix, root, rtol=1e-9, atol=1e-9)
    # Any other rotation of white entries, such as the principal components, is further away.
    principal = x @ torch.from_numpy(directions / values**0.5)
    assert (z - x).square().sum() < 0.9 * (principal.abs() - x.abs()).square().sum()
    # Pixels are as many vectors of channels.
    images = x.reshape(100, 2, 2, 3).movedim(3, 1)
    pixels = Decorrelate(3).initialize(images).movedim(1, 3).reshape(400, 3)
    torch.testing.assert_close(pixels, z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_column_that_others_add_up_to_leaves_a_bijection(dtype):
    x = torch.randn(100, 3, dtype=dtype)
    x = torch.cat([x, x.sum(1, keepdim=True)], 1)
    layer = Decorrelate(4).to(dtype)
    with pytest.warns(UserWarning, match=r"1 of 4 directions of the 100 vectors .* no variance"):
        z = layer.initialize(x)
    assert layer.defect() is None
    back = layer.invert(z)
    error = torch.linalg.vector_norm(back.value.double() - x.double(), dim=1)
    assert bool((error <= 2 * 1e3 * torch.finfo(dtype).eps * (1 + z.norm(dim=1))).all())
    layer.matrix[:, 0] = 0
    assert "singular" in layer.defect()
    assert not math.isfinite(layer.stretch(4).forward)


def test_more_columns_than_rows_are_told():
    with pytest.warns(UserWarning, match=r"3 of 12 directions of the 10 vectors"):
        Decorrelate(12).initialize(torch.randn(10, 12))


def test_squeeze_refuses_odd_sizes():
    with pytest.raises(ValueError, match="even height and width"):
        Squeeze()(torch.randn(1, 1, 3, 4))


def test_residual_block_that_expands_refuses_to_be_inverted():
    block = expand(ResidualBlock(small_branch("dense"))).eval()
    with pytest.raises(NotContractiveError, match="a residual block has a certified"):
        block.inverse(torch.randn(3, 5))
    block.branch.enforce()
    assert block.inverse(torch.randn(3, 5)).shape == (3, 5)


def test_residual_block_raises_when_steps_run_out():
    block = ResidualBlock(small_branch("dense"))
    with pytest.raises(InversionError, match="after 2 steps"):
        block.invert(torch.randn(3, 5), None, Accuracy(1e-9, FixedPoint(2)))


def test_a_block_in_float32_says_what_it_reached():
    block = ResidualBlock(small_branch("dense")).float()
    z = 100 * torch.randn(20, 5, dtype=torch.float32)
    exact = z.double()
    with torch.no_grad():
        for _ in range(2000):
            exact = z.double() - block.branch(exact)
    with pytest.warns(InversionWarning, match="the floor of torch.float32 is"):
        x = block.inverse(z, tol=1e-9)
    back = block.invert(z, None, Accuracy(1e-9))
    error = (back.value.double() - exact).norm(dim=1)
    assert torch.equal(x, back.value) and x.dtype == torch.float32
    assert bool((error <= back.error).all()) and bool((back.error <= back.floor + 1e-9).all())
    assert 1e-9 < float(back.floor.max()) < 1e-4
    assert bool((block.invert(z.double(), None, Accuracy(1e-9)).error <= 1e-9).all())


def test_a_block_leaves_room_for_the_rounding_of_its_result():
    """An error is above the tolerance only where the type of float allows no better."""
    torch.manual_seed(4)
    block = ResidualBlock(small_branch("dense")).float()
    block.branch.enforce()
    eps, tight = torch.finfo(torch.float32).eps, 0
    for size in (1.0, 30.0, 1000.0):
        z = size * torch.randn(200, 5, dtype=torch.float32)
        for tol in eps * size * torch.logspace(-1, 2, 40):
            back = block.invert(z, None, Accuracy(float(tol), FixedPoint(1000)))
            x = back.value.double().norm(dim=1)
            possible = back.floor + eps * x <= tol
            assert bool((back.error[possible] <= tol).all())
            tight += int((back.error[possible] > 0.9 * tol).sum())
    assert tight > 30  # some come near, so that what rounding adds matters


def test_multi_scale_splits_its_latent_into_images():
    bijection = multi_scale()
    x = torch.rand(4, 2, 4, 6)
    z = bijection.initialize(x)
    assert [tuple(p.shape) for p in bijection.split(z)] == [(4, 4, 2, 3), (4, 4, 2, 3)]
    with pytest.raises(ValueError, match="scales need"):
        MultiScale([Composition()], [(1, 2, 2)], [1])


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantized_integers_come_back(levels, dtype):
    images = torch.arange(levels).repeat(500)
    x = dequantize(images, levels, dtype=dtype)
    assert float(x.min()) >= 0 and float(x.max()) < 1
    assert torch.equal(quantize(x, levels).long(), images)


def test_dequantization_noise_is_uniform():
    u = dequantize(torch.zeros(100_000, dtype=torch.long), 1, dtype=torch.float64)
    assert abs(float(u.mean()) - 0.5) < 4 * (1 / 12 / 100_000) ** 0.5


@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.1])
def test_logit_refuses_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="alpha"):
        Logit(alpha)


def test_tolerances_out_of_range_are_refused():
    with pytest.raises(ValueError, match="tol"):
        Accuracy(tol=-1.0)
    for residual in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="residual"):
            Accuracy(residual=residual)


def test_the_means_of_channels_come_first():
    means = ChannelMeans((3, 4, 5))
    x = torch.randn(6, 3, 4, 5)
    z = means.transform(x.flatten(1))
    torch.testing.assert_close(z[:, :3], x.mean((2, 3)) * 20**0.5)
    torch.testing.assert_close(z.square().sum(1), x.square().sum((1, 2, 3)))
    one = ChannelMeans((3, 1, 1))
    torch.testing.assert_close(one.transform(x[:, :, 0, 0]), x[:, :, 0, 0])
