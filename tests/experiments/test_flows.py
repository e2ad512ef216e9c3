"""The experiments on flows: any package's densities in one loop, and the options of the tables."""

import math

import pytest
import torch
from torch import nn

from benchmarks.peers import Density
from experiments.flows.__main__ import main
from experiments.flows.likelihood import AnyLikelihood, losses_of, train_density
from experiments.flows.models import FAMILIES
from iresflow import ImageFlow
from iresflow.data import Dataset, Split
from iresflow.training.loop.batches import Batch


class Diagonal(Density):
    """A normal density of each entry."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.mean, self.log_std = (nn.Parameter(torch.zeros(shape)) for _ in range(2))

    def initialize(self, x):
        self.mean.data.copy_(x.mean(0))

    def log_prob(self, x):
        normal = torch.distributions.Normal(self.mean, self.log_std.exp())
        return normal.log_prob(x).flatten(1).sum(1)

    def sample(self, n):
        return self.mean + self.log_std.exp() * torch.randn(n, *self.shape)


class Uniform(Diagonal):
    """The uniform density of the unit cube."""

    def log_prob(self, x):
        return 0 * self.mean.sum() + x.new_zeros(len(x))


def split(shape, count=40, levels=256):
    generator = torch.Generator().manual_seed(count)
    return Split(torch.randint(levels, (count, *shape), generator=generator, dtype=torch.uint8))


def dataset(shape=(1, 4, 4), levels=256):
    parts = (split(shape, count, levels) for count in (60, 20, 10))
    return Dataset("noise", *parts, levels=levels, classes=())


def test_a_uniform_density_has_eight_bits():
    images = dataset().test.values
    loss = AnyLikelihood(256)(Uniform((1, 4, 4)), Batch(images), torch.Generator()).loss
    assert loss.item() == 8.0


def test_vectors_are_scored_in_nats():
    x = torch.randn(500, 3, dtype=torch.get_default_dtype())
    model = Diagonal((3,))
    expected = 0.5 * x.square().sum(1) + 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(AnyLikelihood(None).losses(model, x), expected)


@pytest.mark.parametrize("own", [True, False])
def test_models_of_any_package_train_and_go_on(own, tmp_path):
    data = dataset()

    def model():
        torch.manual_seed(0)
        return ImageFlow((1, 4, 4), (1, 1), 4) if own else Diagonal((1, 4, 4))

    options = {"minutes": 0.02, "batch_size": 8, "learning_rate": 1e-2, "seed": 0}
    first = model()
    fitted = train_density(first, data, tmp_path / "run", **options)
    losses = losses_of(first, data, data.test)
    assert losses.shape == (10,) and bool(losses.isfinite().all())
    again = model()
    resumed = train_density(again, data, tmp_path / "run", **options)
    assert resumed.steps >= fitted.steps > 0 and resumed.best == pytest.approx(fitted.best)
    torch.testing.assert_close(losses_of(again, data, data.test), losses)


def test_the_table_has_the_families_of_the_thesis():
    thesis = {"NICE": 4.36, "MADE": 2.04, "MAF": 1.89, "Real NVP": 1.06, "Glow": 1.05}
    thesis |= {"FFJORD": 0.99, "i-ResNet, five terms": 1.06}
    for name, bits in thesis.items():
        assert FAMILIES[name].published[0] == bits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "unknown experiment"),
        (["families", "--families", "[FLOW]"], "unknown family"),
    ],
)
def test_what_is_not_there_is_named(options, message, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err
