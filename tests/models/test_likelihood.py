"""What a likelihood means: a function of the sample, or an estimate whose error is known."""

import math
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from helpers import dense_jacobian, perturb, random_context, small_image_flow, small_vector_flow
from scipy import stats

from iresflow import Exact, ImageFlow, Krylov, PowerSeries, RandomSeries, load
from iresflow.logdet import ExactWhereSmall, Lanczos
from iresflow.models import Likelihood
from iresflow.models.likelihood import pooled_degrees, student_quantile

pytestmark = pytest.mark.usefixtures("native_passes")

ESTIMATORS = {
    "default": None,
    "krylov": Krylov(probes=2),
    "gaussian": Krylov(probes=2, probe="gaussian"),
    "lanczos": Lanczos(probes=2),
    "series": PowerSeries(40, probes=2),
    "random-series": RandomSeries(probes=2),
}
ASKED = list(zip(ESTIMATORS.values(), cycle((0, 2)), strict=False))
"""Each of flows without a context or with one."""


def wide_image_flow(**settings):
    """80 dimensions, more than are treated exactly."""
    flow = ImageFlow((1, 10, 8), (2, 1), 8, levels=17, factor_out=False, **settings)
    images = torch.randint(0, 17, (64, 1, 10, 8))
    flow.initialize(flow.dequantize(images), random_context(flow, 64))
    return perturb(flow, 0.15)


def truth(flow, x, context=None):
    z = flow.transform(x, context).detach()
    jacobian = dense_jacobian(lambda y: flow.transform(y, context), x)
    return (flow.base.log_prob(z, context) + torch.linalg.slogdet(jacobian).logabsdet).detach()


def batches(x, context=None):
    """The same points in other batches, with how to undo it."""
    order = torch.randperm(len(x))
    pick = lambda rows: (x[rows], None if context is None else context[rows])  # noqa: E731
    yield "one by one", [pick([i]) for i in range(len(x))], torch.arange(len(x))
    yield "reversed", [pick(torch.arange(len(x)).flip(0))], torch.arange(len(x)).flip(0)
    yield "in two", [pick(order[:3]), pick(order[3:])], order


# log_prob in eval mode is a function of x alone.


@pytest.mark.parametrize(("estimator", "context_dim"), ASKED, ids=ESTIMATORS)
def test_log_prob_is_a_function_of_the_sample(estimator, context_dim):
    flow = wide_image_flow(context_dim=context_dim)
    x, context = torch.rand(8, 1, 10, 8), random_context(flow, 8)
    with torch.no_grad():
        whole = flow.log_prob(x, context, estimator)
        for _, parts, order in batches(x, context):
            again = torch.cat([flow.log_prob(*part, estimator) for part in parts])
            torch.testing.assert_close(again, whole[order], rtol=0, atol=5e-4)
        same = flow.log_prob(
            x[:1].expand_as(x), None if context is None else context[:1], estimator
        )
    torch.testing.assert_close(same, whole[:1].expand(8), rtol=0, atol=5e-4)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x, context, estimator), whole, rtol=0, atol=1e-9)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_generator_draws_another_function_of_the_sample():
    flow, x = wide_image_flow(), torch.rand(6, 1, 10, 8)
    with torch.no_grad():

        def function(y, seed):
            return flow.log_prob(y, generator=torch.Generator().manual_seed(seed))

        whole = function(x, 1)
        torch.testing.assert_close(function(x.flip(0), 1), whole.flip(0), rtol=0, atol=1e-4)
        assert not bool(((function(x, 2) - whole).abs() < 1e-3).any())
        assert not bool(((flow.log_prob(x) - whole).abs() < 1e-3).any())


