"""Each optimiser and each schedule against three steps that are written out here."""

import copy
import math

import pytest
import torch
from torch import nn

from iresflow.training.config import TrainingConfig
from iresflow.training.loop.batches import Batch
from iresflow.training.loop.optimizers import OPTIMIZERS, Schedule, take_up
from iresflow.training.loop.trainer import Trainer
from iresflow.training.objectives.base import Objective, Score, Terms

DECAY = 0.1
"""Weight decay of the tests."""


class Regression(Objective):
    """Half the mean squared error of a linear map."""

    def __call__(self, model, batch, stream):
        return Terms((model(batch.values)[:, 0] - batch.labels).square().mean() / 2)

    def evaluate(self, model, split):
        with torch.no_grad():
            return Score(float(self(model, split, None).loss))


# The formulas of the papers, as functions of weight w, gradient g, rate and step t (the first: 1).


def adam(w, g, rate, t, state, decoupled=False):
    if decoupled:
        w = w - rate * DECAY * w
    else:
        g = g + DECAY * w
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.99 * state.get("v", 0) + 0.01 * g**2
    m, v = state["m"] / (1 - 0.9**t), state["v"] / (1 - 0.99**t)
    return w - rate * m / (v.sqrt() + 1e-8)


def adamw(w, g, rate, t, state):
    return adam(w, g, rate, t, state, decoupled=True)


def adamax(w, g, rate, t, state):
    g = g + DECAY * w
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["u"] = torch.maximum(0.999 * state.get("u", torch.zeros_like(g)), g.abs() + 1e-8)
    return w - rate / (1 - 0.9**t) * state["m"] / state["u"]


def sgd(w, g, rate, t, state):
    g = g + DECAY * w
    state["b"] = 0.8 * state["b"] + g if "b" in state else g
    return w - rate * state["b"]


def rmsprop(w, g, rate, t, state):
    g = g + DECAY * w
    state["v"] = 0.9 * state.get("v", 0) + 0.1 * g**2
    return w - rate * g / (state["v"].sqrt() + 1e-7)


def muon(w, g, rate, t, state):
    w = w - rate * DECAY * w
    state["b"] = 0.8 * state.get("b", 0) + 0.2 * g
    ahead = 0.2 * g + 0.8 * state["b"]
    s = 1.0  # the one singular value of a row
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return w - rate * math.sqrt(w.numel()) * s * ahead / ahead.norm()


FORMULAS = {
    "adam": adam,
    "adamw": adamw,
    "adamax": adamax,
    "muon": muon,
    "rmsprop": rmsprop,
    "sgd": sgd,
}


def new_trainer(**settings):
    torch.manual_seed(1)
    model = nn.Linear(3, 1, bias=False)
    data = Batch(torch.randn(8, 3), 5 * torch.randn(8))
    options = {"steps": 3, "batch_size": 8, "momentum": 0.8, "learning_rate": 0.1}
    config = TrainingConfig(**{**options, "validate_every": 3, "log_every": 1, **settings})
    return Trainer(model, Regression(), data, None, config, bar=False), model, data


