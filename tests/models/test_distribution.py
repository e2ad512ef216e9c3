"""A flow as a distribution of torch.distributions, and its map as a transform."""

import copy
import math
import pickle

import pytest
import torch
from helpers import dense_jacobian, random_context, small_image_flow, small_vector_flow
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform, ExpTransform

from iresflow import Exact, ImageFlow, VectorFlow, compile_kernels
from iresflow.models import Flow

FLOWS = {
    "vector": small_vector_flow,
    "vector-conditional": lambda: small_vector_flow(context_dim=2, learned_prior=True),
    "image": small_image_flow,
    "image-centred": lambda: small_image_flow(alpha=0),
    "image-conditional": lambda: small_image_flow(context_dim=2),
}


@pytest.fixture(params=sorted(FLOWS))
def flow(request):
    flow = FLOWS[request.param]()
    # Exact, so that values can be compared between batches.
    flow.log_det = Exact()
    flow.enforce()
    return flow.requires_grad_(False)


def contexts(flow, *batch):
    context = random_context(flow, math.prod(batch))
    return None if context is None else context.reshape(*batch, flow.context_dim)


def point(flow, *batch):
    return torch.rand(*batch, *flow.shape)


def test_shapes_are_those_of_the_contexts_and_of_the_samples(flow):
    context = contexts(flow, 4)
    distribution = flow.as_distribution(context)
    batch = () if context is None else (4,)
    assert distribution.batch_shape == batch and distribution.event_shape == flow.shape
    for x in (distribution.sample((2, 3)), distribution.rsample((2, 3))):
        assert x.shape == (2, 3, *batch, *flow.shape)
        assert bool(distribution.support.check(x).all())
    assert distribution.sample().shape == (*batch, *flow.shape)
    assert distribution.sample((0,)).shape == (0, *batch, *flow.shape)
    x = point(flow, 2, 3, *batch)
    assert distribution.log_prob(x).shape == (2, 3, *batch)
    assert distribution.log_prob(x[:0]).shape == (0, 3, *batch)
    assert distribution.log_prob(x[0, 0]).shape == batch


def test_log_prob_broadcasts_values_and_contexts(flow):
    context = contexts(flow, 4)
    distribution = flow.as_distribution(context)
    x = point(flow, 3, 1)
    got = distribution.expand((4,)).log_prob(x)
    assert got.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            expected = flow.log_prob(x[i], None if context is None else context[j : j + 1])
            torch.testing.assert_close(got[i, j], expected[0], rtol=1e-9, atol=1e-9)


def test_samples_of_a_batch_follow_their_own_contexts():
    """A prior that the context moves by far tells whose sample is whose."""
    flow = small_vector_flow(2, blocks=1, context_dim=1, learned_prior=True)
    with torch.no_grad():
        flow.base.shift.weight[:2] = 20.0
        flow.base.shift.weight[2:] = 0.0
    context = torch.tensor([[-1.0], [0.0], [1.0]])
    x = flow.as_distribution(context).sample((50,))
    z = flow.transform(x.reshape(-1, 2), context.expand(50, 3, 1).reshape(-1, 1))
    centre = z.detach().reshape(50, 3, 2).mean(0)
    assert bool(((centre - 20 * context).abs() < 4 * 1.5 / 50**0.5 + 1).all())


def test_expand_gives_more_of_the_same(flow):
    distribution = flow.as_distribution(contexts(flow, 1)).expand((2, 3))
    assert distribution.batch_shape == (2, 3)
    assert distribution.sample((5,)).shape == (5, 2, 3, *flow.shape)
    x = point(flow)
    values = distribution.log_prob(x)
    assert values.shape == (2, 3)
    torch.testing.assert_close(values, values[:1, :1].expand(2, 3), rtol=1e-9, atol=1e-9)
    with pytest.raises((ValueError, RuntimeError)):
        distribution.expand((4, 3))