def test_log_prob_does_not_depend_on_threads_or_type_but_for_rounding():
    flow, x = wide_image_flow(), torch.rand(8, 1, 10, 8, dtype=torch.float32)
    with torch.no_grad():
        wide = flow.log_prob(x.double())
        torch.set_num_threads(2)
        try:
            torch.testing.assert_close(flow.log_prob(x.double()), wide, rtol=0, atol=1e-4)
        finally:
            torch.set_num_threads(1)
        single = flow.float().log_prob(x)
    torch.testing.assert_close(single.double(), wide, rtol=0, atol=3e-4)


def test_log_prob_is_continuous():
    """Along a line, values change in proportion to the step; independent probes would not."""
    flow = wide_image_flow()
    start, direction = torch.rand(1, 1, 10, 8), torch.randn(1, 1, 10, 8)
    steps = torch.linspace(0, 1e-4, 20)[:, None, None, None]
    x = (0.2 + 0.6 * start) + steps * direction
    with torch.no_grad():
        smooth = flow.log_prob(x)
        rough = flow.likelihood(x, seed=0).log_prob
    assert float(smooth.diff().abs().max()) < 1e-2
    assert float(smooth.diff().diff().abs().max()) < 1e-4
    assert float(rough.diff().abs().max()) > 0.05


@pytest.mark.parametrize("dim", [2, 12, 32])
def test_log_prob_is_exact_and_its_gradient_its_derivative_in_few_dimensions(dim):
    flow = small_vector_flow(dim, log_det=PowerSeries(10))
    x = torch.randn(3, dim)
    ours = flow.log_prob(x).detach()
    torch.testing.assert_close(ours, truth(flow, x), rtol=0, atol=1e-9)
    if dim < 32:
        assert torch.autograd.gradcheck(flow.log_prob, x.requires_grad_())


def test_estimates_take_over_above_the_limit():
    flow = small_vector_flow(65, log_det=PowerSeries(10))
    result = flow.likelihood(torch.randn(4, 65))
    assert bool((result.standard_error > 0).all()) and bool((result.degrees < 7).all())


@pytest.mark.parametrize("shape", [(64,), (1, 8, 8)])
def test_values_are_exact_up_to_64_dimensions_and_gradients_those_of_probes(shape):
    if len(shape) == 1:
        flow = small_vector_flow(64, log_det=PowerSeries(10))
    else:
        flow = ImageFlow(shape, (2, 1), 8, factor_out=False, log_det=PowerSeries(10))
        flow.initialize(torch.rand(64, *shape))
        perturb(flow, 0.15)
    x = torch.rand(3, *shape, requires_grad=True)
    found = flow.likelihood(x)
    exact = truth(flow, x)
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=1e-9)
    assert bool((found.standard_error == 0).all()) and bool((found.truncation_bound == 0).all())
    probes = flow.EVALUATION.otherwise
    assert float((flow.log_prob(x, log_det=probes) - exact).detach().abs().max()) > 1e-4
    ours, theirs = (
        torch.autograd.grad(flow.log_prob(x, log_det=e).sum(), x)[0] for e in (None, probes)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), exact, rtol=0, atol=1e-9)


# likelihood: errors are independent, and a seed repeats.


@pytest.mark.parametrize(("estimator", "context_dim"), ASKED, ids=ESTIMATORS)
def test_a_seed_gives_a_sample_the_same_likelihood_in_any_batch(estimator, context_dim):
    flow = wide_image_flow(context_dim=context_dim)
    x, context = torch.rand(8, 1, 10, 8), random_context(flow, 8)
    whole = flow.likelihood(x, context, estimator, seed=3)
    for _, parts, order in batches(x, context):
        again = [flow.likelihood(*part, estimator, seed=3) for part in parts]
        for name in ("log_prob", "variance", "truncation_bound"):
            ours = torch.cat([getattr(part, name) for part in again])
            torch.testing.assert_close(
                ours, getattr(whole, name)[order], rtol=1e-3, atol=5e-4, equal_nan=True
            )
    other = flow.likelihood(x, context, estimator, seed=4)
    assert not bool(((other.log_prob - whole.log_prob).abs() < 1e-4).any())


