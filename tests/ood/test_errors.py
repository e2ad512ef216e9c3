"""What the error bars of scores hold, counted; and that a sample's score is its own."""

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import dense_jacobian, perturb, small_image_flow, small_vector_flow
from sklearn.base import BaseEstimator
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from iresflow import Exact, ImageFlow, VectorFlow
from iresflow.ood import (
    Complexity,
    DensityOfStates,
    LatentFit,
    LikelihoodRatio,
    LocalDimension,
    LogProb,
    Panel,
    ScoreNorm,
    Scoring,
    Typicality,
)
from iresflow.ood.draws import Draws, estimator_of, limits_of, seeds_of
from iresflow.ood.jacobian import FlowJacobian
from iresflow.ood.quadrature import resolvent_bounds
from iresflow.ood.score_norm import _unbiased
from iresflow.ood.scores import Scores
from iresflow.ood.states import StateDensity
from iresflow.tensors import rademacher

pytestmark = pytest.mark.usefixtures("native_passes")

LEVEL = 0.8
SCORING = Scoring(draws=4, probes=2, level=LEVEL)
COUNT = 150


def wide_vector_flow(dim=40):
    """More dimensions than are treated exactly."""
    flow = VectorFlow(dim, blocks=3, hidden=16)
    flow.initialize(torch.randn(200, dim))
    return perturb(flow, 0.3)


def tiny_image_flow():
    """Few dimensions, where the dequantisation noise alone is random."""
    flow = ImageFlow((1, 2, 2), (2,), 6, levels=5)
    flow.initialize(flow.dequantize(torch.randint(0, 5, (64, 1, 2, 2))))
    return perturb(flow, 0.2)


def held(scores, truth, share=1.0):
    """How often error bars of a share of their size hold the truth."""
    above = truth - scores.values
    ends = share * (scores.low - scores.values), share * (scores.high - scores.values)
    return float(((ends[0] <= above) & (above <= ends[1])).double().mean())


def cover(scores, truth):
    """At least the level, up to 4 standard errors; bars that are too narrow are found out."""
    least = LEVEL - 4 * (LEVEL * (1 - LEVEL) / len(truth)) ** 0.5
    return held(scores, truth, 0.4) < least <= held(scores, truth)