def test_repr_and_arguments(flow):
    context = contexts(flow, 4)
    distribution = flow.as_distribution(context)
    batch = tuple(distribution.batch_shape)
    text = f"FlowDistribution({type(flow).__name__}, batch_shape: {batch}, event_shape: "
    assert repr(distribution) == text + f"{flow.shape})"
    assert set(distribution.arg_constraints) == (set() if context is None else {"context"})
    for name, constraint in distribution.arg_constraints.items():
        assert bool(constraint.check(getattr(distribution, name)).all())
    again = copy.deepcopy(distribution)
    x = point(flow, 2, *batch)
    torch.testing.assert_close(again.log_prob(x), distribution.log_prob(x))
    again = pickle.loads(pickle.dumps(distribution))
    torch.testing.assert_close(again.log_prob(x), distribution.log_prob(x))


@pytest.mark.parametrize("bad", ["channels last", "flat", "another size", "integers", "batch"])
def test_values_of_another_shape_are_refused(bad):
    flow = small_image_flow(context_dim=2)
    distribution = flow.as_distribution(contexts(flow, 3))
    x = point(flow, 3)
    wrong = {
        "channels last": x.permute(0, 2, 3, 1),
        "flat": x.flatten(1),
        "another size": torch.rand(3, 5),
        "integers": torch.zeros(3, 2, 4, 4, dtype=torch.long),
        "batch": point(flow, 2),
    }[bad]
    for ask in (
        distribution.log_prob,
        distribution.transform,
        lambda y: distribution.transform.log_abs_det_jacobian(y, None),
    ):
        with pytest.raises(ValueError, match="values are floats of shape|don't fit each other"):
            ask(wrong)


def test_contexts_of_another_size_are_refused_at_once():
    flow = small_vector_flow(context_dim=3)
    for wrong in (torch.randn(2), torch.randn(4, 2), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"contexts have the shape \(\*batch, 3\)"):
            flow.as_distribution(wrong)
    with pytest.raises(ValueError, match="needs a context"):
        flow.as_distribution()
    with pytest.raises(ValueError, match="takes no context"):
        small_vector_flow().as_distribution(torch.randn(3))
    with pytest.raises(ValueError, match="the context holds NaN"):
        flow.as_distribution(torch.full((2, 3), math.nan))


# The support.


def test_outside_of_the_support_the_density_is_zero():
    flow = small_image_flow(log_det=Exact()).requires_grad_(False)
    distribution = flow.as_distribution()
    reach = flow.data_map.reach
    inside, outside = point(flow, 3), point(flow, 3)
    outside[0, 0, 0, 0], outside[1, 1, 2, 3], outside[2] = 1.1 * (1 + reach), -2 * reach, 200.0
    x = torch.cat([inside, outside])
    assert distribution.support.check(x).tolist() == [True] * 3 + [False] * 3
    values = distribution.log_prob(x)
    assert bool((values[3:] == -math.inf).all())
    torch.testing.assert_close(values[:3], flow.log_prob(inside), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="images are floats in"):
        flow.log_prob(x)
    for value in (math.inf, -math.inf):
        assert float(distribution.log_prob(torch.full(flow.shape, value))) == -math.inf
    with pytest.raises(ValueError, match="NaN"):
        distribution.log_prob(torch.full(flow.shape, math.nan))


def test_pixels_that_need_no_logit_may_lie_anywhere():
    flow = small_image_flow(alpha=0)
    x = torch.full((2, *flow.shape), 3.0)
    distribution = flow.as_distribution()
    assert bool(distribution.support.check(x).all())
    assert bool(distribution.log_prob(x).isfinite().all())