def test_calls_without_a_seed_differ_and_generators_repeat():
    flow, x = wide_image_flow(), torch.rand(4, 1, 10, 8)
    torch.manual_seed(1)
    a, b = flow.likelihood(x).log_prob, flow.likelihood(x).log_prob
    torch.manual_seed(1)
    assert torch.equal(flow.likelihood(x).log_prob, a) and not torch.equal(a, b)
    c, d = (
        flow.likelihood(x, generator=torch.Generator().manual_seed(s)).log_prob for s in (7, 7)
    )
    assert torch.equal(c, d) and not torch.equal(c, a)
    with pytest.raises(ValueError, match="one is enough"):
        flow.likelihood(x, generator=torch.Generator(), seed=1)
    images = torch.randint(0, 17, (4, 1, 10, 8))
    with pytest.raises(ValueError, match="one is enough"):
        flow.bits_per_dim(images, generator=torch.Generator(), seed=1)


def errors_of(flow, x, context, estimator, seeds):
    exact = truth(flow, x, context)
    return torch.stack(
        [flow.likelihood(x, context, estimator, seed=s).log_prob - exact for s in range(seeds)]
    )


def test_errors_are_independent_between_samples_and_calls():
    """Correlations of 100 calls for each pair of 12 samples; the control shares its probes."""
    flow = wide_image_flow()
    x, calls = torch.rand(12, 1, 10, 8), 100
    errors = errors_of(flow, x, None, PowerSeries(8, probes=2), calls)
    assert bool((errors.mean(0).abs() < 4 * errors.std(0) / calls**0.5 + 1e-3).all())
    between = torch.corrcoef(errors.T)[~torch.eye(12, dtype=torch.bool)]
    assert float(between.abs().max()) < 4.5 / calls**0.5
    standard = (errors - errors.mean(0)) / errors.std(0)
    assert abs(float((standard[1:] * standard[:-1]).mean())) < 4 / standard.numel() ** 0.5
    exact = truth(flow, x)
    common = torch.stack(
        [
            flow.log_prob(x, None, PowerSeries(8, probes=2), torch.Generator().manual_seed(s))
            for s in range(50)
        ]
    ).detach()
    control = torch.corrcoef((common - exact).T)[~torch.eye(12, dtype=torch.bool)]
    assert float(control.mean()) > 0.3


def test_equal_samples_share_their_numbers_and_contexts_tell_them_apart():
    flow = wide_image_flow(context_dim=2)
    x, context = torch.rand(1, 1, 10, 8).expand(3, -1, -1, -1), torch.randn(3, 2)
    context[1] = context[0]
    values = flow.likelihood(x, context, seed=0).log_prob
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-6)
    probes = flow.likelihood(x, context, PowerSeries(1, probes=2), seed=0).log_prob
    exact = flow.likelihood(x, context, Exact(), seed=0).log_prob
    assert float(((probes - exact)[0] - (probes - exact)[2]).abs()) > 1e-2


# Intervals.

COVERED = {
    "vector-2": (lambda: small_vector_flow(2, blocks=3), 2),
    "vector-6": (lambda: small_vector_flow(6, blocks=3), 6),
    "vector-6-conditional": (lambda: small_vector_flow(6, blocks=3, context_dim=2), 6),
    "wide": (wide_image_flow, 80),
    "multi-scale": (lambda: small_image_flow(blocks=(2, 1), factor_out=True), 32),
}