def clipped(gradient, limit):
    return gradient * min(1.0, limit / (float(gradient.norm()) + 1e-6))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_are_those_of_the_formulas(name):
    settings = {"warmup_steps": 2, "decay_steps": 2, "clip_norm": 0.7, "ema_decay": 0.5}
    trainer, model, data = new_trainer(optimizer=name, weight_decay=DECAY, **settings)
    w, average, state = model.weight.detach().clone(), None, {}
    rates = []
    for t in (1, 2, 3):
        error = (data.values @ w.T)[:, 0] - data.labels
        gradient = clipped((error[:, None] * data.values).mean(0, keepdim=True), 0.7)
        rates.append(0.1 * min(1, t / 2, (3 - (t - 1)) / 2))
        w = FORMULAS[name](w, gradient, rates[-1], t, state)
        decay = min(0.5, t / (9 + t))
        average = w if t == 1 else decay * average + (1 - decay) * w
    trainer.train()
    torch.testing.assert_close(model.weight.detach(), w, rtol=1e-12, atol=1e-13)
    kept = trainer.average.model.weight.detach()
    torch.testing.assert_close(kept, average, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(kept, w, rtol=1e-3)  # a control: the average is another
    rows = [r["train/learning_rate"] for r in trainer.recorder.history if "train/loss" in r]
    assert rows == pytest.approx(rates)


def test_a_gradient_below_the_limit_is_not_clipped_and_none_is_without_one():
    for limit in (1e6, None):
        trainer, model, data = new_trainer(
            optimizer="sgd", clip_norm=limit, warmup_steps=0, steps=1, validate_every=1
        )
        w = model.weight.detach().clone()
        error = (data.values @ w.T)[:, 0] - data.labels
        gradient = (error[:, None] * data.values).mean(0)
        trainer.train()
        torch.testing.assert_close(model.weight.detach(), w - 0.1 * gradient)
        norm = trainer.recorder.history[0]["train/gradient_norm"]
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimiser_remembers_but_has_the_options_of_now(name):
    trainer, model, _ = new_trainer(optimizer=name, weight_decay=DECAY)
    trainer.train()
    other, _, _ = new_trainer(optimizer=name, weight_decay=0.5, momentum=0.3)
    take_up(other.optimizer, copy.deepcopy(trainer.optimizer.state_dict()))
    for group in other.optimizer.param_groups:
        assert group["weight_decay"] == 0.5 and group.get("momentum", 0) in (0, 0.3)
    (ours,), (theirs,) = other.optimizer.state.values(), trainer.optimizer.state.values()
    assert ours and all(
        torch.equal(torch.as_tensor(v), torch.as_tensor(theirs[k])) for k, v in ours.items()
    )


def rates(steps=100, at=None, **settings):
    config = TrainingConfig(steps=steps, learning_rate=1.0, **{"warmup_steps": 0, **settings})
    schedule = Schedule(config)
    return [schedule.rate(step) for step in (range(steps) if at is None else at)]


def test_the_cosine_falls_from_one_to_nothing():
    found = rates(decay_steps=50, schedule="cosine", at=[0, 50, 75, 99])
    expected = [1, 1, 0.5, (1 + math.cos(math.pi * 49 / 50)) / 2]
    assert found == pytest.approx(expected)
    whole = rates(decay_steps=100, schedule="cosine")
    assert whole == sorted(whole, reverse=True)


def test_steps_fall_at_their_fractions():
    found = rates(schedule="steps", drops=(0.5, 0.75), drop=0.2, at=[0, 49, 50, 74, 75, 99])
    assert found == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


def test_a_batch_grows_where_a_rate_would_fall():
    options = {"steps": 100, "batch_size": 12, "drops": (0.5, 0.75), "drop": 0.4}
    options |= {"warmup_steps": 0, "learning_rate": 1.0}
    growing = Schedule(TrainingConfig(**options, schedule="batch"))
    at = [0, 49, 50, 74, 75, 99]
    assert [growing.batch_size(step) for step in at] == [12, 12, 30, 30, 75, 75]
    assert {growing.rate(step) for step in at} == {1.0}
    falling = Schedule(TrainingConfig(**options, schedule="steps"))
    assert {falling.batch_size(step) for step in at} == {12}
    largest = Schedule(TrainingConfig(**{**options, "drop": 1e-320}, schedule="batch"))
    assert largest.batch_size(99) == 12 * 2**40  # where the factor underflows
    timed = Schedule(TrainingConfig(**{**options, "steps": None, "minutes": 1}, schedule="batch"))
    assert [timed.batch_size(7, seconds) for seconds in (0, 31, 46)] == [12, 30, 75]


def test_a_fraction_is_a_count_of_steps():
    assert rates(decay_steps=0.3) == pytest.approx(rates(decay_steps=30))


def test_time_ends_the_fall_where_it_comes_first():
    config = TrainingConfig(
        steps=100, minutes=1, learning_rate=1.0, warmup_steps=0, decay_steps=0.5
    )
    schedule = Schedule(config)
    assert schedule.rate(10, 0.0) == 1 and schedule.rate(10, 45.0) == pytest.approx(0.5)
    assert schedule.rate(75, 45.0) == pytest.approx(0.5)
    assert schedule.rate(90, 45.0) == pytest.approx(0.2)
    assert schedule.progress(10, 60.0) == 1 and schedule.progress(100, 3.0) == 1
    endless = Schedule(
        TrainingConfig(steps=None, minutes=2, learning_rate=1.0, warmup_steps=10, decay_steps=0.25)
    )
    assert endless.progress(10**9, 60.0) == 0.5
    assert endless.rate(4, 0.0) == 0.5 and endless.rate(99, 105.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": None},
        {"steps": None, "minutes": 1, "decay_steps": 5},
        {"decay_steps": 2.5},
        {"decay_steps": -0.1},
        {"validate_every": 1.5},
        {"validate_every": 0},
        {"drops": (0.7, 0.5)},
        {"drops": (0.5, 1.0)},
        {"drop": 0.0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"weight_decay": math.nan},
        {"patience": 0},
        {"optimizer": "sdg"},
        {"schedule": "cosin"},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        TrainingConfig(**wrong)
