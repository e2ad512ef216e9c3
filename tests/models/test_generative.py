"""Classification by Bayes' rule, against exact posteriors."""

import pytest
import torch
from helpers import small_image_flow, small_vector_flow

from iresflow import Exact, Krylov, PowerSeries
from iresflow.logdet import DifferentiableSeries, LogDetEstimate
from iresflow.models.generative import by_bayes
from iresflow.models.likelihood import BlockLikelihood, sample_stream

CLASSES = 3


def conditional(dim=40):
    """A flow whose log-determinants are estimated in eval mode: above 32 dimensions."""
    return small_vector_flow(dim, context_dim=CLASSES, learned_prior=True, log_det=PowerSeries())


def exact_joint(flow, x, prior):
    one_hot = torch.eye(CLASSES)
    columns = [flow.log_prob(x, one_hot[c : c + 1], Exact()).detach() for c in range(CLASSES)]
    return torch.stack(columns, 1) + prior.log()


@pytest.mark.parametrize("prior", [None, (0.7, 0.2, 0.1)])
def test_probabilities_are_those_of_bayes(prior):
    flow = small_image_flow(context_dim=CLASSES)
    x = flow.dequantize(torch.randint(0, 256, (6, 2, 4, 4)))
    weights = torch.full((CLASSES,), 1 / CLASSES) if prior is None else torch.tensor(prior)
    found = flow.classify(x, None if prior is None else torch.tensor(prior), seed=1)
    expected = exact_joint(flow, x, weights).softmax(1)
    torch.testing.assert_close(found.probabilities, expected, rtol=1e-8, atol=1e-10)
    assert torch.equal(found.classes, expected.argmax(1)) and found.level == 0.95
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(6))
    assert bool((found.lower <= expected).all() and (expected <= found.upper).all())


def test_intervals_hold_as_often_as_they_say():
    flow, prior = conditional(), torch.full((CLASSES,), 1 / CLASSES)
    x = 1.5 * torch.randn(400, 40)
    joint = exact_joint(flow, x, prior)
    exact = joint.softmax(1)
    held, apart_held, narrow, wrong, open_, of_each = 0, 0, 0, 0, 0, 0
    rounds, level = 5, 0.8
    for seed in range(rounds):
        found = flow.classify(x, level=level, seed=seed, log_det=Krylov(tol=1e-6, probes=3))
        inside = (found.lower <= exact) & (exact <= found.upper)
        held += int(inside.all(1).sum())
        off = found.log_odds - (joint - joint.gather(1, found.classes[:, None]))
        apart_held += int((off.abs() <= found.log_odds_error).all(1).sum())
        # The control: intervals an eighth as wide.
        narrow += int((off.abs() <= found.log_odds_error / 8).all(1).sum())
        wrong += int((found.decided & (found.classes != exact.argmax(1))).sum())
        open_ += int((~found.decided).sum())
        of_each += int((~decided_by_each(flow, x, level, seed)).sum())
    count = rounds * len(x)
    slack = 4 * (level * (1 - level) / count) ** 0.5
    assert min(held, apart_held) / count > level - slack and narrow / count < level - slack
    assert wrong / count <= 1 - level and 0 < open_ < 0.8 * of_each


def decided_by_each(flow, x, level, seed):
    """Which samples intervals of each class by itself would decide, by as many probes."""
    each = 1 - (1 - level) / CLASSES
    found = [
        flow.likelihood(x, c[None], Krylov(tol=1e-6, probes=3), seed=seed).interval(each)
        for c in torch.eye(CLASSES)
    ]
    low, high = (torch.stack(ends, 1) for ends in zip(*found, strict=True))
    best = ((low + high) / 2).argmax(1, keepdim=True)
    others = high.scatter(1, best, -torch.inf).amax(1)
    return low.gather(1, best)[:, 0] > others


@pytest.mark.parametrize(
    "estimator",
    [
        Krylov(tol=1e-6, probes=6),
        PowerSeries(20, probes=6),
        DifferentiableSeries(20, probes=6),
    ],
)
def test_the_spread_of_paired_probes_is_that_of_the_difference(estimator):
    """Over many seeds, the variance of a difference is what its terms say in the mean."""
    flow, x = conditional(), 1.5 * torch.randn(60, 40)
    first, second = torch.eye(CLASSES)[:2]

    def ratio(seed):
        one, other = (
            flow._in_blocks(x, c.expand(len(x), -1), estimator, sample_stream((x,), None, seed))
            for c in (first, second)
        )
        return one.ratio_to(other), one.total(), other.total()

    with torch.no_grad():
        found = [ratio(seed) for seed in range(36)]
    exact = exact_joint(flow, x, torch.ones(CLASSES))
    off = torch.stack([r.log_prob for r, _, _ in found]) - (exact[:, 0] - exact[:, 1])

    def surplus(variances):
        """Of the squared errors over what is said of them, in standard errors."""
        difference = (off.square() - torch.stack(variances)).flatten()
        return float(difference.mean() / difference.std() * len(difference) ** 0.5)

    assert abs(surplus([r.variance for r, _, _ in found])) < 4
    # The control: errors of the two as if they were independent.
    assert surplus([a.variance + b.variance for _, a, b in found]) < -4