@pytest.mark.parametrize(
    ("name", "probes"), [*((name, 2) for name in COVERED), ("vector-6", 4), ("multi-scale", 4)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(name, probes):
    """Of 128 samples and 16 seeds; `benchmarks/coverage.py` counts more, of trained models."""
    make, dim = COVERED[name]
    flow, level = make(), 0.95
    x, context = torch.rand(128, *flow.shape), random_context(flow, 128)
    exact = truth(flow, x, context)
    hits, shifted, normal, means = [], [], [], []
    for seed in range(16):
        likely = flow.likelihood(x, context, PowerSeries(12, probes=probes), seed=seed)
        rest = likely.truncation_bound + likely.rounding
        low, high = likely.interval(level)
        hits.append((low <= exact) & (exact <= high))
        bias = 3 * float(likely.standard_error.mean()) * likely.standard_error.new_ones(())
        shifted.append((low + bias <= exact) & (exact <= high + bias))
        normal.append((likely.log_prob - exact).abs() <= 1.96 * likely.standard_error + rest)
        parts = [
            Likelihood(**{n: v[i : i + 16] for n, v in vars(likely).items()}).mean()
            for i in range(0, 128, 16)
        ]
        for i, mean in enumerate(parts):
            low, high = mean.interval(level)
            means.append((low <= exact[16 * i : 16 * i + 16].mean() <= high).all())
        assert not bool(
            ((likely.standard_error == 0) & ((likely.log_prob - exact).abs() > rest)).any()
        )
    share = [float(torch.stack(x).double().mean()) for x in (hits, shifted, normal, means)]
    # The standard error of a share of 2,048 is 0.5 %, of 128 means 1.9 %.
    assert share[0] >= 0.93
    assert share[3] >= 0.95 - 4 * 0.019
    if dim > 2:  # where two probes give the exact trace, claims are larger than the error
        assert share[2] < (0.90 if probes == 2 else 0.94)  # the control: too narrow by far
        assert share[1] < share[0] - (0.02 if probes == 2 else 0.1)


def test_one_probe_tells_nothing():
    flow, x = wide_image_flow(), torch.rand(3, 1, 10, 8)
    likely = flow.likelihood(x, log_det=Krylov(probes=1))
    low, high = likely.interval()
    assert bool(likely.standard_error.isnan().all())
    assert bool((low == -math.inf).all()) and bool((high == math.inf).all())
    mean = likely.mean()
    assert bool(mean.standard_error.isnan().all()) and float(mean.interval()[1]) == math.inf


@pytest.mark.parametrize("estimator", [None, Krylov()])
def test_of_what_leaves_the_range_of_floats_nothing_is_known(estimator):
    """In float64 the log-density of such a point is finite; in float32 it is not."""
    flow = small_vector_flow(2).float()
    x = torch.tensor([[0.0, 0.0], [1e30, 0.0]])
    likely = flow.likelihood(x.float(), log_det=estimator)
    assert float(likely.log_prob[1]) == -math.inf
    low, high = likely.interval()
    exact = flow.double().log_prob(x).detach()
    assert bool(exact.isfinite().all()) and bool((low <= exact).all() and (exact <= high).all())
    low, high = likely.mean().interval()
    assert (float(low), float(high)) == (-math.inf, math.inf)


def test_intervals_are_those_of_student():
    tensor = torch.tensor
    likely = Likelihood(
        tensor([1.0, 2.0, 3.0]),
        tensor([0.25, 0.0, 4.0]),
        tensor([3.0, math.inf, math.inf]),
        tensor([0.125, 0.0, 0.0]),
        tensor([0.0, 0.5, 0.0]),
    )
    low, high = likely.interval(0.9)
    half = [0.5 * stats.t.ppf(0.95, 3) + 0.125, 0.5, 2 * stats.norm.ppf(0.95)]
    torch.testing.assert_close((high - low) / 2, tensor(half))
    torch.testing.assert_close((high + low) / 2, likely.log_prob)
    mean = likely.mean()
    assert float(mean.log_prob) == 2 and float(mean.standard_error) == pytest.approx(4.25**0.5 / 3)
    assert float(mean.degrees) == pytest.approx(4.25**2 / (0.25**2 / 3))
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            likely.interval(level)


def test_quantiles_and_degrees_agree_with_scipy():
    degrees = torch.tensor([0.7, 1.0, 2.5, 40.0, 1e12, math.inf])
    expected = stats.t.ppf(0.975, degrees.numpy())
    torch.testing.assert_close(
        student_quantile(0.95, degrees), torch.from_numpy(expected), rtol=1e-6, atol=0
    )
    equal = torch.full((4, 1), 0.3)
    assert float(pooled_degrees(equal, torch.full((4, 1), 1.0))) == pytest.approx(4)
    one = torch.tensor([[5.0], [0.0]])
    assert float(pooled_degrees(one, torch.tensor([[3.0], [math.inf]]))) == pytest.approx(3)
    assert float(pooled_degrees(torch.zeros(2, 1), torch.ones(2, 1))) == math.inf
    assert math.isnan(float(pooled_degrees(torch.tensor([[math.nan], [1.0]]), torch.ones(2, 1))))


# Bits per dimension.


def test_bits_per_dim_are_the_same_in_any_batch():
    flow = wide_image_flow()
    images = torch.randint(0, 17, (9, 1, 10, 8), dtype=torch.uint8)
    whole = flow.bits_per_dim(images, seed=2)
    for size in (1, 2, 5):
        parts = [flow.bits_per_dim(part, seed=2) for part in images.long().split(size)]
        for name in ("values", "probe_variance", "truncation_bounds"):
            together = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(together, getattr(whole, name), rtol=1e-3, atol=1e-6)
    mirrored = flow.bits_per_dim(images.flip(0), seed=2).values.flip(0)
    torch.testing.assert_close(mirrored, whole.values, rtol=0, atol=1e-6)


def test_bits_per_dim_average_out_over_calls():
    """The mean over calls agrees with that of exact ones; a biased control does not."""
    flow = wide_image_flow()
    images = torch.randint(0, 17, (6, 1, 10, 8))
    rough = torch.stack([flow.bits_per_dim(images).values for _ in range(40)])
    fine = torch.stack([flow.bits_per_dim(images, log_det=Exact()).values for _ in range(20)])
    allowed = 4 * (rough.var(0) / 40 + fine.var(0) / 20).sqrt()
    difference = rough.mean(0) - fine.mean(0)
    assert bool((difference.abs() <= allowed).all())
    assert not bool(((difference - 0.3).abs() <= allowed).any())


def test_intervals_of_bits_per_dim():
    flow = wide_image_flow()
    images = torch.randint(0, 17, (200, 1, 10, 8))
    noisy, exact = (flow.bits_per_dim(images, log_det=e, seed=1) for e in (None, Exact()))
    low, high = noisy.intervals()
    inside = ((low <= exact.values) & (exact.values <= high)).double().mean()
    assert float(inside) >= 0.95 - 4 * 0.0154
    assert float(((low + 1 <= exact.values) & (exact.values <= high + 1)).double().mean()) < 0.9
    low, high = noisy.interval()
    half = stats.t.ppf(0.975, 199) * noisy.standard_error + noisy.truncation_bound
    assert (high - low) / 2 == pytest.approx(half) and (high + low) / 2 == pytest.approx(
        noisy.mean
    )
    assert flow.bits_per_dim(images[:1]).interval()[1] == math.inf


def test_rounding_of_float32_stays_within_its_allowance():
    for make in (wide_image_flow, lambda: small_vector_flow(6, blocks=8)):
        flow = make()
        x = torch.rand(200, *flow.shape, dtype=torch.float32)
        wide = flow.likelihood(x.double(), log_det=Exact())
        single = flow.float().likelihood(x, log_det=Exact())
        error = (single.log_prob.double() - wide.log_prob).abs()
        assert bool((error <= single.rounding).all())
        assert float(single.rounding.max()) < 1e-3


def test_the_estimator_of_few_dimensions_is_stored_with_a_model(tmp_path):
    estimator = ExactWhereSmall(Krylov(probes=3), limit=4)
    flow = small_vector_flow(3, log_det=estimator)
    flow.enforce()
    flow.save(tmp_path / "flow.pt")
    assert load(tmp_path / "flow.pt").log_det == estimator
    with pytest.raises(ValueError, match="0 or more, got -1"):
        replace(estimator, limit=-1)
