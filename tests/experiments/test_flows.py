"""The experiments on flows: any package's densities in one loop, and the options of the tables."""

import json
import math
from itertools import count

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from benchmarks.peers import Density
from experiments.flows.__main__ import main
from experiments.flows.likelihood import AnyLikelihood, losses_of, train_density
from experiments.flows.models import FAMILIES
from experiments.flows.records import Records
from experiments.flows.tables import column_units, folds_of, normal_losses
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

    options = {"minutes": 0.004, "batch_size": 8, "learning_rate": 1e-2, "seed": 0}
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


def test_a_family_is_a_row_and_ours_has_the_blocks_that_are_asked_for(tmp_path):
    options = ["families", "--families", '["i-ResNet, the preset"]', "--minutes", "0.002"]
    options += ["--rates", "[0.01]", "--test", "10", "--blocks", "[0,1]", "--into", str(tmp_path)]
    options += ["--optimizers", "[muon]"]
    assert main(options) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())["table-5-1"]
    assert row["optimizer"] == "muon"
    assert row["steps"] > 0 and row["test"] > 0 and row["parameters"] < 27_955  # the preset's


def test_columns_have_unit_deviations_and_those_of_few_values_are_left_out():
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(5, 3, 50), rng.integers(0, 2, 50), rng.exponential(1e4, 50)], 1)
    table = column_units(values)
    assert table.shape == (50, 2) and table.dtype == torch.float32
    np.testing.assert_allclose(table.numpy().std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(np.corrcoef(table.numpy().T, values[:, [0, 2]].T)[0, 2], 1)


def test_each_sample_is_tested_once_and_never_trained_on_in_that_fold():
    values = torch.arange(23, dtype=torch.float32)[:, None]
    folds = list(folds_of("numbers", values, 5, 0.2, seed=0))
    tested = torch.cat([fold.test.values for fold in folds])
    assert sorted(tested.flatten().tolist()) == list(range(23))
    for fold in folds:
        parts = torch.cat([fold.train.values, fold.validation.values, fold.test.values])
        assert sorted(parts.flatten().tolist()) == list(range(23))
        assert len(fold.validation) == round(0.2 * (23 - len(fold.test)))


def test_the_normal_density_is_that_of_the_training_moments():
    (fold, *_) = folds_of("noise", torch.randn(60, 3, dtype=torch.float32), 4, 0.2, seed=0)
    train = fold.train.values.double().numpy()
    density = scipy.stats.multivariate_normal(train.mean(0), np.cov(train.T))
    expected = -density.logpdf(fold.test.values.double().numpy())
    np.testing.assert_allclose(normal_losses(fold).numpy(), expected, rtol=1e-6)


def test_what_was_computed_before_an_interruption_is_not_computed_again(tmp_path):
    file = tmp_path / "records.jsonl"
    assert Records(file).result("a", lambda: {"nats": 1.5}) == {"nats": 1.5}
    with file.open("a") as lines:
        lines.write('\n["b", {"na')  # cut off
    records = Records(file)
    assert records.result("a", lambda: pytest.fail("computed again")) == {"nats": 1.5}
    assert records.result("b", lambda: {"nats": 2.5}) == {"nats": 2.5}
    assert Records(file).result("b", lambda: pytest.fail("computed again")) == {"nats": 2.5}


def test_tables_are_compared_on_the_same_samples(tmp_path, capsys):
    pytest.importorskip("zuko")
    options = ["--tables", "[wine]", "--densities", "[]", "--folds", "2", "--rates", "[0.01]"]
    options += ["--weight_decays", "[0.01]", "--table_seconds", "0.05", "--into", str(tmp_path)]
    assert main(["tables", *options]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["tables"]
    assert [row["model"] for row in rows][:2] == ["i-ResNet", "NSF"]
    ours = rows[0]
    for row in rows:
        assert row["samples"] == 178 and row["standard error"] > 0
        assert row["- i-ResNet"] == pytest.approx(row["nats"] - ours["nats"], abs=1e-9)
    trained = capsys.readouterr().out.count("validation")
    lines = (tmp_path / "records.jsonl").read_text()
    assert main(["tables", *options]) == 0
    assert trained > 0 and (tmp_path / "records.jsonl").read_text() == lines


def test_curves_hold_the_best_so_far_at_each_mark(tmp_path, monkeypatch):
    # Time that passes with each look at the clock: how busy the machine is does not matter.
    monkeypatch.setattr("experiments.flows.likelihood.time.process_time", count(0, 0.03).__next__)
    options = ["--models", "[iresflow]", "--seeds", "[0]", "--rates", "[0.01]", "--every", "0.1"]
    options += ["--marks", "[0.1, 0.4]", "--into", str(tmp_path)]
    assert main(["curves", *options]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())["curves"]
    (line,) = (tmp_path / "records.jsonl").read_text().split("\n")[1:]
    curve = json.loads(line)[1]
    best = [min(curve["validation"][: i + 1]) for i in range(len(curve["validation"]))]
    assert len(curve["test"]) == len(best) >= 3
    for i in range(1, len(best)):  # a test score changes exactly where validation is better
        assert (curve["test"][i] != curve["test"][i - 1]) == (best[i] < best[i - 1])
    assert row["0.1 s"] == curve["test"][0] and row["0.4 s"] == curve["test"][:4][-1]
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "unknown experiment"),
        (["families", "--families", "[FLOW]"], "unknown family"),
        (["tables", "--tables", "[iris]"], "unknown table"),
        (["tables", "--flows", "[Glow]"], "unknown flow"),
        (["curves", "--models", "[Flow]"], "unknown model"),
        (["curves", "--marks", "[60, 10]"], "marks must rise"),
        (["tables", "--flows", "[]"], "flows is empty"),
    ],
)
def test_what_is_not_there_is_named(options, message, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err
