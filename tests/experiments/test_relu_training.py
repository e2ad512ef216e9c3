"""The short training loop."""

import pytest
import torch
from iresflow.relu.training import Training, accuracy, classification_loss, fit, predict
from torch import nn

from iresflow.errors import NonFiniteError


def blobs(count=200):
    labels = torch.arange(count) % 2
    return torch.randn(count, 2) + 4.0 * labels[:, None], labels


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_learns_and_repeats(optimizer):
    x, labels = blobs()
    training = Training(epochs=15, batch_size=20, optimizer=optimizer, learning_rate=0.02)
    seen, weights = [], []
    for _ in range(2):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
        losses = fit(module, (x, labels), classification_loss, training, after_epoch=seen.append)
        weights.append(module[0].weight.detach())
    assert seen == [*range(16)] * 2
    assert torch.equal(*weights)
    assert losses[-1] < 0.2 * losses[0]
    assert not module.training
    assert accuracy(module, x, labels) > 0.95
    torch.testing.assert_close(predict(module, x, 7), module(x).detach())


def test_any_loss_of_any_data():
    x = torch.randn(50, 3)
    module = nn.Linear(3, 3)
    training = Training(epochs=100, batch_size=50, learning_rate=0.05)
    fit(module, (x,), lambda m, batch: (m(batch[0]) - 2 * batch[0]).square().mean(), training)
    torch.testing.assert_close(module.weight.detach(), 2 * torch.eye(3), atol=0.05, rtol=0)


def test_no_epoch_changes_nothing():
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    assert fit(module, blobs(), classification_loss, Training(epochs=0)) == []
    assert torch.equal(module.weight, before)


def test_stops_where_the_loss_is_not_finite():
    with pytest.raises(NonFiniteError, match="epoch 1"):
        fit(nn.Linear(2, 2), blobs(), lambda m, b: m(b[0]).sum() * torch.nan, Training())


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"optimizer": "sgd"}],
)
def test_refuses_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Training(**wrong)


def test_refuses_data_of_two_lengths():
    with pytest.raises(ValueError, match="one length"):
        fit(nn.Linear(2, 2), (torch.zeros(3, 2), torch.zeros(4)), classification_loss, Training())
