"""Small networks on the one loop, as the experiments train them."""

import pytest
import torch
from torch import nn

from experiments.relu.inversion.vae import Autoencoder, EvidenceBound, VariationalAutoencoder
from experiments.relu.networks import mlp
from experiments.relu.training import Training, train
from iresflow.data import load_dataset
from iresflow.errors import NonFiniteError
from iresflow.streams import PartialStream
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.base import Objective, Score, Terms
from iresflow.training.objectives.classification import CrossEntropy, accuracy, predict


def blobs(count=200):
    labels = torch.arange(count) % 2
    return torch.randn(count, 2) + 4.0 * labels[:, None], labels


class Squares(Objective):
    """The mean squared difference of the outputs from a multiple of the inputs."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, model, batch, stream):
        return Terms((model(batch.values) - self.factor * batch.values).square().mean())

    def evaluate(self, model, split):
        return Score(float(self(model, split, None).loss))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_learns_and_repeats(optimizer):
    x, labels = blobs()
    training = Training(epochs=15, batch_size=20, optimizer=optimizer, learning_rate=0.02)
    seen, weights = [], []
    for _ in range(2):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
        losses = train(
            module,
            x,
            labels,
            CrossEntropy(),
            training,
            after_epoch=lambda model: seen.append(model.training),
        )
        weights.append(module[0].weight.detach())
    assert seen == [False] * 2 * 16
    assert torch.equal(*weights)
    assert len(losses) == 15 and losses[-1] < 0.2 * losses[0]
    assert not module.training
    assert accuracy(module, x, labels) > 0.95
    torch.testing.assert_close(predict(module, x, 7), module(x).detach())


def test_reaches_the_accuracy_of_a_loop_in_plain_torch():
    """The loop that the experiments had before, on the digits of scikit-learn."""
    torch.set_default_dtype(torch.float32)
    digits = load_dataset("digits")
    x, labels = digits.train.values.float() / 16, digits.train.labels
    held, expected = digits.test.values.float() / 16, digits.test.labels
    torch.manual_seed(3)
    plain, ours = mlp((64, 40, 10)), mlp((64, 40, 10))
    ours.load_state_dict(plain.state_dict())
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3)
    for _ in range(12):
        for index in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x[index]), labels[index]).backward()
            optimizer.step()
    train(ours, x, labels, CrossEntropy(), Training(epochs=12, batch_size=50))
    reached = [accuracy(module, held, expected) for module in (plain, ours)]
    # Both of n = 360 answers are right with a probability near 0.95: within four deviations.
    assert abs(reached[0] - reached[1]) < 4 * (2 * 0.05 * 0.95 / len(held)) ** 0.5
    assert reached[1] > 0.9
    untrained = mlp((64, 40, 10))
    assert accuracy(untrained, held, expected) < 0.5


def test_any_loss_of_any_data():
    x = torch.randn(50, 3)
    module = nn.Linear(3, 3)
    training = Training(epochs=100, batch_size=50, learning_rate=0.05)
    train(module, x, None, Squares(2.0), training)
    torch.testing.assert_close(module.weight.detach(), 2 * torch.eye(3), atol=0.05, rtol=0)


def test_no_epoch_changes_nothing():
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    assert train(module, *blobs(), CrossEntropy(), Training(epochs=0)) == []
    assert torch.equal(module.weight, before)


def test_stops_where_the_loss_is_not_finite():
    with pytest.raises(NonFiniteError, match="the loss is nan at step 0"):
        train(nn.Linear(2, 2), *blobs(), Squares(torch.nan), Training())


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"optimizer": "sdg"}],
)
def test_refuses_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        train(nn.Linear(2, 2), *blobs(), CrossEntropy(), Training(**wrong))


def test_refuses_data_of_two_lengths():
    with pytest.raises(ValueError, match="3 samples and labels of shape"):
        train(
            nn.Linear(2, 2), torch.zeros(3, 2), torch.zeros(4).long(), CrossEntropy(), Training()
        )


def test_the_evidence_bound_of_parts_is_that_of_the_batch():
    model, objective = VariationalAutoencoder(Autoencoder(latent=3), 5), EvidenceBound(0.1)
    x = torch.rand(6, 5)
    whole = objective(model, Batch(x), torch.Generator().manual_seed(1)).loss
    parts = [
        objective(
            model, Batch(x[rows]), PartialStream(torch.Generator().manual_seed(1), 6, rows.start)
        ).loss
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(whole, (2 * parts[0] + 4 * parts[1]) / 6)


def test_the_evidence_bound_is_that_of_a_linear_model_in_closed_form():
    """For a decoder that ignores the code: the misfit, and the divergence from the prior."""
    model = VariationalAutoencoder(Autoencoder(latent=2, hidden=()), 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.decoder[-2].bias.fill_(0.5)
        model.encoder[-1].bias.copy_(torch.tensor([1.0, -2.0, 0.3, 0.0]))
    x = torch.rand(7, 4)
    posterior = torch.distributions.Normal(
        torch.tensor([1.0, -2.0]), torch.tensor([0.3, 0.0]).mul(0.5).exp()
    )
    prior = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    divergence = torch.distributions.kl_divergence(posterior, prior).sum()
    expected = ((x - 0.5) ** 2).sum(1).mean() / (2 * 0.1**2) + divergence
    loss = EvidenceBound(0.1)(model, Batch(x), torch.Generator().manual_seed(0)).loss
    torch.testing.assert_close(loss.detach(), expected)