def test_estimators_without_terms_add_their_errors():
    one = estimate(torch.zeros(2), variance=4.0, degrees=5)
    other = estimate(torch.ones(2), variance=9.0, degrees=3)
    found = one.minus(other)
    assert found.variance.tolist() == [25, 25] and found.degrees == 3 and found.terms is None
    assert found.value.tolist() == [-1, -1]


def test_errors_of_the_probes_cancel_between_the_classes():
    flow = conditional()
    x, one_hot = 1.5 * torch.randn(200, 40), torch.eye(CLASSES)
    exact = exact_joint(flow, x, torch.ones(CLASSES))
    probes = Krylov(tol=1e-6, probes=2)
    apart = torch.stack(
        [flow.likelihood(x, one_hot[c : c + 1], probes, seed=0).log_prob for c in range(CLASSES)],
        dim=1,
    )
    common = flow.classify(x, log_det=probes, seed=0).log_prob

    def errors(found):
        """In root mean square: of a log-density, and of differences between classes."""
        off = found - exact
        spread = off - off.mean(1, keepdim=True)
        return float(off.square().mean().sqrt()), float(spread.square().mean().sqrt())

    of_one, of_difference = errors(common)
    assert of_difference < 0.6 * of_one
    control_of_one, control = errors(apart)  # with other probes for each class
    assert 0.7 * control_of_one < of_one < 1.4 * control_of_one and of_difference < 0.7 * control


def estimate(value, variance=0.0, truncation=0.0, degrees=torch.inf):
    zero = torch.zeros_like(value)
    variance, truncation = zero + variance, zero + truncation
    return LogDetEstimate(value, value, variance, truncation, zero, zero, degrees)


def certain(log_prob, half):
    """Likelihoods of one class that are known to plus or minus ``half``, in any case."""
    return BlockLikelihood(log_prob, [estimate(log_prob, 0.0, half)], torch.zeros_like(log_prob))


def test_the_ends_are_the_extreme_posteriors():
    log_prob = torch.randn(5, CLASSES)
    half = torch.rand(5, CLASSES)
    half[3] = torch.inf
    log_prior = torch.tensor([0.5, 0.25, 0.25]).log()
    found = by_bayes(lambda c: certain(log_prob[:, c], half[:, c]), log_prior, 0.9)
    finite = [0, 1, 2, 4]
    for c in range(CLASSES):
        signs = 1 - 2 * torch.eye(CLASSES)[c]  # of the others, if that of c is -1
        for sign, end in ((1, found.lower), (-1, found.upper)):
            # The difference of two is known to the sum of their halves.
            extreme = (log_prior + log_prob + sign * signs * half).softmax(1)[:, c]
            torch.testing.assert_close(end[finite, c], extreme[finite])
    assert found.lower[3].tolist() == [0, 0, 0] and found.upper[3].tolist() == [1, 1, 1]
    assert not bool(found.decided[3])
    joint = log_prior + log_prob
    best = joint.argmax(1, keepdim=True)
    torch.testing.assert_close(found.log_odds, joint - joint.gather(1, best))
    ends = joint + half - (joint - half).gather(1, best)
    expected = (ends.scatter(1, best, -torch.inf) < 0).all(1)
    assert torch.equal(found.decided, expected) and 0 < int(expected.sum()) < 5


def test_a_class_of_probability_zero_is_impossible_and_nan_is_seen():
    log_prob = torch.zeros(2, CLASSES)
    log_prob[0, 1], log_prob[1, 2] = -1.0, torch.nan
    log_prior = torch.tensor([0.5, 0.5, 0.0]).log()
    half = torch.full((2, CLASSES), torch.inf)
    found = by_bayes(lambda c: certain(log_prob[:, c], half[:, c]), log_prior, 0.9)
    assert found.upper[0].tolist() == [1, 1, 0] and found.lower[0].tolist() == [0, 0, 0]
    half[:, :2] = 0.1  # nothing is known of the impossible class, and nothing has to be
    found = by_bayes(lambda c: certain(log_prob[:, c], half[:, c]), log_prior, 0.9)
    assert bool(found.decided[0]) and found.log_odds[0, 2] == -torch.inf
    found = by_bayes(lambda c: certain(log_prob[:, c], 0 * half[:, c]), torch.zeros(3), 0.9)
    assert bool(found.probabilities[1].isnan().all()) and not bool(found.decided[1])
    assert bool(found.lower[1].isnan().all()) and bool(found.upper[1].isnan().all())


def test_bad_input_is_refused():
    flow, x = conditional(), torch.randn(2, 40)
    with pytest.raises(ValueError, match="has no classes"):
        small_vector_flow().classify(torch.randn(2, 3))
    for prior in ((0.5, 0.5), (0.5, 0.6, -0.1), (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="3 probabilities that add up to 1"):
            flow.classify(x, torch.tensor(prior))
    with pytest.raises(ValueError, match="level"):
        flow.classify(x, level=1.0)
    with pytest.raises(ValueError, match="samples of shape"):
        flow.classify(x[:, 1:])
