"""How well scores tell outliers apart, by counting pairs; intervals, by what they hold."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from iresflow.ood import evaluate
from iresflow.ood.separation import _metrics


def by_hand(inside, outside):
    pairs = np.sign(outside[:, None] - inside[None])
    auroc = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    aupr, found, best = 0.0, 0.0, 1.0
    for threshold in np.unique(np.concatenate([inside, outside]))[::-1]:
        true, false = (outside >= threshold).mean(), (inside >= threshold).mean()
        hits, wrong = (outside >= threshold).sum(), (inside >= threshold).sum()
        aupr += (true - found) * hits / (hits + wrong)
        found = true
        if true >= 0.95:
            best = min(best, false)
    return auroc, aupr, best


@pytest.mark.parametrize("ties", [False, True])
def test_the_numbers_are_those_of_counted_pairs(ties):
    generator = np.random.default_rng(0)
    inside, outside = generator.normal(size=60), generator.normal(1, 1, size=45)
    if ties:
        inside, outside = inside.round(), outside.round()
    found = evaluate(inside, torch.from_numpy(outside), resamples=3)
    assert (found.auroc, found.aupr, found.fpr95) == pytest.approx(by_hand(inside, outside))
    truth = np.repeat([0, 1], [60, 45]), np.concatenate([inside, outside])
    assert found.auroc == pytest.approx(roc_auc_score(*truth))
    assert found.aupr == pytest.approx(average_precision_score(*truth))


def test_a_resample_has_the_numbers_of_the_samples_that_it_repeats():
    generator = np.random.default_rng(0)
    inside, outside = generator.normal(size=20).round(1), generator.normal(1, 1, 15).round(1)
    counts = generator.multinomial(20, [1 / 20] * 20), generator.multinomial(15, [1 / 15] * 15)
    found = _metrics(np.concatenate([inside, outside]), *(count[None] for count in counts))
    repeated = np.repeat(inside, counts[0]), np.repeat(outside, counts[1])
    assert found[:, 0] == pytest.approx(by_hand(*repeated))


def test_infinite_scores_count_by_their_order():
    found = evaluate([0.0, 1.0, 2.0], [np.inf, np.inf, 1.5], resamples=3)
    assert found.auroc == pytest.approx(8 / 9)
    assert evaluate([0.0, np.inf], [np.inf], resamples=3).auroc == pytest.approx(0.75)
    apart = evaluate(np.arange(5.0), np.arange(5.0) + 5)
    assert (apart.auroc, apart.aupr, apart.fpr95) == (1, 1, 0)
    assert evaluate(np.arange(5.0) + 5, np.arange(5.0)).auroc == 0


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    truth, level, trials = norm.cdf(1 / 2**0.5), 0.9, 300
    ends = []
    for trial in range(trials):
        inside, outside = generator.normal(size=40), generator.normal(1, 1, size=50)
        found = evaluate(inside, outside, resamples=100, level=level, seed=trial)
        ends.append((*found.auroc_interval, found.auroc))
    low, high, middle = np.array(ends).T

    def held(share):
        above, below = middle + share * (high - middle), middle - share * (middle - low)
        return ((below <= truth) & (truth <= above)).mean()

    slack = 4 * (level * (1 - level) / trials) ** 0.5
    assert held(1.0) >= level - slack
    assert held(0.3) < level - slack
    shifted = ((low + 0.08 <= truth) & (truth <= high + 0.08)).mean()
    assert shifted < level - slack


def test_intervals_repeat_and_narrow():
    generator = np.random.default_rng(0)
    few = evaluate(generator.normal(size=30), generator.normal(1, 1, 30))
    many = evaluate(generator.normal(size=3000), generator.normal(1, 1, 3000), resamples=50)
    for name in ("auroc", "aupr", "fpr95"):
        low, high = getattr(few, f"{name}_interval")
        assert low <= getattr(few, name) <= high
        narrow = getattr(many, f"{name}_interval")
        assert narrow[1] - narrow[0] < 0.5 * (high - low)
    scores = np.arange(9.0), np.arange(9.0) + 2.5
    assert evaluate(*scores) == evaluate(*scores)
    assert evaluate(*scores) != evaluate(*scores, seed=1)


@pytest.mark.parametrize(
    ("inside", "outside", "options", "message"),
    [
        ([], [1.0], {}, "inside"),
        ([1.0], torch.zeros(0), {}, "outside"),
        ([[1.0]], [1.0], {}, "shape"),
        ([1.0], [np.nan], {}, "1 of the scores outside are NaN"),
        ([1.0], [1.0], {"level": 1.0}, "level"),
        ([1.0], [1.0], {"resamples": 0}, "resamples"),
    ],
)
def test_what_is_refused(inside, outside, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(inside, outside, **options)