def distinct_images(flow, count):
    """Images that differ, whose errors are independent, so that they can be counted."""
    top = flow.levels
    numbers = torch.randperm(top**4)[:count]
    return torch.stack([numbers // top**k % top for k in range(4)], 1).view(-1, 1, 2, 2)


def mean_over_noise(function, flow, images, draws=250):
    """Means ``(N,)`` over the noise of a function of floats, and their standard errors."""
    with torch.no_grad():
        values = function(flow.dequantize(images.repeat_interleave(draws, 0)))
    values = values.view(len(images), draws)
    return values.mean(1), values.std(1) / draws**0.5


def test_error_bars_of_log_prob_hold_it_where_probes_are_random():
    flow, x = wide_vector_flow(70), torch.randn(COUNT, 70)
    with torch.no_grad():
        truth = -flow.log_prob(x, log_det=Exact())
    for score in (LogProb(SCORING), Typicality(SCORING)):
        fitted = score.fit(flow, x[:50])
        exact = truth
        if isinstance(score, Typicality):
            exact = (truth - LogProb(SCORING).fit(flow, x).score(x[:50]).mean()).abs()
        assert cover(fitted.scores(x), exact)


def test_what_is_exact_is_drawn_once():
    for dim, values, gradients in ((3, 1, 1), (40, 1, 4), (70, 4, 4)):
        flow = VectorFlow(dim, blocks=1, hidden=4)
        limits = limits_of(flow, SCORING)
        assert len(seeds_of(flow, SCORING, limits.values)) == values
        assert len(seeds_of(flow, SCORING, limits.gradients)) == gradients
    flow = VectorFlow(70, blocks=1, hidden=4, log_det=Exact())
    assert len(seeds_of(flow, SCORING, limits_of(flow, SCORING).gradients)) == 1
    images = tiny_image_flow()
    assert len(seeds_of(images, SCORING, limits_of(images, SCORING).values)) == 4


def test_error_bars_of_an_image_hold_the_mean_over_its_noise():
    flow = tiny_image_flow()
    images = distinct_images(flow, 120)
    surprisal, error = mean_over_noise(lambda x: -flow.log_prob(x) + 4 * np.log(5), flow, images)
    found = LogProb(SCORING).fit(flow, images).scores(images)
    assert float((error / found.errors).median()) < 0.2  # of the oracle
    assert cover(found, surprisal)
    assert held(found, surprisal + 2 * found.errors) < LEVEL / 2
    background = perturb(tiny_image_flow(), 0.2)
    ratio, _ = mean_over_noise(lambda x: background.log_prob(x) - flow.log_prob(x), flow, images)
    fitted = LikelihoodRatio(background, scoring=SCORING).fit(flow, images)
    assert cover(fitted.scores(images), ratio)


def test_the_noise_of_a_ratio_cancels():
    flow = tiny_image_flow()
    images = distinct_images(flow, 50)
    alone = LogProb(SCORING).fit(flow, images).errors(images)
    same = LikelihoodRatio(flow, scoring=SCORING).fit(flow, images).scores(images)
    assert float(same.values.abs().max()) < 1e-9
    assert float(same.errors.max()) < 1e-9 < float(alone.min())


def test_error_bars_of_the_score_norm_hold_it_and_the_naive_norm_is_too_large():
    flow, x = wide_vector_flow(), 0.3 * torch.randn(COUNT, 40)
    y = flow.data_map.transform(x).requires_grad_()
    z, log_det = flow.bijection(y, None, Exact())
    gradient = torch.autograd.grad((flow.base.log_prob(z) + log_det).sum(), y)[0]
    truth = gradient.norm(dim=1)
    found = ScoreNorm(SCORING).fit(flow, x).scores(x)
    assert cover(found, truth)
    difference = found.values - truth
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / COUNT**0.5


def test_the_squared_norm_of_a_noisy_gradient_is_not_biased():
    truth = torch.randn(7)
    draws = truth + 2 * torch.randn(4, 20_000, 7)
    found, naive = _unbiased(draws), draws.mean(0).square().sum(1)
    for values, fair in ((found, True), (naive, False)):
        away = abs(float(values.mean() - truth.square().sum()))
        assert (away < 4 * float(values.std()) / 20_000**0.5) is fair


def test_error_bars_of_the_score_norm_of_images():
    flow = tiny_image_flow()
    images = distinct_images(flow, 100)
    many = flow.dequantize(images.repeat_interleave(250, 0))
    y = flow.data_map.transform(many).requires_grad_()
    z, log_det = flow.bijection(y, None, Exact())
    gradient = torch.autograd.grad((flow.base.log_prob(z) + log_det).sum(), y)[0]
    truth = gradient.view(len(images), 250, -1).mean(1).norm(dim=1)
    assert cover(ScoreNorm(SCORING).fit(flow, images).scores(images), truth)


def test_error_bars_of_the_fit_of_latents_hold_the_mean_over_the_noise():
    flow = tiny_image_flow()
    images = distinct_images(flow, 150)
    measure = LatentFit(SCORING).prepare(flow, images, None)
    # The oracle: the same distance with many other draws.
    many = Scoring(draws=200, level=LEVEL, seed=1)
    again = partial(measure.func, many, *measure.args[1:])
    draws = Draws(flow, images, None)
    assert cover(measure(draws), again(draws).values)


def test_latents_without_log_determinants_are_drawn_more_often(monkeypatch):
    flow, calls = tiny_image_flow(), []
    images = distinct_images(flow, 20)
    original = ImageFlow.dequantize
    monkeypatch.setattr(
        ImageFlow, "dequantize", lambda self, *given: calls.append(1) or original(self, *given)
    )
    fitted = LatentFit(SCORING).fit(flow, images)
    assert len(calls) == 1
    few, calls[:] = fitted.scores(images), []
    fitted.scores(images)
    assert len(calls) == 4 * SCORING.draws
    coarse = replace(SCORING, draws=2)
    assert bool(
        (few.errors < LatentFit(coarse).fit(flow, images).errors(images)).double().mean() > 0.8
    )


def test_both_quadratures_bracket_the_form_and_meet():
    flow, x = wide_vector_flow(), torch.randn(5, 40)
    jacobian = FlowJacobian(flow, x, None)
    dense = dense_jacobian(flow.bijection.transform, flow.data_map.transform(x))
    probes = rademacher(3, jacobian.point)
    shift = 2.0
    inverse = torch.linalg.inv(torch.eye(40) + dense.mT @ dense / shift)
    exact = torch.einsum("kbi,bij,kbj->kb", probes, inverse, probes).mean(0)
    gaps = []
    for steps in (1, 2, 4, 8, 40):
        low, high = resolvent_bounds(jacobian, probes, shift, steps)
        assert bool((low <= exact + 1e-9).all()) and bool((high >= exact - 1e-9).all())
        gaps.append(float((high - low).max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 1 and gaps[-1] < 1e-9


@pytest.mark.parametrize("block", ["residual", "monotone"])
@pytest.mark.parametrize("make", [small_vector_flow, small_image_flow])
def test_products_are_those_of_the_dense_jacobian(make, block):
    flow = make(block=block)
    x = torch.rand(3, *flow.shape)
    jacobian = FlowJacobian(flow, x, None)
    dense = dense_jacobian(flow.bijection.transform, flow.data_map.transform(x))
    v = torch.randn(2, *jacobian.point.shape)
    for product, formula in ((jacobian.jvp, "bij,kbj->kbi"), (jacobian.vjp, "bij,kbi->kbj")):
        torch.testing.assert_close(
            product(v).flatten(2), torch.einsum(formula, dense, v.flatten(2))
        )
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(jacobian.rows(rows).jvp(v[:, rows]), jacobian.jvp(v)[:, rows])


def test_error_bars_of_the_local_dimension():
    flow, x = wide_vector_flow(), torch.randn(COUNT, 40)
    fitted = LocalDimension(SCORING, steps=20).fit(flow, x[:50])
    width = LocalDimension(SCORING).prepare(flow, x[:50], None).args[0]
    dense = dense_jacobian(flow.bijection.transform, flow.data_map.transform(x))
    values = torch.linalg.svdvals(dense)
    truth = -(1 / (1 + (values / width).square())).sum(1)
    assert cover(fitted.scores(x), truth)
    # A few steps widen the bars by what the brackets leave open.
    coarse = LocalDimension(SCORING, steps=1).fit(flow, x[:50]).scores(x)
    assert held(coarse, truth) > LEVEL
    assert bool((coarse.errors > fitted.errors(x).mean()).all())


def test_error_bars_of_a_density_of_states():
    flow, x = wide_vector_flow(70), torch.randn(COUNT, 70)
    with torch.no_grad():
        exact = -flow.log_prob(x, log_det=Exact())
    states = DensityOfStates((LogProb(SCORING), LatentFit(SCORING)))
    fitted = states.fit(flow, x[:100])
    inside = [part.fit(flow, x[:100]).scores(x[:100]) for part in states.parts]
    latents = LatentFit(SCORING).fit(flow, x[:100]).scores(x)
    zero = torch.zeros_like(exact)
    scores = type(latents)
    parts = [scores.around(exact, zero), scores.around(latents.values, zero)]
    truth = states.combine(flow, x[:100], inside)(flow, x, parts).values
    assert cover(fitted.scores(x), truth)


def normal_state(values):
    """Minus the log-density of a standard normal state."""
    return 0.5 * values**2 + 0.5 * np.log(2 * np.pi)


class StandardNormal(BaseEstimator):
    """Each statistic is standard normal, whatever it is fitted to."""

    def fit(self, X):
        return self

    def score_samples(self, X):
        return -normal_state(X).sum(1)


def test_error_bars_of_a_state_are_as_long_as_the_density_falls_to_either_side():
    density = StateDensity.fit([torch.randn(9)], StandardNormal())
    middle = torch.tensor([5.0, 0.5, -0.5, 0.0])
    statistic = Scores(middle, middle - torch.tensor([1.0, 2.0, 0.2, 3.0]), middle + 1.0)
    found = density(small_vector_flow(), torch.zeros(4, 3), [statistic])
    # The second, third and fourth bars hold the density's peak.
    expected = [
        [4.0, 0.0, -0.5, 0.0],
        [5.0, 0.5, -0.5, 0.0],
        [6.0, 1.5, -0.7, 3.0],
    ]
    low, values, high = (normal_state(torch.tensor(row)) for row in expected)
    low[2] = normal_state(torch.tensor(0.0))
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.high, high)
    assert bool((found.low >= low - 1e-12).all()) and bool((found.low <= low + 0.02).all())
    assert found.low[0] == pytest.approx(float(low[0]))


def test_what_is_rare_for_certain_is_decided_however_rare_it_may_be():
    """An error bar down to where the density all but ends is long to that side only."""
    norms = 100 * torch.rand(300).exp()
    logs = make_pipeline(
        FunctionTransformer(np.log), StandardScaler(), KernelDensity(bandwidth="scott")
    )
    density = StateDensity.fit([norms], logs)
    inside = density(None, norms, [Scores.around(norms, torch.zeros(300))])
    threshold = float(inside.values.quantile(0.95))
    small = torch.tensor([20.0])
    found = density(None, small, [Scores(small, torch.tensor([1e-6]), torch.tensor([30.0]))])
    assert found.errors > 10 * (found.values - threshold)
    assert bool(found.decide(threshold).outlying) and not bool(found.decide(threshold).undecided)
    wide = density(None, small, [Scores(small, torch.tensor([1e-6]), torch.tensor([150.0]))])
    assert bool(wide.decide(threshold).undecided)


SCORES = [
    LogProb(SCORING),
    Typicality(SCORING),
    Complexity(SCORING),
    ScoreNorm(SCORING),
    LatentFit(SCORING),
    LocalDimension(SCORING, steps=3),
    DensityOfStates((LogProb(SCORING), LatentFit(SCORING))),
]


@pytest.mark.parametrize("score", SCORES, ids=lambda score: type(score).__name__)
def test_a_sample_has_the_same_score_in_any_batch(score):
    flow = small_image_flow(levels=17)
    images = torch.randint(0, 17, (8, 2, 4, 4))
    state = torch.random.get_rng_state()
    fitted = score.fit(flow, images)
    whole = fitted.scores(images)
    assert torch.equal(torch.random.get_rng_state(), state)
    for rows in (torch.arange(8).flip(0), torch.tensor([3]), torch.tensor([0, 6, 5])):
        part = fitted.scores(images[rows])
        torch.testing.assert_close(part.values, whole.values[rows], rtol=1e-6, atol=1e-4)
        for name in ("low", "high"):
            ends = getattr(part, name), getattr(whole, name)[rows]
            torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


def test_a_panel_gives_what_its_scores_give_by_themselves():
    flow = small_image_flow(levels=17)
    images = torch.randint(0, 17, (12, 2, 4, 4))
    found = Panel(flow, SCORES, images).scores(images[:5])
    for score, part in zip(SCORES, found, strict=True):
        alone = score.fit(flow, images).scores(images[:5])
        torch.testing.assert_close(part.values, alone.values, rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(part.errors, alone.errors, rtol=1e-3, atol=1e-4)


def count_passes(monkeypatch, flow):
    """Counts of the passes through a flow's blocks: with log-determinants, of latents alone."""
    kind, counts = type(flow.bijection), Counter()

    def counting(name, original):
        def counted(self, *given):
            counts[name] += 1
            return original(self, *given)

        monkeypatch.setattr(kind, name, counted)

    for name in ("forward", "transform"):
        counting(name, getattr(kind, name))
    return counts


def test_a_panel_makes_each_pass_once(monkeypatch):
    """One with a gradient for each draw; latents take more draws, whose passes are their own."""
    flow = small_image_flow(levels=17)
    images = torch.randint(0, 17, (6, 2, 4, 4))
    states = DensityOfStates((Complexity(SCORING), ScoreNorm(SCORING)))
    scores = [
        LatentFit(SCORING),
        LogProb(SCORING),
        Typicality(SCORING),
        ScoreNorm(SCORING),
        states,
    ]
    panel = Panel(flow, scores, images)
    counts = count_passes(monkeypatch, flow)
    for of_some, forward, transform in (
        (panel, SCORING.draws, 3 * SCORING.draws),
        (Panel(flow, scores[1:3], images), SCORING.draws, 0),
        (LatentFit(SCORING).fit(flow, images).panel, 0, 4 * SCORING.draws),
    ):
        counts.clear()
        of_some.scores(images)
        assert (counts["forward"], counts["transform"]) == (forward, transform)


def test_other_probes_or_another_seed_are_other_passes(monkeypatch):
    flow = small_image_flow(levels=17)
    images = torch.randint(0, 17, (4, 2, 4, 4))
    others = replace(SCORING, probes=3), replace(SCORING, seed=1), replace(SCORING, level=0.5)
    panel = Panel(flow, [ScoreNorm(SCORING), *(LogProb(other) for other in others)], images)
    counts = count_passes(monkeypatch, flow)
    panel.scores(images)
    assert counts["forward"] == 3 * SCORING.draws  # the level alone changes nothing that is drawn


@pytest.mark.parametrize("noise", ["uniform", "variational"])
def test_a_pass_with_a_gradient_gives_what_others_give(noise):
    flow = small_image_flow(levels=17, dequantization=noise)
    images = torch.randint(0, 17, (5, 2, 4, 4))
    steep, plain = Draws(flow, images, None), Draws(flow, images, None)
    gradient = steep.gradient(SCORING, 3)
    one, other = (draws.likelihood(SCORING, 3) for draws in (steep, plain))
    own = flow.bits_per_dim(images, log_det=estimator_of(flow, SCORING), seed=3).likelihood
    nats = own.log_prob - flow.base_dim * np.log(flow.levels)
    torch.testing.assert_close(one.log_prob, nats, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(other.log_prob, nats)
    for name in ("variance", "degrees", "truncation_bound", "rounding"):
        torch.testing.assert_close(getattr(other, name), getattr(own, name))
    torch.testing.assert_close(steep.latent(3), flow.transform(plain.noisy(3)[0]))
    assert gradient.shape == (5, flow.base_dim) and not gradient.requires_grad
    assert not steep.likelihood(SCORING, 3).log_prob.requires_grad


def test_draws_of_another_seed_are_others():
    flow = small_image_flow(levels=17)
    images = torch.randint(0, 17, (4, 2, 4, 4))
    first, second = (
        LogProb(Scoring(seed=seed)).fit(flow, images).score(images) for seed in (0, 1)
    )
    assert not bool(((first - second).abs() < 1e-6).any())


def test_a_decision_within_the_error_bar_is_none():
    flow = small_image_flow(levels=17)
    images = torch.randint(0, 17, (30, 2, 4, 4))
    fitted = LogProb().fit(flow, images)
    found = fitted.scores(images)
    threshold = float(found.values.median())
    said = fitted.decide(images, threshold)
    outcomes = torch.stack([said.outlying, said.inside, said.undecided])
    assert bool((outcomes.sum(0) == 1).all()) and bool(outcomes.any(1).all())
    assert torch.equal(said.undecided, (found.low <= threshold) & (found.high > threshold))
    assert bool((found.low <= found.values).all() & (found.values <= found.high).all())
    torch.testing.assert_close(
        found.errors, torch.maximum(found.values - found.low, found.high - found.values)
    )
    assert bool((found.values[said.outlying] > threshold).all())
    assert bool((found.values[said.inside] < threshold).all())


def test_a_threshold_is_exceeded_by_the_share_that_was_asked_for():
    values = torch.randperm(200).double()
    scores = Scores.around(values, torch.zeros(200))
    for share in (0.0, 0.05, 0.07, 0.5, 0.995):
        assert int((values > scores.threshold(share)).sum()) == round(200 * share)
    far = torch.cat([values, torch.full((200,), torch.inf)])
    half = Scores.around(far, torch.zeros(400))
    assert half.threshold(0.5) == 199 and half.threshold(0.49) == torch.inf
    assert bool(half.decide(torch.inf).inside.all())
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="share"):
            scores.threshold(share)
