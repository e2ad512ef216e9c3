"""Classification by Bayes' rule, against exact posteriors."""

import pytest
import torch
from helpers import small_image_flow, small_vector_flow

from iresflow import Exact, Krylov, PowerSeries
from iresflow.models.generative import by_bayes
from iresflow.models.likelihood import Likelihood

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
    exact = exact_joint(flow, x, prior).softmax(1)
    held, narrow, wrong, open_ = 0, 0, 0, 0
    rounds = 5
    for seed in range(rounds):
        found = flow.classify(x, level=0.8, seed=seed, log_det=Krylov(tol=1e-6, probes=3))
        inside = (found.lower <= exact) & (exact <= found.upper)
        held += int(inside.all(1).sum())
        wrong += int((found.decided & (found.classes != exact.argmax(1))).sum())
        open_ += int((~found.decided).sum())
        # The control: intervals a sixth as wide.
        middle, half = (found.lower + found.upper) / 2, (found.upper - found.lower) / 12
        narrow += int(((exact - middle).abs() <= half).all(1).sum())
    count = rounds * len(x)
    slack = 4 * (0.8 * 0.2 / count) ** 0.5
    assert held / count > 0.8 - slack and narrow / count < 0.8 - slack
    assert wrong / count <= 0.2 and 0 < open_ < count


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


def certain(log_prob, half):
    """Likelihoods of one class that are known to plus or minus ``half``, in any case."""
    zero = torch.zeros_like(log_prob)
    return Likelihood(log_prob, zero, zero + torch.inf, half, zero)


def test_the_ends_are_the_extreme_posteriors():
    log_prob = torch.randn(5, CLASSES)
    half = torch.rand(5, CLASSES)
    half[3] = torch.inf
    log_prior = torch.tensor([0.5, 0.25, 0.25]).log()
    found = by_bayes(lambda c: certain(log_prob[:, c], half[:, c]), log_prior, 0.9)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * CLASSES)
    ends = torch.stack([(log_prior + log_prob + c * half).softmax(1) for c in corners])
    finite = [0, 1, 2, 4]
    torch.testing.assert_close(found.lower[finite], ends.amin(0)[finite])
    torch.testing.assert_close(found.upper[finite], ends.amax(0)[finite])
    assert found.lower[3].tolist() == [0, 0, 0] and found.upper[3].tolist() == [1, 1, 1]
    assert not bool(found.decided[3])
    best = ends.argmax(2)
    always = (best == best[0]).all(0)
    assert bool((always | ~found.decided)[finite].all())


def test_a_class_of_probability_zero_is_impossible_and_nan_is_seen():
    log_prob = torch.zeros(2, CLASSES)
    log_prob[1, 2] = torch.nan
    log_prior = torch.tensor([0.5, 0.5, 0.0]).log()
    half = torch.full((2, CLASSES), torch.inf)
    found = by_bayes(lambda c: certain(log_prob[:, c], half[:, c]), log_prior, 0.9)
    assert found.upper[0].tolist() == [1, 1, 0]
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