def test_an_iteration_that_steps_out_goes_on():
    """Gradients are zero outside, and as ever for the samples that stayed inside."""
    flow = small_image_flow(log_det=Exact()).requires_grad_(False)
    x = point(flow, 2)
    x[1] = 7.0
    x.requires_grad_()
    flow.as_distribution().log_prob(x).sum().backward()
    alone = x[:1].detach().requires_grad_()
    flow.log_prob(alone).sum().backward()
    torch.testing.assert_close(x.grad[:1], alone.grad, rtol=1e-6, atol=1e-6)
    assert not bool(x.grad[1].any())
    x.grad = None
    flow.as_distribution().log_prob(x[1:]).sum().backward()
    assert not bool(x.grad.any())


def test_the_density_of_an_image_flow_integrates_to_one_on_its_support():
    flow = ImageFlow((1, 1, 2), blocks=(2,), hidden=4)
    flow.initialize(torch.rand(100, 1, 1, 2))
    flow.enforce()
    flow.eval().log_det = Exact()
    distribution = flow.as_distribution()
    reach = 2 * flow.data_map.reach
    count = 150
    axis = -reach + (1 + 2 * reach) * (torch.arange(count) + 0.5) / count
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        density = distribution.log_prob(grid).exp()
    total = float(density.sum()) * ((1 + 2 * reach) / count) ** 2
    assert total == pytest.approx(1, abs=0.01)
    inner = (grid >= 0).flatten(1).all(1) & (grid <= 1).flatten(1).all(1)
    assert float(density[inner].sum() / density.sum()) < 0.999  # the support is more than [0, 1]


