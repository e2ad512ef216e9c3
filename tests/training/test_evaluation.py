import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import numbers_of

from iresflow import Exact, ImageFlow, PowerSeries, VectorFlow
from iresflow.data import Split, load_dataset
from iresflow.errors import NonFiniteError
from iresflow.models.storage import write_file
from iresflow.training.evaluation.evaluate import Precision, evaluate
from iresflow.training.evaluation.rounds import Evaluation, Scores

pytestmark = pytest.mark.usefixtures("native_passes")

SEEDS = 20


@pytest.fixture(scope="module")
def digits_flow():
    """A flow small enough for dense Jacobians, after some steps on real digits, and digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    data = load_dataset("digits")
    flow = ImageFlow(
        (1, 8, 8), (1, 1), 8, levels=17, coeff=0.98, alpha=0.05, log_det=PowerSeries(30, tol=1e-4)
    )
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    flow.initialize(flow.dequantize(data.train.values[:200]))
    for step in range(60):
        images = data.train.values[32 * step % 1000 :][:32]
        optimizer.zero_grad()
        (-flow.log_prob(flow.dequantize(images)).mean()).backward()
        optimizer.step()
    flow.eval().enforce()
    flow.EVALUATION = replace(flow.EVALUATION, values=32)  # estimated, as of larger images
    torch.set_default_dtype(before)
    return flow, Split(data.test.values[:24], None)


def exact_scores(flow, split, precision):
    """The same rounds of the same noise with dense Jacobians, one evaluation for each seed."""
    stochastic, flow.log_det = flow.log_det, Exact()
    try:
        return [evaluate(flow, split, seed=s, precision=precision) for s in range(SEEDS)]
    finally:
        flow.log_det = stochastic


def test_claimed_errors_cover_the_exact_evaluation(digits_flow):
    flow, split = digits_flow
    precision = Precision(tol=0.02)
    claims = [evaluate(flow, split, seed=s, precision=precision) for s in range(SEEDS)]
    assert all(claim.met and 0 < claim.truncation_bound < 2e-3 for claim in claims)
    # The expectation over the noise, by exact evaluations of as many draws.
    exact = exact_scores(flow, split, Precision(repeated=24))
    centre = sum(e.mean for e in exact) / SEEDS
    of_centre = exact[0].noise_error / SEEDS**0.5
    assert of_centre < 0.3 * claims[0].numerical_error

    def covered(bias, width):
        return sum(
            abs(c.mean + bias - centre)
            <= c.truncation_bound + width * math.hypot(c.probe_error, c.noise_error, of_centre)
            for c in claims
        )

    # Two standard errors cover 95 %: of 20, 17 or more with a probability of 98 %.
    assert covered(0, 2) >= 17
    assert covered(0, 4) == SEEDS
    # The control: a bias as large as the tolerance must be seen.
    assert covered(0.04, 2) <= 10


def test_probe_error_covers_exact_values_of_the_same_noise(digits_flow):
    flow, split = digits_flow
    precision = Precision(repeated=0)
    claims = [evaluate(flow, split, seed=s, precision=precision) for s in range(SEEDS)]
    # Noise is drawn before the probes, so that both see the same.
    exact = exact_scores(flow, split, precision)
    distances = [
        abs(c.mean - e.mean) / (c.probe_error + c.truncation_bound)
        for c, e in zip(claims, exact, strict=True)
    ]
    assert sum(d <= 2 for d in distances) >= 17
    assert max(distances) <= 4
    assert sum(d > 0.5 for d in distances) >= 5  # errors are no larger than they need be


def test_errors_shrink_with_the_tolerance_and_add_up(digits_flow):
    flow, split = digits_flow
    loose = evaluate(flow, split, precision=Precision(tol=0.05))
    tight = evaluate(flow, split, precision=Precision(tol=0.004))
    assert loose.rounds < tight.rounds and loose.met and tight.met
    assert tight.numerical_error <= 0.004
    parts = (tight.sample_error, tight.noise_error, tight.probe_error)
    assert math.hypot(*parts) == pytest.approx(tight.standard_error, rel=1e-6)
    missed = evaluate(flow, split, precision=Precision(tol=1e-6, limit=2))
    assert missed.rounds == 2 and not missed.met


def test_evaluation_goes_on_where_it_was_stopped(digits_flow, tmp_path):
    flow, split = digits_flow
    precision, state = Precision(tol=0.03), tmp_path / "evaluation.state"
    whole = evaluate(flow, split, batch_size=5, precision=precision)

    class Stop(Exception):
        pass

    seen = []

    def stop(done, planned):
        seen.append(done)
        if len(seen) in (3, 9):
            raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            evaluate(flow, split, batch_size=5, precision=precision, progress=stop, state=state)
        assert state.is_file()
    resumed = evaluate(flow, split, batch_size=5, precision=precision, progress=stop, state=state)
    assert resumed == whole
    assert sorted(set(seen)) == seen  # nothing was computed twice
    assert not state.exists()


@pytest.mark.parametrize("precision", [Precision(repeated=7), Precision(tol=0.03)])
def test_batches_of_any_size_give_the_same_numbers(digits_flow, precision):
    flow, split = digits_flow
    whole = evaluate(flow, split, precision=precision)
    for size in (1, 5, 16):
        again = evaluate(flow, split, batch_size=size, precision=precision)
        assert numbers_of(again) == pytest.approx(numbers_of(whole), rel=1e-4)
    order = torch.randperm(len(split))
    mixed = evaluate(flow, Split(split.values[order]), precision=Precision(repeated=24))
    whole = evaluate(flow, split, precision=Precision(repeated=24))
    assert numbers_of(mixed) == pytest.approx(numbers_of(whole), rel=1e-4)


def test_an_evaluation_goes_on_in_batches_of_another_size(digits_flow, tmp_path):
    flow, split = digits_flow
    state = tmp_path / "evaluation.state"
    stopped(flow, split, state)
    done = []
    resumed = evaluate(
        flow, split, batch_size=7, state=state, progress=lambda n, planned: done.append(n)
    )
    assert done[0] == 5 + 7 and done[-1] == 48
    assert numbers_of(resumed) == pytest.approx(numbers_of(evaluate(flow, split)), rel=1e-4)


def test_what_is_missing_of_a_round():
    scores = Scores.empty(10)
    assert list(scores.missing(0, 10, 4)) == [(0, 4), (4, 4), (8, 2)]
    for first, count in ((3, 2), (6, 1)):
        scores.put(1, first, *[torch.zeros(count)] * 3)
    assert list(scores.missing(1, 10, 2)) == [(0, 2), (2, 1), (5, 1), (7, 2), (9, 1)]
    assert list(scores.missing(1, 4, 100)) == [(0, 3)]
    assert list(scores.missing(0, 10, 100)) == [(0, 10)]


def test_state_of_another_evaluation_is_not_used(digits_flow, tmp_path):
    flow, split = digits_flow
    state = tmp_path / "evaluation.state"

    def stop(done, planned):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(flow, split, batch_size=5, seed=1, progress=stop, state=state)
    assert evaluate(flow, split, batch_size=5, state=state) == evaluate(flow, split, batch_size=5)


def test_evaluations_are_equal_by_their_numbers():
    one = Evaluation("nats", 1.0, 0.1, 0.1, math.nan, 0.0, 0.0, 5, 1)
    assert one == replace(one, noise_error=float("nan")) and one != replace(one, mean=2.0)
    assert one != replace(one, noise_error=0.0) and one != 1.0


def test_same_seed_same_numbers_and_another_seed_others(digits_flow):
    flow, split = digits_flow
    assert evaluate(flow, split, seed=3) == evaluate(flow, split, seed=3)
    assert evaluate(flow, split, seed=3).mean != evaluate(flow, split, seed=4).mean


def test_importance_weights_tighten_the_bound(digits_flow):
    flow, split = digits_flow
    result = evaluate(flow, split, precision=Precision(importance_samples=16, probes=16))
    assert result.rounds == 16 and result.importance_samples == 16
    assert 0 < result.importance_bias < 0.1
    exact, flow.log_det = flow.log_det, Exact()
    try:
        reference = evaluate(flow, split, precision=Precision(importance_samples=16))
    finally:
        flow.log_det = exact
    assert reference.importance_bias == 0
    assert reference.importance_mean < reference.mean
    # Same noise: what differs is the probes, whose spread has been allowed for.
    assert result.importance_mean == pytest.approx(
        reference.importance_mean, abs=4 * result.probe_error
    )
    raw = result.importance_mean - result.importance_bias
    assert raw < result.importance_mean < result.mean + 1e-9


def test_importance_bound_of_equal_draws_is_their_mean():
    scores = Scores.empty(3)
    for row in range(4):
        scores.put(row, 0, torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3), torch.zeros(3))
    assert scores.importance(4, 50.0)["importance_mean"] == pytest.approx(2.0)


def test_noise_and_probes_are_told_apart():
    """Rounds of known variances: 0.09 of the samples, 0.04 of the noise, 0.01 of the probes."""
    generator = torch.Generator().manual_seed(0)
    n, rounds = 20_000, 3

    def normal(std):
        return std * torch.randn(n, generator=generator)

    scores, sample = Scores.empty(n), normal(0.3)
    for row in range(rounds):
        values = sample + normal(0.2) + normal(0.1)
        scores.put(row, 0, values, torch.full((n,), 0.01), torch.full((n,), 1e-4))
    result = scores.summary("bits/dim", noisy=True)
    assert result.sample_error == pytest.approx(0.3 / n**0.5, rel=0.02)
    assert result.noise_error == pytest.approx(0.2 / (rounds * n) ** 0.5, rel=0.02)
    assert result.probe_error == pytest.approx(0.1 / (rounds * n) ** 0.5, rel=0.02)
    assert result.truncation_bound == pytest.approx(1e-4)
    assert abs(result.mean) <= 4 * result.standard_error


def test_vectors_have_no_noise_and_exact_flows_no_probes():
    torch.manual_seed(0)
    flow = VectorFlow(3, blocks=2, hidden=8)
    values = torch.randn(50, 3, dtype=torch.float32)
    flow.initialize(values.double())
    result = evaluate(flow.eval(), Split(values, None), precision=Precision(tol=1e-9))
    assert result.unit == "nats" and result.rounds == 1 and result.met
    assert result.probe_error == result.noise_error == result.truncation_bound == 0
    assert result.mean == pytest.approx(-float(flow.log_prob(values.double()).detach().mean()))
    long = VectorFlow(12, blocks=2, hidden=8)
    values = torch.randn(50, 12, dtype=torch.float32)
    long.initialize(values.double())
    result = evaluate(long.eval(), Split(values, None), precision=Precision(tol=5e-3))
    assert result.met and result.noise_error == 0 and result.rounds >= 1


def test_evaluation_is_written_as_plain_json(tmp_path):
    result = Evaluation("bits/dim", 1.0, 0.1, 0.1, math.nan, 0.01, 1e-4, 5, 1, tol=0.1)
    result.write(tmp_path / "evaluation.json", split="test")
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["noise_error"] is None and stored["met"] is True and stored["split"] == "test"
    assert "nan" not in (tmp_path / "evaluation.json").read_text().lower()


@pytest.mark.parametrize(
    "settings", [{"tol": 0.0}, {"probes": 1}, {"importance_samples": 0}, {"limit": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="got"):
        Precision(**settings)


def stopped(flow, split, state, precision=None):
    """Leaves a state behind after one batch."""

    def stop(done, planned):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(flow, split, batch_size=5, precision=precision, progress=stop, state=state)


def test_state_of_other_weights_or_data_is_not_used(digits_flow, tmp_path):
    """Sums of weights or of pixels would not see that signs and places have changed."""
    flow, split = digits_flow
    state = tmp_path / "evaluation.state"
    other = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter.flip(0) if parameter.ndim else parameter)
    other.enforce()
    stopped(flow, split, state)
    whole = evaluate(other, split, batch_size=5)
    assert evaluate(other, split, batch_size=5, state=state) == whole
    mirrored = Split(split.values.flip(3), None)
    stopped(flow, split, state)
    whole = evaluate(flow, mirrored, batch_size=5)
    assert evaluate(flow, mirrored, batch_size=5, state=state) == whole
    stopped(flow, split, state, Precision(importance_samples=3))
    assert evaluate(flow, split, batch_size=5, state=state) == evaluate(flow, split, batch_size=5)


@pytest.mark.parametrize("damage", ["bytes", "content"])
def test_a_damaged_state_is_started_anew(digits_flow, tmp_path, damage):
    flow, split = digits_flow
    state = tmp_path / "evaluation.state"
    if damage == "bytes":
        state.write_bytes(b"no state")
    else:
        write_file({"evaluation": [1]}, state)
    with pytest.warns(UserWarning, match="damaged"):
        assert evaluate(flow, split, state=state) == evaluate(flow, split)


def test_a_model_that_gives_nan_is_told(digits_flow):
    flow, split = copy.deepcopy(digits_flow[0]), digits_flow[1]
    with torch.no_grad():
        flow.base.mean[0] = math.nan
    with pytest.raises(NonFiniteError, match=r"NaN for 24 of the samples 0 \.\. 23"):
        evaluate(flow, split)
