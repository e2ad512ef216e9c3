"""The average of the weights, against torch's and against what earlier versions stored."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from iresflow.training.loop.average import WeightAverage


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(1.0)
    return model


def test_it_is_torch_s_average_once_the_decay_is_reached():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ours = WeightAverage(model, 0.5)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for step in range(9):
        moved(model)
        # The decay grows as (1 + n) / (10 + n), and is 1/2 from n = 8 on; torch's is constant.
        ours.decay = 0.0 if step == 0 else 0.5
        ours.update(model, step if step == 0 else 1000 + step)
        theirs.update_parameters(model)
    for a, b in zip(ours.model.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.equal(a, dict(model.named_parameters())["0.weight"])


def test_the_decay_grows_with_the_steps():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.9)
    expected = None
    for step in range(100):
        w = moved(model).weight.detach().clone()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = w if expected is None else decay * expected + (1 - decay) * w
        average.update(model, step)
    torch.testing.assert_close(average.model.weight.detach(), expected)


def test_the_settled_model_has_the_buffers_of_now_and_leaves_the_model_alone():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.9)
    average.update(moved(model), 0)
    moved(model)
    before = copy.deepcopy(model.state_dict())
    settled = average.settle(model)
    assert not settled.training and model.training
    assert torch.equal(settled.running_mean, model.running_mean)
    assert not torch.equal(settled.weight, model.weight)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in before.items())


def test_what_earlier_versions_stored_is_taken_up():
    model = moved(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    stored = AveragedModel(model).state_dict()
    assert all(name.startswith("module.") for name in stored if name != "n_averaged")
    average = WeightAverage(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 0.9)
    average.load_state_dict(stored)
    for name, tensor in model.state_dict().items():
        assert torch.equal(average.state_dict()[name], tensor)
    again = WeightAverage(copy.deepcopy(model), 0.9)
    again.load_state_dict(average.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({"n_averaged": torch.tensor(1)})