def test_who_asks_for_checks_gets_them():
    flow = small_image_flow()
    distribution = type(flow.as_distribution())(flow, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        distribution.log_prob(torch.full((1, *flow.shape), 3.0))


# Samples with gradients.


def test_rsample_has_the_gradients_of_a_finite_difference():
    flow = small_vector_flow(2, context_dim=2, learned_prior=True)
    parameters = [
        flow.base.mean,
        flow.bijection.maps[0].shift,
        flow.bijection.maps[1].branch.layers[0].bias,
    ]
    context = torch.randn(2, requires_grad=True)

    def value(*arguments):
        torch.manual_seed(5)
        return flow.as_distribution(arguments[0]).rsample((4,)).square().sum()

    loss = value(context)
    grads = torch.autograd.grad(loss, [context, *parameters])
    for tensor, grad in zip([context, *parameters], grads, strict=True):
        step = 1e-5
        difference = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.view(-1)[0] += sign * step
                difference.append(float(precise(flow, context)))
                tensor.view(-1)[0] -= sign * step
        numeric = (difference[0] - difference[1]) / (2 * step)
        assert float(grad.view(-1)[0]) == pytest.approx(numeric, rel=1e-3, abs=1e-3)


def precise(flow, context):
    torch.manual_seed(5)
    z = flow.base.sample(4, context.expand(4, -1))
    return flow.inverse(z, context.expand(4, -1), tol=1e-11).square().sum()


@pytest.mark.parametrize("training", [True, False])
def test_reverse_kl_fits_a_density_that_is_known(training):
    """KL(q | p) of p a normal with mean (2, -1) and deviation 1/2, in either mode."""
    torch.manual_seed(0)
    flow = VectorFlow(2, 1, 4, learned_prior=True)
    flow.initialize(torch.randn(200, 2))
    flow.train(training)
    if not training:
        flow.enforce()
    target = Independent(Normal(torch.tensor([2.0, -1.0]), 0.5), 1)
    optimizer = torch.optim.Adam(flow.parameters(), 0.05)

    def divergence(count):
        q = flow.as_distribution()
        x = q.rsample((count,))
        return (q.log_prob(x) - target.log_prob(x)).mean()

    before = float(divergence(500).detach())
    for _ in range(60):
        loss = divergence(64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not training:
            flow.enforce()
    flow.eval().enforce()
    after = float(divergence(500).detach())
    assert before > 3 and after < 0.25
    assert -0.05 < after
    mean = flow.sample(2000).mean(0)
    assert float((mean - torch.tensor([2.0, -1.0])).abs().max()) < 0.3


def test_sample_is_rsample_without_gradients():
    flow = small_vector_flow(learned_prior=True)
    a = flow.sample(5, generator=torch.Generator().manual_seed(3))
    b = flow.rsample(5, generator=torch.Generator().manual_seed(3))
    assert not a.requires_grad and b.requires_grad
    torch.testing.assert_close(a, b.detach())
    cold = flow.rsample(2, temperature=0)
    torch.testing.assert_close(cold[0], cold[1])


@pytest.mark.parametrize("compiled", [False, True])
def test_no_samples_are_an_empty_batch(flow, compiled):
    compile_kernels(compiled)
    context = contexts(flow, 0)
    for x in (flow.sample(0, context), flow.rsample(0, context)):
        assert x.shape == (0, *flow.shape)
    x, log_prob = flow.sample_and_log_prob(0, context)
    assert x.shape == (0, *flow.shape) and log_prob.shape == (0,)


@pytest.mark.parametrize("method", ["sample", "rsample", "sample_and_log_prob"])
def test_samples_of_no_sense_are_refused(method):
    sample = getattr(small_vector_flow(), method)
    for temperature in (-1.0, math.nan, math.inf, "hot"):
        with pytest.raises(ValueError, match="temperature must be"):
            sample(2, temperature=temperature)
    for n in (-1, 2.5, "3", None, True):
        with pytest.raises(ValueError, match="n must be a whole number"):
            sample(n)


# As a part of torch's own distributions.


def test_the_transform_agrees_with_the_flow_and_its_dense_jacobian(flow):
    context = contexts(flow, 3)
    transform = flow.as_distribution(context).transform
    x = point(flow, 3)
    z = transform(x)
    assert z.shape == (3, flow.base_dim) and transform.inv.inv is transform
    torch.testing.assert_close(transform.inv(z), x, rtol=0, atol=1e-4)
    dense = dense_jacobian(lambda y: flow.transform(y, context), x)
    expected = torch.linalg.slogdet(dense).logabsdet
    got = transform.log_abs_det_jacobian(x, z)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    back = transform.inv.log_abs_det_jacobian(z, x)
    torch.testing.assert_close(back, -expected, rtol=1e-8, atol=1e-8)
    shape = transform.forward_shape(torch.Size((5, 3, *flow.shape)))
    assert shape == (5, 3, flow.base_dim)
    assert transform.inverse_shape(shape) == (5, 3, *flow.shape)
    with pytest.raises(ValueError, match="shapes end with"):
        transform.forward_shape((7,))
    assert bool(transform.domain.check(x).all()) and bool(transform.codomain.check(z).all())
    cached = transform.with_cache()
    assert cached.inv(cached(x)) is x and cached == transform


def test_a_transformed_distribution_of_the_base_is_the_flow(flow):
    context = contexts(flow, 3)
    if isinstance(flow.base.shift, torch.nn.Linear):
        with torch.no_grad():
            flow.base.shift.weight.zero_()
    base = Normal(flow.base.mean, flow.base.log_std.exp())
    same = TransformedDistribution(base, flow.as_distribution(context).transform.inv)
    batch = () if context is None else (3,)
    assert same.event_shape == flow.shape and same.batch_shape == batch
    x = point(flow, 2, *batch)
    expected = flow.as_distribution(context).log_prob(x)
    torch.testing.assert_close(same.log_prob(x), expected, rtol=1e-8, atol=1e-8)
    assert same.rsample((4,)).shape == (4, *batch, *flow.shape)
    wide = same.expand((5, *batch))
    assert wide.sample().shape == (5, *batch, *flow.shape)


def test_a_flow_is_the_base_of_further_transforms():
    flow = small_vector_flow(3)
    far = TransformedDistribution(
        flow.as_distribution(), [AffineTransform(1.0, 2.0), ExpTransform()]
    )
    x = far.sample((4,))
    y = (x.log() - 1) / 2
    expected = flow.log_prob(y) - (math.log(2) + x.log()).sum(1)
    torch.testing.assert_close(far.log_prob(x), expected, rtol=1e-8, atol=1e-8)


def test_a_batch_of_flows_is_independent_or_a_mixture():
    flow = small_vector_flow(3, context_dim=2, learned_prior=True)
    context = torch.randn(4, 2)
    components = flow.as_distribution(context)
    joint = Independent(components, 1)
    x = joint.sample((5,))
    assert x.shape == (5, 4, 3) and joint.log_prob(x).shape == (5,)
    torch.testing.assert_close(joint.log_prob(x), components.log_prob(x).sum(1))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mixture = MixtureSameFamily(Categorical(weights), components)
    x = mixture.sample((6,))
    each = torch.stack([flow.log_prob(x, c.expand(6, -1)) for c in context], 1)
    expected = (each + weights.log()).logsumexp(1)
    torch.testing.assert_close(mixture.log_prob(x), expected, rtol=1e-8, atol=1e-8)


# Contexts.


@pytest.mark.parametrize("kind", ["float64", "integers", "booleans"])
def test_contexts_are_cast_to_the_weights(kind):
    for learned in (True, False):
        flow = small_vector_flow(2, context_dim=3, learned_prior=learned).float()
        flow.log_det = Exact()
        flow.enforce()
        hot = torch.eye(3)[[0, 2]]
        context = {"float64": hot.double(), "integers": hot.long(), "booleans": hot.bool()}[kind]
        x, z = torch.randn(2, 2, dtype=torch.float32), torch.randn(2, 2, dtype=torch.float32)
        for ask in (
            flow.log_prob,
            lambda x, c, f=flow: f.likelihood(x, c).log_prob,
            flow.transform,
            lambda x, c, f=flow, z=z: f.inverse(z, c),
            lambda x, c, f=flow: f.as_distribution(c).log_prob(x),
            lambda x, c, f=flow: f.sample(2, c, generator=torch.Generator().manual_seed(1)),
        ):
            assert torch.equal(ask(x, context), ask(x, hot.float()))
        assert flow.log_prob(x.double(), context).dtype == torch.float64
        flow.initialize(torch.randn(20, 2), context[:1])


def test_contexts_that_are_no_numbers_are_refused():
    flow = small_vector_flow(2, context_dim=3).float()
    x = torch.randn(2, 2)
    bad = {
        "NaN": torch.full((2, 3), math.nan),
        "can't hold": torch.full((2, 3), 1e300),
        "real numbers": torch.zeros(2, 3, dtype=torch.complex64),
    }
    for message, context in bad.items():
        for ask in (flow.log_prob, flow.likelihood, flow.inverse, flow.transform, flow.initialize):
            with pytest.raises(ValueError, match=message):
                ask(x, context)
        for n in (flow.sample, flow.rsample, flow.sample_and_log_prob):
            with pytest.raises(ValueError, match=message):
                n(2, context)


def test_a_base_flow_without_images_has_the_whole_space_as_support():
    flow = small_vector_flow()
    assert isinstance(flow, Flow)
    support = flow.as_distribution().support
    assert bool(support.check(torch.full((3,), 1e30))) and support.event_dim == 1


def test_densities_are_mapped_over_by_torch_func():
    flow = small_vector_flow(context_dim=2, log_det=Exact()).requires_grad_(False)
    distribution = flow.as_distribution(torch.randn(2))
    x = torch.randn(4, 3)
    got = torch.func.vmap(torch.func.grad(distribution.log_prob))(x)
    x.requires_grad_()
    distribution.log_prob(x).sum().backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-8, atol=1e-8)
    context = torch.randn(4, 2)
    each = torch.func.vmap(lambda y, c: flow.log_prob(y[None], c[None])[0])(x.detach(), context)
    torch.testing.assert_close(each, flow.log_prob(x.detach(), context), rtol=1e-8, atol=1e-8)
